"""``stage=export``: a trained model as OpenVINO IR, ONNX, weights in the official layout, or in the form of another tool."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vpexp.config.schema import DataConfig, PromptConfig, SyntheticConfig
from vpexp.console import format_count, log_line
from vpexp.data.annotations import AnnotatedDataset
from vpexp.data.batch import EvaluationSample, EvaluationSet
from vpexp.data.dataset import load_dataset
from vpexp.data.prompts import Prompts, build_evaluation_prompts
from vpexp.deploy.graph import ExportInfo
from vpexp.deploy.parity import (
    InstanceParity,
    Parity,
    check_instance_parity,
    check_parity,
    measure_instance_parity,
    measure_parity,
)
from vpexp.errors import VpexpError
from vpexp.inference.exported import CLASSIFIER, DECODER, ENCODER, PROMPTER, ExportedModel
from vpexp.inference.load import load_predictor
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.models.sam import Sam
from vpexp.models.weights import compute_state_hash, write_official
from vpexp.registry import VPEXP
from vpexp.stages.shared.context import RunContext, StageResult
from vpexp.stages.shared.dataset import build_tiling, read_configured_dataset, tile_dataset
from vpexp.stages.shared.model import StageModel, load_stage_model
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
    if model.instances is not None:
        model.predictor.instances = model.instances.build_model(torch.device("cpu"))
        if cfg.export.format == "sam" or cfg.export.target != VPEXP:
            log_line("left out: what finds objects without prompts; it needs export.target=vpexp as openvino or onnx")
    # What is written lies aside until it has passed the check.
    draft = context.folder.path / ".draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        if cfg.export.format == "sam":
            return _export_weights(context, sam, draft)
        info = _describe(context, model, sam)
        if cfg.export.target != VPEXP:
            return _export_target(context, sam, draft, info)
        written = _write(context, sam, draft, info)
        parity, of_instances = _check(context, model, written)
        exported = written.move_to(context.folder.path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    log_line(f"{NAMES[exported.format]}, {exported.size_mb:.1f} MB: {exported.folder}")
    log_exported(context, exported)
    register_exported(context, exported, read_trained_scores(cfg.checkpoint))
    metrics = _list_metrics(parity, exported.size_mb, started, of_instances)
    return StageResult(metrics, exported.parts, context.folder.path)


def _describe(context: RunContext, model: StageModel, sam: Sam) -> ExportInfo:
    """Describe what is exported."""
    cfg = context.cfg
    parts = model.instances if cfg.export.target == VPEXP else None
    modules = [sam] if parts is None else [sam, parts.prompter, *([parts.classifier] if parts.classifier else [])]
    return ExportInfo(
        model_name=cfg.model.name,
        image_size=sam.image_size,
        labels=model.categories,
        source_hash=compute_state_hash(sam if parts is None else torch.nn.ModuleList(modules)),
        multimask=cfg.prompt.multimask,
        tile=cfg.data.tile,
        tile_overlap=cfg.data.tile_overlap,
        instances=parts,
    )


def _list_metrics(
    parity: Parity, size_mb: float, started: float, of_instances: InstanceParity | None = None
) -> dict[str, float]:
    metrics = {
        "export/size_mb": size_mb,
        "export/flipped_per_10000": parity.flipped * 1e4,
        "export/logits_difference": parity.logits,
        "export/seconds": time.perf_counter() - started,
    }
    if of_instances is not None:
        metrics |= {
            "export/prompter_boxes_px": of_instances.boxes_px,
            "export/prompter_scores": of_instances.scores,
            "export/classifier_probabilities": of_instances.probabilities,
        }
    return metrics


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
    if info.instances is not None:  # of the classifier's few weights half would save nothing
        precisions |= {PROMPTER: settings.precision} | ({CLASSIFIER: "FP32"} if info.instances.classifier else {})
    described = ", ".join(f"{part.replace('_', ' ')} {precision}" for part, precision in precisions.items())
    log_line(f"writing {NAMES[settings.format]}: {described}")
    if settings.format == "onnx":
        from vpexp.deploy.onnx_format import write_onnx

        return write_onnx(sam, folder, info, precisions=precisions)
    from vpexp.deploy.openvino_format import write_openvino

    return write_openvino(sam, folder, info, precisions=precisions)


def _check(context: RunContext, model: StageModel, written: ExportedModel) -> tuple[Parity, InstanceParity | None]:
    """Run both forms on an image; ExportError where they differ."""
    trial = find_trial_image(context)
    predictor = load_predictor(written, threads=context.cfg.trainer.threads)
    parity = measure_parity(model.predictor, predictor, trial.image_HW3, trial.prompts)
    what, precision = NAMES[written.format], context.cfg.export.precision
    _judge(context, parity, trial, what)
    if model.instances is None:
        return parity, None
    of_instances = measure_instance_parity(
        model.instances.prompter,
        model.predictor,
        predictor,
        trial.image_HW3,
        prompts=trial.prompts[0],
        precision=precision,
    )
    check_instance_parity(of_instances, precision, what)
    log_line(
        f"finds {format_count(of_instances.boxes, 'box', 'boxes')} there as the trained model does: sides lie at most "
        f"{of_instances.boxes_px:.2g} pixels elsewhere, scores differ by {of_instances.scores:.1e}, "
        f"probabilities of classes by {of_instances.probabilities:.1e}"
    )
    return parity, of_instances


def _judge(context: RunContext, parity: Parity, trial: "TrialImage", what: str) -> None:
    settings = context.cfg.export
    precision = "FP16" if "FP16" in (settings.precision, settings.decoder_precision) else "FP32"
    check_parity(parity, precision, what)
    log_line(
        f"checked against the trained model with {parity.prompts} prompts on {trial.name}: of 10,000 mask pixels "
        f"{parity.flipped * 1e4:.2f} flip; logits differ by {parity.logits:.1e} standard deviations at most"
    )


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
