"""One image tested from file to metrics: read, encode, decode 12 boxes, pixel metrics and AP.

Ours by the loop of ``stage=test``, with nothing stored: torch, the exported IR, and INT8. Plain: the original in torch,
the same metrics by torch and faster-coco-eval.
"""

from typing import Any

from scripts.benchmarks import ours
from scripts.benchmarks.contender import Ready
from scripts.benchmarks.ir_decoder import write_export
from scripts.benchmarks.plain_data import PlainImages
from scripts.benchmarks.plain_model import build_plain_sam
from scripts.benchmarks.plain_test import PlainTester
from scripts.benchmarks.settings import Settings
from vpexp.data.batch import EvaluationSet
from vpexp.evaluation.evaluator import Evaluator
from vpexp.inference.exported import DECODER, ENCODER, ExportedModel
from vpexp.inference.load import load_predictor
from vpexp.inference.predictor import Predictor
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.stages.shared.dataset import load_configured_dataset

TOLERANCES = {"f1": 1e-3, "map": 2e-2, "images": 0.0}
CALIBRATION_IMAGES = 2
CALIBRATED = (
    "sam_tiny_vit",
    "sam_micro",
)  # ViT-B takes minutes to calibrate: its weights are INT8, activations are not


class Ours(Ready):
    """The evaluation loop, by torch."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        context = ours.open_context(settings)
        dataset = load_configured_dataset(context, ("test",))
        self.categories = dataset.categories
        self.images = EvaluationSet(dataset.splits["test"].images, context.settings.prompt)
        self.predictor = self.open_predictor()
        self.turns = 0

    def open_predictor(self) -> Predictor:
        """Open what is tested."""
        return TorchPredictor(ours.build_sam(ours.open_context(self.settings)))

    def turn(self) -> None:
        """Test one image."""
        self.turns += 1
        self._evaluate([self.turns % len(self.images)])

    def check(self) -> dict[str, Any]:
        """Test all images."""
        metrics = self._evaluate(range(len(self.images)))
        return {"f1": metrics["f1-score"], "map": metrics["map"]}

    def _evaluate(self, places: Any) -> dict[str, float]:
        evaluator = Evaluator(self.categories)
        for place in places:
            evaluator.update(self.predictor, self.images[place], 0.0)
        return evaluator.compute().metrics


class OursIr(Ours):
    """The same by OpenVINO."""

    def open_predictor(self) -> Predictor:
        """Open what ``stage=export`` writes."""
        return load_predictor(write_export(self.settings), threads=self.settings.threads)


class OursInt8(Ours):
    """The same by OpenVINO in INT8."""

    def open_predictor(self) -> Predictor:
        """Open what ``stage=ptq`` writes."""
        return load_predictor(_write_int8(self.settings), threads=self.settings.threads)

    def check(self) -> dict[str, Any]:
        """INT8 is not exact: it is only to test as many images."""
        super().check()
        return {"images": len(self.images)}


class Plain(Ready):
    """The plain implementation."""

    def __init__(self, settings: Settings) -> None:
        self.sam = build_plain_sam(settings.model, settings.weights)
        self.images = PlainImages(settings.data, "test", self.sam.image_size, stretch=self.sam.stretches)
        self.turns = 0

    def turn(self) -> None:
        """Test one image."""
        self.turns += 1
        self._evaluate([self.turns % len(self.images)])

    def check(self) -> dict[str, Any]:
        """Test all images."""
        return {**self._evaluate(range(len(self.images))), "images": len(self.images)}

    def _evaluate(self, places: Any) -> dict[str, float]:
        tester = PlainTester(self.sam, self.images)
        for place in places:
            tester.update(place)
        return tester.compute()


def _write_int8(settings: Settings) -> ExportedModel:
    from vpexp.config.schema import PtqConfig
    from vpexp.deploy.calibration import read_calibration_set
    from vpexp.deploy.quantize import INT8, WEIGHTS, quantize_model

    context = ours.open_context(settings)
    source = write_export(settings)
    calibration = read_calibration_set(
        load_configured_dataset(context, ("train",)).splits["train"].images,
        image_size=context.cfg.model.image_size,
        recipe=context.settings.prompt,
        count=CALIBRATION_IMAGES,
        seed=0,
    )
    method = INT8 if settings.model in CALIBRATED else WEIGHTS
    folder = settings.folder / f"int8_{settings.model}"
    return quantize_model(source, folder, calibration, PtqConfig(), {ENCODER: method, DECODER: method})


SIDES = {"ours": Ours, "ours_ir": OursIr, "ours_int8": OursInt8, "plain": Plain}
