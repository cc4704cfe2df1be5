"""``stage=ptq``: what was exported last, in INT8."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vpexp.console import console, log_line
from vpexp.data.annotations import AnnotatedDataset
from vpexp.deploy.benchmark import Cost, build_gain_table, measure_costs
from vpexp.deploy.calibration import CalibrationSet, read_calibration_set
from vpexp.deploy.quantize import (
    INT8,
    KEEP,
    WEIGHTS,
    ControlledModel,
    Trial,
    add_prompter,
    quantize_model,
    quantize_within,
)
from vpexp.errors import CheckpointError, ConfigError
from vpexp.inference.exported import (
    DECODER,
    ENCODER,
    PROMPTER,
    ExportedModel,
    ModelMetadata,
    find_exported,
    read_metadata,
)
from vpexp.inference.load import load_predictor
from vpexp.stages.shared.context import RunContext, StageResult
from vpexp.stages.shared.dataset import load_configured_dataset
from vpexp.stages.shared.evaluate import assess, print_unreadable
from vpexp.stages.shared.registry import log_exported, read_trained_scores, register_exported

FEW_IMAGES, ENOUGH_IMAGES = 10, 32
WORDS = {INT8: "INT8", WEIGHTS: "INT8, weights only", KEEP: "as it was exported"}


def run(context: RunContext) -> StageResult:
    """Quantize an exported model, and say what that gained."""
    cfg = context.cfg
    started = time.perf_counter()
    source = _find_source(cfg.checkpoint)
    metadata = read_metadata(source)
    dataset = load_configured_dataset(context, ("train",) if cfg.ptq.max_drop is None else ("train", "val"))
    calibration = _read_calibration_set(context, dataset, metadata)
    # What is written lies aside until it is whole.
    draft = context.folder.path / ".draft"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        made = _quantize(context, source, draft, calibration, dataset)
        model = made.model.move_to(context.folder.path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    costs = _tell_gain(context, source, metadata, model, calibration)
    metrics = _list_metrics(made, *costs) | {"ptq/seconds": time.perf_counter() - started}
    log_exported(context, model)
    scores = {name: value for name, value in metrics.items() if name.endswith("f1-score")}
    register_exported(context, model, read_trained_scores(cfg.checkpoint) | scores)
    details = _describe(made, calibration)
    context.folder.update_run_json(quantization=details)
    return StageResult(metrics, model.parts, context.folder.path, {"quantization": details})


def _find_source(checkpoint: str | None) -> ExportedModel:
    if checkpoint is None:
        raise ConfigError("stage=ptq needs what stage=export wrote: checkpoint=latest, its folder or one of its files")
    model = find_exported(Path(checkpoint))
    if model.is_quantized:
        raise CheckpointError(f"{model.decoder} is already quantized: give checkpoint= what stage=export wrote")
    if model.format != "openvino":
        raise CheckpointError(
            f"{model.decoder} is ONNX, and OpenVINO IR is quantized: stage=export export.format=openvino first"
        )
    return model


def _read_calibration_set(context: RunContext, dataset: AnnotatedDataset, metadata: ModelMetadata) -> CalibrationSet:
    cfg = context.cfg
    calibration = read_calibration_set(
        dataset.splits["train"].images,
        image_size=metadata.image_size,
        recipe=context.settings.prompt,
        count=cfg.ptq.subset_size,
        seed=cfg.seed,
        resize=metadata.interface.resize,
    )
    print_unreadable("train", calibration.unreadable)
    count = len(calibration)
    if count < FEW_IMAGES:
        what = "image" if count == 1 else "images"
        log_line(f"{count} {what} to calibrate on; {ENOUGH_IMAGES} or more are better", style="yellow")
    return calibration


def _quantize(
    context: RunContext, source: ExportedModel, draft: Path, calibration: CalibrationSet, dataset: AnnotatedDataset
) -> ControlledModel:
    """Quantize as configured; with ``ptq.max_drop`` as much of it as accuracy on val allows."""
    settings = context.settings.ptq
    planned = {
        part: settings.method if part in settings.parts else KEEP
        for part in (ENCODER, DECODER, PROMPTER)
        if part in source.parts
    }
    log_line(f"quantizing on {len(calibration)} training images: {_describe_methods(planned)}")
    methods = {part: planned[part] for part in (ENCODER, DECODER)}

    def build(chosen: Mapping[str, str]) -> ExportedModel:
        folder = draft / "_".join(chosen.values())
        return quantize_model(source, folder, calibration, settings, chosen)

    if settings.max_drop is None:
        controlled = ControlledModel(build(methods), methods)
    else:
        controlled = quantize_within(
            source,
            build,
            partial(_measure, context, dataset),
            methods=methods,
            max_drop=settings.max_drop,
            report=_print_trial,
        )
        log_line(
            f"kept, for f1-score on val to lose no more than {settings.max_drop:g}: {_describe_methods(controlled.methods)}"
        )
    if PROMPTER not in planned:
        return controlled
    model = add_prompter(source, controlled.model, calibration, settings, planned[PROMPTER])
    return replace(controlled, model=model, methods={**controlled.methods, PROMPTER: planned[PROMPTER]})


def _measure(context: RunContext, dataset: AnnotatedDataset, model: ExportedModel) -> float:
    predictor = load_predictor(model, threads=context.cfg.trainer.threads)
    return assess(context, predictor, dataset, "val", description="measuring on val").metrics["f1-score"]


def _print_trial(trial: Trial) -> None:
    log_line(
        f"f1-score {trial.score:.4f} on val, {-trial.drop:+z.4f} against before: {_describe_methods(trial.methods)}"
    )


def _describe_methods(methods: Mapping[str, str]) -> str:
    return "; ".join(f"{part.replace('_', ' ')} {WORDS[method]}" for part, method in methods.items())


def _tell_gain(
    context: RunContext,
    source: ExportedModel,
    metadata: ModelMetadata,
    model: ExportedModel,
    calibration: CalibrationSet,
) -> tuple[Cost, Cost]:
    """Measure and print sizes and times before and after."""
    before, after = (load_predictor(some, threads=context.cfg.trainer.threads) for some in (source, model))
    image = calibration.images[0]
    costs = measure_costs((source, model), (before, after), image)
    names = (metadata.precision, read_metadata(model).precision)
    console.print(build_gain_table(*costs, names, prompts=len(image.calls[0])))
    log_line(f"{model.size_mb:.1f} MB instead of {source.size_mb:.1f}: {model.folder}")
    return costs


def _list_metrics(made: ControlledModel, before: Cost, after: Cost) -> dict[str, float]:
    metrics = {
        "fp32/size_mb": before.total_mb,
        "fp32/encoder_ms": before.encoder_ms,
        "fp32/decoder_ms": before.decoder_ms,
        "int8/size_mb": after.total_mb,
        "int8/encoder_ms": after.encoder_ms,
        "int8/decoder_ms": after.decoder_ms,
    }
    if made.reference is not None and made.score is not None:
        metrics |= {"fp32/val/f1-score": made.reference, "int8/val/f1-score": made.score}
    return metrics


def _describe(made: ControlledModel, calibration: CalibrationSet) -> dict[str, Any]:
    """Describe for ``run.json`` what was done to each part, and what was tried on the way."""
    trials = [{"methods": trial.methods, "f1-score": trial.score, "drop": trial.drop} for trial in made.trials]
    return {
        "methods": dict(made.methods),
        "calibration_images": len(calibration),
        "unreadable": calibration.unreadable,
        "trials": trials,
    }
