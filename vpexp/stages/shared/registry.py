"""What a stage tells MLflow of the model that it made: a model for later runs to take up, and a version of a name."""

from collections.abc import Mapping
from pathlib import Path

from vpexp.config import load_config
from vpexp.config.saved import name_data
from vpexp.console import log_line
from vpexp.inference.exported import ExportedModel, read_metadata
from vpexp.runfolder import RunFolder, find_maker
from vpexp.stages.shared.context import RunContext
from vpexp.tracking.models import PACKAGE

FORMATS = {"openvino": "OpenVINO", "onnx": "ONNX"}
FINE_TUNED = "fine-tuned"
SCORES = ("f1-score", "mean_iou", "map")
TRAINED_SCORES = tuple(f"{split}/{name}" for split in ("val", "test") for name in SCORES)
TORCH = "torch"


def log_checkpoint(context: RunContext, file: Path) -> None:
    """Log the checkpoint of the best epoch as the model of this run, and upload it."""
    context.tracker.log_artifact(file, context.folder.checkpoints.name)
    context.tracker.log_model(
        f"{context.cfg.model.name} {FINE_TUNED}",
        "checkpoint",
        _describe(context) | {"format": "checkpoint", "precision": "FP32", "file": str(file)},
    )


def log_weights(context: RunContext, file: Path) -> None:
    """Log weights in the official layout as the model of this run, and upload them."""
    context.tracker.log_artifact(file, "model")
    context.tracker.log_model(
        f"{context.cfg.model.name} official weights",
        "weights",
        _describe(context) | {"format": "sam", "precision": context.cfg.export.precision, "file": str(file)},
    )


def log_exported(context: RunContext, model: ExportedModel) -> None:
    """Log an exported or quantized model as the model of this run, and upload its files."""
    for file in model.files:
        context.tracker.log_artifact(file, "model")
    precision = read_metadata(model).precision
    context.tracker.log_model(
        f"{context.cfg.model.name} {FORMATS[model.format]} {precision}",
        model.format,
        _describe(context) | {"format": model.format, "precision": precision, "file": str(model.decoder)},
    )


def log_target(context: RunContext, folder: Path) -> None:
    """Log what was written for another tool as the model of this run, and upload its folder."""
    context.tracker.log_artifact(folder, "model")
    settings = context.cfg.export
    context.tracker.log_model(
        f"{context.cfg.model.name} for {settings.target}",
        settings.target,
        _describe(context) | {"format": settings.target, "precision": settings.precision, "file": str(folder)},
    )


def register_exported(
    context: RunContext, model: ExportedModel, scores: Mapping[str, float], maker: RunFolder | None = None
) -> None:
    """Register an exported model under the name that ``tracking.register`` gives, if it gives one.

    Args:
        context: the run.
        model: what is registered; it passed the check of ``stage=export``.
        scores: what is known of its quality, by name.
        maker: the run that made it; None: this one.
    """
    name = context.cfg.tracking.register
    if name is None:
        return
    from vpexp.deploy.package import write_mlflow_model

    precision = read_metadata(model).precision
    package = write_mlflow_model(model, context.folder.path / PACKAGE)
    numbers = {key: f"{value:z.4f}" for key, value in scores.items() if value == value}  # noqa: PLR0124 (NaN is not)
    about = f"{context.cfg.model.name} on {name_data(context.cfg)}, {FORMATS[model.format]} {precision}"
    known = "".join(f", {key} {value}" for key, value in numbers.items() if key.endswith(SCORES[0]))
    context.tracker.register_model(
        name,
        package,
        maker=(maker or context.folder).path,
        tags=_describe(context) | {"format": model.format, "precision": precision} | numbers,
        description=f"{about}{known}; written by stage={context.cfg.stage.name}",
    )
    log_line(f"to be served by MLflow as models:/{name}: {package}")


def read_trained_scores(checkpoint: str | None) -> dict[str, float]:
    """Read what the training measured that a checkpoint, or a model exported from it, goes back to.

    Returns:
        Numbers by name, ``torch/val/f1-score``; none where no training is found.
    """
    while checkpoint is not None:
        maker = find_maker(Path(checkpoint))
        if maker is None:
            return {}
        if maker.read_run_json().get("best_checkpoint"):
            return _read_scores(maker)
        checkpoint = load_config(maker.config).checkpoint if maker.config.is_file() else None
    return {}


def _read_scores(folder: RunFolder) -> dict[str, float]:
    if not folder.metrics_json.is_file():
        return {}
    metrics = folder.read_metrics_json()["metrics"]
    return {f"{TORCH}/{name}": metrics[name] for name in TRAINED_SCORES if metrics.get(name) is not None}


def _describe(context: RunContext) -> dict[str, str]:
    cfg = context.cfg
    return {"stage": cfg.stage.name, "model": cfg.model.name, "data": name_data(cfg)}
