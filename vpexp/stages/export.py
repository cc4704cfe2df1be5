"""``stage=export``: a trained model as OpenVINO IR, ONNX, weights in the official layout, or in the form of another tool."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vpexp.config.schema import DataConfig, PromptConfig, SyntheticConfig
from vpexp.console import log_line
from vpexp.data.annotations import AnnotatedDataset
from vpexp.data.batch import EvaluationSample, EvaluationSet
from vpexp.data.dataset import load_dataset
from vpexp.data.prompts import Prompts, build_evaluation_prompts
from vpexp.deploy.graph import ExportInfo
from vpexp.deploy.parity import Parity, check_parity, measure_parity
from vpexp.errors import VpexpError
from vpexp.inference.exported import DECODER, ENCODER, ExportedModel
from vpexp.inference.load import load_predictor
from vpexp.inference.predictor import Predictor
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.models.sam import Sam
from vpexp.models.weights import compute_state_hash, write_official
from vpexp.registry import VPEXP
from vpexp.stages.shared.context import RunContext, StageResult
from vpexp.stages.shared.dataset import build_tiling, read_configured_dataset, tile_dataset
from vpexp.stages.shared.model import load_stage_model
from vpexp.stages.shared.registry import log_exported, log_target, log_weights, read_trained_scores, register_exported
from vpexp.synthetic.dataset import write_synthetic_dataset

NAMES = {"openvino": "OpenVINO IR", "onnx": "ONNX model"}
MOST_PROMPTS = 16


def run(context: RunContext) -> StageResult:
    """Export what was trained, and check that it still answers the same."""
    cfg = context.cfg
    started = time.perf_counter()
    model = load_stage_model(context.cfg, "exporting")
    assert isinstance(model.predictor, TorchPredictor), "exported models were refused before"
    sam = model.predictor.sam.cpu()
    # What is written lies aside until it has passed the check.
    draft = context.folder.path / ".draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        if cfg.export.format == "sam":
            return _export_weights(context, sam, draft)
        info = ExportInfo(
            model_name=cfg.model.name,
            image_size=sam.image_size,
            labels=model.categories,
            source_hash=compute_state_hash(sam),
            multimask=cfg.prompt.multimask,
            tile=cfg.data.tile,
            tile_overlap=cfg.data.tile_overlap,
        )
        if cfg.export.target != VPEXP:
            return _export_target(context, sam, draft, info)
        written = _write(context, sam, draft, info)
        parity = _check(context, model.predictor, written)
        exported = _publish(written, context.folder.path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    log_line(f"{NAMES[exported.format]}, {exported.size_mb:.1f} MB: {exported.folder}")
    log_exported(context, exported)
    register_exported(context, exported, read_trained_scores(cfg.checkpoint))
    metrics = _list_metrics(parity, exported.size_mb, started)
    return StageResult(metrics, {ENCODER: exported.encoder, DECODER: exported.decoder}, context.folder.path)


def _list_metrics(parity: Parity, size_mb: float, started: float) -> dict[str, float]:
    return {
        "export/size_mb": size_mb,
        "export/flipped_per_10000": parity.flipped * 1e4,
        "export/logits_difference": parity.logits,
        "export/seconds": time.perf_counter() - started,
    }


def _export_weights(context: RunContext, sam: Sam, draft: Path) -> StageResult:
    path = write_official(sam, draft, halve=context.cfg.export.precision == "FP16")
    final = context.folder.path / path.name
    path.replace(final)
    log_line(f"weights in the official layout: {final}")
    log_weights(context, final)
    return StageResult({"export/size_mb": final.stat().st_size / 1e6}, {"weights": final}, context.folder.path)


def _export_target(context: RunContext, sam: Sam, draft: Path, info: ExportInfo) -> StageResult:
    """Write what another tool runs, and check it, into a folder of the tool's name."""
    from vpexp.deploy.targets.check import measure_target
    from vpexp.deploy.targets.write import TARGETS, write_target

    settings, started = context.settings.export, time.perf_counter()
    log_line(f"writing {settings.target}: image encoder {settings.precision}, decoder {settings.decoder_precision}")
    written = write_target(sam, draft, info, settings)
    trial = find_trial_image(context)
    parity = measure_target(written, trial.image_HW3, trial.prompts)
    _judge(context, parity, trial, f"{settings.target} form of the model")
    final = context.folder.path / written.folder.name
    files = {
        part: final / file.relative_to(written.folder)
        for part, file in ((ENCODER, written.encoder), (DECODER, written.decoder))
    }
    written.folder.replace(final)
    size_mb = sum(file.stat().st_size for file in final.rglob("*") if file.is_file()) / 1e6
    log_line(f"{settings.target}, {size_mb:.1f} MB: {final}")
    log_line(f"next: {TARGETS[settings.target].then}")
    log_target(context, final)
    return StageResult(_list_metrics(parity, size_mb, started), files, context.folder.path)


