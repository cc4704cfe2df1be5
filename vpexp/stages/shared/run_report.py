"""``report.html`` of a training or a test: what came out, curves, numbers, and the images that came out worst and best."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpexp.config.saved import name_data
from vpexp.console import format_count, log_line
from vpexp.data.annotations import AnnotatedDataset, with_objects
from vpexp.data.batch import EvaluationSet
from vpexp.embeddings.cache import EmbeddingCache
from vpexp.errors import DataError
from vpexp.evaluation.click_protocol import build_interaction
from vpexp.evaluation.evaluator import EvaluationResult, KeptPrediction, evaluate
from vpexp.files import write_text
from vpexp.inference.predictor import Predictor
from vpexp.reporting.page import LinkedPicture, RunPage, build_run_page, plot_epochs, shrink
from vpexp.stages.shared.context import RunContext
from vpexp.stages.shared.evaluate import ROWS, draw_kept, format_metric, judge_baselines, list_categories
from vpexp.visuals import build_legend, name_picture, save_picture

EXTREMES = 6
"""How many of the worst and of the best images are shown, at most."""
SHOWN = ("f1-score", "iou", "mean_iou", "map", "map_50", "map_75", "map_small", "map_medium", "map_large")
NOTE = (
    "box filled: the prompt's box taken as the mask. wrong image: the same prompts on the embedding of another image. f1-score "
    "counts pixels, so large objects weigh most; mean_iou counts each object alike."
)
PICTURES_NOTE = (
    "Annotation on the left, the prompts and what was predicted from them on the right; a picture opens in full size."
)


@dataclass(frozen=True, slots=True)
class Scored:
    """An image that is shown.

    Attributes:
        kept: its prediction.
        iou: of all of its objects' pixels.
    """

    kept: KeptPrediction
    iou: float


def predict_extremes(
    context: RunContext,
    predictor: Predictor,
    dataset: AnnotatedDataset,
    split: str,
    result: EvaluationResult,
    *,
    cache: EmbeddingCache | None,
) -> dict[str, list[Scored]]:
    """Predict again on the images that came out worst, and on those that came out best.

    Returns:
        By title, the most extreme first; the same image is not among both. Empty where no pictures are asked for.
    """
    if not context.cfg.stage.overlays:
        return {}
    ious = {image: overlap / max(1, own + true - overlap) for image, (overlap, own, true) in result.image_sums.items()}
    ranked = sorted(ious, key=lambda image: ious[image])
    count = min(EXTREMES, max(1, len(ranked) // 8), len(ranked) // 2)  # a quarter of the work at most
    chosen = {"Worst images": ranked[:count], "Best images": ranked[: -count - 1 : -1]}
    wanted = {image for images in chosen.values() for image in images}
    recipe = context.settings.prompt
    samples = EvaluationSet(
        with_objects(dataset.splits[split].images), recipe, embeddings=cache.stored if cache else None
    )
    places = [place for place, image in enumerate(samples.images) if image.image_id in wanted]
    found = evaluate(
        predictor,
        (samples[place] for place in places),
        dataset.categories,
        total=len(places),
        description="worst and best images",
        keep=range(len(places)),
        interaction=build_interaction(recipe),
    )
    by_name = {(kept.sample.image or kept.sample.annotations).image_id: kept for kept in found.kept}
    return {
        title: [Scored(by_name[image], ious[image]) for image in names if image in by_name]
        for title, names in chosen.items()
    }


def write_run_report(
    context: RunContext,
    split: str,
    result: EvaluationResult,
    extremes: Mapping[str, Sequence[Scored]],
    *,
    findings: Sequence[str] = (),
    before: Mapping[str, float] | None = None,
    more: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Path]:
    """Write ``report.html`` and its pictures into the run's folder; return it by its artifact's name.

    Args:
        context: the run.
        split: what was evaluated.
        result: of the evaluation.
        extremes: from ``predict_extremes``.
        findings: lines on what came out, beside those on the baselines.
        before: metrics before a training.
        more: further numbers by their names in the table, by its column.
    """
    cfg, folder = context.cfg, context.folder
    shown: dict[str, Mapping[str, float]] = {"before": before} if before else {}
    shown["after" if before else "model"] = result.metrics
    shown |= {name.replace("_", " "): metrics for name, metrics in result.baselines.items()}
    per_class = result.per_class
    labels = list(dict.fromkeys(label for values in per_class.values() for label in values))
    page = RunPage(
        split=f"{split}: {format_count(result.images, 'image')}, {format_count(result.objects, 'object')}",
        findings=[*findings, *(judge_baselines(result) if result.baselines else [])],
        columns=list(shown),
        rows=_list_rows([name for name in ROWS if name in SHOWN], shown) + _list_more(more or {}, list(shown)),
        note=NOTE,
        class_columns=list(per_class),
        classes=_list_rows(labels, per_class) if len(labels) > 1 else [],
        galleries=[(title, _save(context, title, scored)) for title, scored in extremes.items() if scored],
        curves=draw_curves(folder.metrics_csv),
        pictures_note=f"{PICTURES_NOTE} Each image is a row of {folder.images_of(split).name}.",
        legend=build_legend(list_categories(context)),
    )
    path = folder.path / "report.html"
    write_text(path, build_run_page(f"{cfg.stage.name}: {cfg.model.name} on {name_data(cfg)}", page))
    context.tracker.log_artifact(path)
    log_line(f"report: {path}")
    return {"report": path}


def _list_more(more: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> list[tuple[str, list[str]]]:
    names = list(dict.fromkeys(name for values in more.values() for name in values))
    return _list_rows([*names], {column: more.get(column, {}) for column in columns})


def _list_rows(names: Sequence[str], columns: Mapping[str, Mapping[str, float]]) -> list[tuple[str, list[str]]]:
    rows = [(name, [values.get(name, math.nan) for values in columns.values()]) for name in names]
    return [
        (name, [format_metric(name, value) for value in values])
        for name, values in rows
        if any(map(math.isfinite, values))
    ]


def _save(context: RunContext, title: str, scored: Sequence[Scored]) -> list[LinkedPicture]:
    """Write the pictures of some images, and shrink them for the page."""
    folder = context.folder.path / "images"
    taken: set[str] = set()
    classes = len(list_categories(context))
    pictures = []
    for entry in scored:
        sample = entry.kept.sample
        name = (sample.image or sample.annotations).image_id
        try:
            sheet = draw_kept(entry.kept, classes)
        except DataError as error:  # its embedding was stored, and its file is gone by now
            log_line(f"no picture: {error}", style="yellow")
            continue
        path = folder / f"{title.split(maxsplit=1)[0].lower()}_{name_picture(Path(name).stem, taken)}.png"
        save_picture(sheet, path)
        words = f"IoU {entry.iou:.3f}, {format_count(len(entry.kept.predicted), 'object')}"
        pictures.append(LinkedPicture(shrink(sheet, ""), f"images/{path.name}", name, words))
    return pictures


def draw_curves(metrics_csv: Path) -> str | None:
    """Draw the epochs as SVG; None where there are none."""
    figure = plot_epochs(metrics_csv)
    if figure is None:
        return None
    content = io.StringIO()
    figure.savefig(content, format="svg")
    return re.sub(r"^.*?(?=<svg)", "", content.getvalue(), flags=re.DOTALL)
