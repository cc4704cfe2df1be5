"""What the training of sam_micro is judged by on the way: photographs and drawings that it never learns from.

The figures are those of ``stage=test`` (the same loop), on so few images and objects that a table takes half a minute.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.table import Table

from vpexp.config.schema import DataConfig, PromptConfig, SyntheticConfig
from vpexp.data.annotations import AnnotatedImage
from vpexp.data.batch import EvaluationSet
from vpexp.data.dataset import load_dataset
from vpexp.data.masks import decode_rle
from vpexp.evaluation.click_protocol import build_interaction
from vpexp.evaluation.evaluator import EvaluationResult, Evaluator
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.models.sam import Sam
from vpexp.synthetic.dataset import write_synthetic_dataset
from vpexp.visuals import draw_comparison, save_picture

IMAGES, OBJECTS, OVERLAYS = 24, 8, 6
CLICKS = 5
RECIPES = {
    "exact": PromptConfig(type="box"),
    "loose": PromptConfig(type="box", test_jitter=0.4),
    "point": PromptConfig(type="point"),
    "clicks": PromptConfig(type="clicks", clicks=CLICKS),
}
SEED = 99


class HeldOut:
    """The held-out images.

    Args:
        photos: a data set whose val split counts; None: drawings alone.
        folder: drawings and overlays are written there.
    """

    def __init__(self, photos: Path | None, folder: Path) -> None:
        self.folder = folder
        drawn = write_synthetic_dataset(folder, SyntheticConfig(train=1, val=0, test=IMAGES // 2, seed=SEED))
        self.sets = {"drawn": choose(drawn, "test")}
        if photos:
            self.sets["photos"] = choose(photos, "val")

    def measure(self, sam: Sam, overlays: str) -> dict[str, float]:
        """Measure F1 of boxes and points, mean IoU after clicks, and how much F1 is lost with another image's embedding.

        Args:
            sam: at its full size, in eval mode.
            overlays: name of the folder that pictures of the last clicks' masks go to.
        """
        found: dict[str, float] = {}
        for name, images in self.sets.items():
            for prompt in ("exact", "loose", "clicks" if name == "photos" else "point"):
                result = evaluate(sam, images, RECIPES[prompt], baselines=prompt == "loose")
                if prompt == "clicks":
                    for click in range(1, CLICKS + 1):
                        found[f"{name}/{click}"] = result.metrics[f"mean_iou_clicks_{click}"]
                    self._draw(result, self.folder / "overlays" / overlays)
                else:
                    found[f"{name}/{prompt}"] = result.metrics["f1-score"]
                if prompt == "loose":
                    found[f"{name}/drop"] = result.wrong_image_drop
        return {name: round(value, 4) for name, value in found.items()}

    def _draw(self, result: EvaluationResult, folder: Path) -> None:
        for kept in result.kept:
            assert kept.sample.image_HW3 is not None
            annotated = [decode_rle(rle) for rle in kept.sample.annotations.masks]
            predicted = [decode_rle(rle) for rle in kept.predicted]
            captions = ("annotated", f"after {CLICKS} clicks")
            picture = draw_comparison(kept.sample.image_HW3, annotated, predicted, kept.prompts, captions)
            save_picture(picture, folder / f"{Path(kept.sample.annotations.image_id).stem}.png")


def choose(root: Path, split: str) -> list[AnnotatedImage]:
    """Choose images of a split, evenly, and some objects of each; classes do not count."""
    images = load_dataset(DataConfig(format="auto", root=str(root)), splits=(split,)).splits[split].images
    places = np.linspace(0, len(images) - 1, min(IMAGES, len(images))).round().astype(int).tolist()
    chosen = []
    for place in places:
        image = images[place]
        some_N = np.zeros(len(image), bool)
        some_N[np.random.default_rng([SEED, place]).permutation(len(image))[:OBJECTS]] = True
        chosen.append(replace(image.select(some_N), labels_N=np.zeros(int(some_N.sum()), np.int64)))
    return chosen


def evaluate(sam: Sam, images: Sequence[AnnotatedImage], recipe: PromptConfig, *, baselines: bool) -> EvaluationResult:
    """Ask for all objects as a recipe of prompts says."""
    predictor = TorchPredictor(sam, recipe.multimask)
    samples = EvaluationSet(images, recipe)
    keep = np.linspace(0, len(images) - 1, OVERLAYS).astype(int).tolist() if recipe.type == "clicks" else ()
    evaluator = Evaluator(("object",), baselines=baselines, keep=keep, interaction=build_interaction(recipe))
    for index in range(len(samples)):
        evaluator.update(predictor, samples[index], data_seconds=0.0)
    evaluator.finish(predictor)
    return evaluator.compute()


def describe(found: dict[str, float], title: str) -> Table:
    """Build the table of a measurement: a row for each set, a column for each figure.

    ``drop``: F1 of loose boxes that is lost with another image's embedding. ``1`` to ``5``: mean IoU after so many clicks.
    """
    columns = list(dict.fromkeys(name.partition("/")[2] for name in found))
    table = Table("", *columns, title=title)
    for name in dict.fromkeys(name.partition("/")[0] for name in found):
        cells = [f"{found[key]:.2f}" if (key := f"{name}/{column}") in found else "" for column in columns]
        table.add_row(name, *cells)
    return table