def _write(context: RunContext, sam: Sam, folder: Path, info: ExportInfo) -> ExportedModel:
    settings = context.cfg.export
    precisions = {ENCODER: settings.precision, DECODER: settings.decoder_precision}
    log_line(f"writing {NAMES[settings.format]}: image encoder {precisions[ENCODER]}, decoder {precisions[DECODER]}")
    if settings.format == "onnx":
        from vpexp.deploy.onnx_format import write_onnx

        return write_onnx(sam, folder, info, precisions=precisions)
    from vpexp.deploy.openvino_format import write_openvino

    return write_openvino(sam, folder, info, precisions=precisions)


def _check(context: RunContext, trained: Predictor, written: ExportedModel) -> Parity:
    """Run both forms on an image; ExportError where they differ."""
    trial = find_trial_image(context)
    predictor = load_predictor(written, threads=context.cfg.trainer.threads)
    parity = measure_parity(trained, predictor, trial.image_HW3, trial.prompts)
    _judge(context, parity, trial, NAMES[written.format])
    return parity


def _judge(context: RunContext, parity: Parity, trial: "TrialImage", what: str) -> None:
    settings = context.cfg.export
    precision = "FP16" if "FP16" in (settings.precision, settings.decoder_precision) else "FP32"
    check_parity(parity, precision, what)
    log_line(
        f"checked against the trained model with {parity.prompts} prompts on {trial.name}: of 10,000 mask pixels "
        f"{parity.flipped * 1e4:.2f} flip; logits differ by {parity.logits:.1e} standard deviations at most"
    )


def _publish(written: ExportedModel, folder: Path) -> ExportedModel:
    for file in written.files:
        file.replace(folder / file.name)
    return ExportedModel(folder / written.encoder.name, folder / written.decoder.name, written.format)


@dataclass(frozen=True, slots=True)
class TrialImage:
    """An image, what it is, and prompts on it.

    Attributes:
        name: for messages.
        image_HW3: RGB uint8.
        prompts: one set of boxes and one of points, pixels of the image, at most 16 each.
    """

    name: str
    image_HW3: NDArray[np.uint8]
    prompts: list[Prompts]


def find_trial_image(context: RunContext) -> TrialImage:
    """Take an image of the configured data set; where that is not at hand, a drawn one."""
    try:
        dataset, tiling = read_configured_dataset(context, ("val",)), build_tiling(context.settings.data)
        found = _take_first(tile_dataset(dataset, tiling) if tiling else dataset, "val")
    except VpexpError:
        found = None  # a checkpoint may be exported where its data are not
    if found is not None:
        return found
    root = write_synthetic_dataset(context.cache_dir / "synthetic", SyntheticConfig(train=1, val=1, test=1))
    drawn = _take_first(load_dataset(DataConfig(format="coco", root=str(root)), splits=("val",)), "val")
    assert drawn is not None
    return drawn


def _take_first(dataset: AnnotatedDataset, split: str) -> TrialImage | None:
    images = EvaluationSet(dataset.splits[split].images, PromptConfig())
    for index in range(len(images)):
        sample = images[index]
        if isinstance(sample, EvaluationSample) and sample.tiles:
            sample = sample.tiles[0]
        if isinstance(sample, EvaluationSample) and len(sample.annotations) and sample.image_HW3 is not None:
            image, chosen = sample.annotations, slice(0, MOST_PROMPTS)
            prompts = [build_evaluation_prompts(image, PromptConfig(kind)).select(chosen) for kind in ("box", "point")]
            return TrialImage(image.image_id, sample.image_HW3, prompts)
    return None
