"""Values that have the right type and yet make no sense."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vpexp.config.explain import explain, format_suggestion
from vpexp.config.schema import Config
from vpexp.errors import ConfigError

PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
QUANTIZED_PARTS = ("image_encoder", "decoder")
REGISTERING = ("export", "ptq", "pipeline")
REGISTERED_NAME = re.compile(r"\w[\w.-]*")  # what needs no quoting in models:/<name>/<version>
FORMATS = ("coco", "voc", "datumaro", "common_semantic_segmentation", "auto", "synthetic")
WRITTEN_FORMATS = FORMATS[:4]
PRECISIONS = ("32", "32-true", "16", "16-mixed", "bf16", "bf16-mixed")

CHOICES: dict[str, tuple[str, ...]] = {
    "stage.name": ("data", "train", "test", "export", "ptq", "predict", "demo", "pipeline", "models", "sync"),
    "stage.split": ("train", "val", "test"),
    "data.format": FORMATS,
    "data.instances": ("components", "classes"),
    "data.crowd": ("skip", "keep"),
    "data.synthetic.scene": ("vineyard", "shapes"),
    "prompt.type": ("box", "point", "both", "clicks"),
    "prompt.first": ("point", "box"),
    "loss.resolution": ("low", "input", "original"),
    "trainer.precision": PRECISIONS,
    "cache.precision": ("float16", "float32"),
    "cache.backend": ("auto", "torch", "openvino"),
    "export.format": ("openvino", "onnx", "sam"),
    "export.precision": ("FP32", "FP16"),
    "export.decoder_precision": ("FP32", "FP16"),
    "output.format": WRITTEN_FORMATS,
    "output.split": ("train", "val", "test"),
    "output.masks": ("polygon", "rle"),
    "output.images": ("copy", "symlink"),
    "output.overlap": ("keep", "cut"),
    "demo.refine": ("auto", "always", "never"),
    "sweep.direction": ("maximize", "minimize"),
    "ptq.method": ("int8", "weights"),
    "ptq.preset": ("mixed", "performance"),
    "ptq.model_type": ("transformer",),
    "ptq.overflow_fix": ("enable", "first_layer", "disable"),
    "ptq.bias_correction": ("fast", "full", "none"),
    "ptq.activation_range": ("minmax", "mean"),
}

LOWEST: dict[str, float] = {
    "stage.overlays": 0,
    "model.image_size": 16,
    "data.batch_size": 1,
    "data.num_workers": 0,
    "data.limit_images": 1,
    "data.synthetic.image_size": 16,
    "data.synthetic.train": 1,
    "data.synthetic.val": 0,
    "data.synthetic.test": 0,
    "prompt.jitter": 0,
    "prompt.test_jitter": 0,
    "prompt.max_per_image": 1,
    "prompt.clicks": 1,
    "prompt.box_share": 0,
    "prompt.train_rounds": 0,
    "loss.focal_weight": 0,
    "loss.dice_weight": 0,
    "loss.iou_weight": 0,
    "loss.focal_gamma": 0,
    "optimizer.weight_decay": 0,
    "scheduler.warmup_steps": 0,
    "trainer.max_epochs": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.gradient_clip_val": 0,
    "trainer.threads": 1,
    "ptq.subset_size": 1,
    "ptq.max_drop": 0,
    "predict.points_per_side": 1,
    "predict.min_score": 0,
    "predict.grid_min_score": 0,
    "predict.grid_overlap": 0,
    "output.max_iou": 0,
    "demo.port": 1,
    "demo.embeddings": 1,
    "seed": 0,
}


HIGHEST: dict[str, float] = {
    "model.image_size": 4096,
    "data.synthetic.image_size": 4096,
    "prompt.box_share": 1,
    "predict.points_per_side": 256,
    "predict.min_score": 1,
    "predict.grid_min_score": 1,
    "predict.grid_overlap": 1,
    "output.max_iou": 1,
    "demo.port": 65535,
}


def validate(cfg: DictConfig) -> None:
    """Check what types cannot: choices, ranges, and keys that contradict each other.

    Raises:
        ConfigError: the first thing that is wrong, as ``data.batch_size=0: must be at least 1``.
    """
    unresolved: Any = OmegaConf.to_container(cfg)
    for key in _find_unknown_keys(unresolved, Config):
        raise ConfigError(f"unknown key '{key}'{format_suggestion(key, _list_schema_keys(Config))}")
    for key, value in _flatten(unresolved).items():
        if value == MISSING:
            raise ConfigError(f"{key} is not given: write {key}=...")
    try:
        values = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, (), ())) from error
    for complaint in _find_complaints(_flatten(values), values):
        raise ConfigError(complaint)


def _find_complaints(flat: dict[str, Any], values: Any) -> Iterator[str]:
    for key, choices in CHOICES.items():
        value = flat.get(key)
        if value is not None and value not in choices:
            yield f"{key}={value}: must be one of {', '.join(choices)}{format_suggestion(str(value), choices)}"
    for key, lowest in LOWEST.items():
        value = flat.get(key)
        if value is None:
            continue
        if isinstance(value, bool | str | list):
            yield f"{key}={value}: must be a number"
        elif not value >= lowest:
            yield f"{key}={value}: must be at least {lowest}"
    for key, highest in HIGHEST.items():
        if isinstance(flat.get(key), int | float) and flat[key] > highest:
            yield f"{key}={flat[key]}: must be at most {highest}"
    yield from _check_data(flat)
    yield from _check_model(flat, values["model"]["freeze"])
    yield from _check_loss(flat)
    yield from _check_free_sections(flat, values["callbacks"])
    yield from _check_trainer(flat)
    yield from _check_cache(flat)
    yield from _check_pipeline(flat)
    yield from _check_ptq(values["ptq"]["parts"])
    yield from _check_predict(flat)
    yield from _check_demo(flat)
    yield from _check_register(flat)
    if flat["stage.name"] == "sync" and not flat["run"]:
        yield "run is not given: write run=... (the folder of a run, a pipeline or a sweep)"


def _check_data(flat: dict[str, Any]) -> Iterator[str]:
    if flat["data.format"] != "synthetic" and not flat["data.root"]:
        yield "data.root is not given: write data.root=... (the folder of the data set)"
    if flat["data.format"] == "synthetic" and "data.synthetic.scene" not in flat:
        yield "data.format=synthetic: says nothing about what to draw; choose data=synthetic"
    if not 0 < flat["data.val_fraction"] < 1:
        yield f"data.val_fraction={flat['data.val_fraction']}: must lie between 0 and 1"


def _check_model(flat: dict[str, Any], freeze: list[str]) -> Iterator[str]:
    for part in freeze:
        if part not in PARTS:
            yield f"model.freeze: there is no part '{part}' (there are: {', '.join(PARTS)}){format_suggestion(part, PARTS)}"
    if flat["stage.name"] in ("train", "pipeline") and set(freeze) == set(PARTS):
        yield "model.freeze: all parts are frozen, so there is nothing to learn"


def _check_loss(flat: dict[str, Any]) -> Iterator[str]:
    if not 0 <= flat["loss.focal_alpha"] <= 1:
        yield f"loss.focal_alpha={flat['loss.focal_alpha']}: must lie between 0 and 1"
    if not flat["loss.focal_weight"] + flat["loss.dice_weight"] > 0:
        yield "loss: focal_weight and dice_weight are both 0, so no mask is learnt"


def _check_free_sections(flat: dict[str, Any], callbacks: dict[str, Any]) -> Iterator[str]:
    lr = flat.get("optimizer.lr")
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not lr > 0:
        yield f"optimizer.lr={lr}: must be a number above 0"
    for section in ("optimizer", "scheduler"):
        if not isinstance(flat.get(f"{section}._target_"), str):
            yield f"{section}._target_ is not given: choose an option of the group, as {section}=..."
    for name, callback in callbacks.items():
        if callback is not None and not (isinstance(callback, dict) and "_target_" in callback):
            yield f"callbacks.{name}: needs a _target_, or null to switch it off"


def _check_trainer(flat: dict[str, Any]) -> Iterator[str]:
    if flat["trainer.deterministic"] not in (True, False, "warn"):
        yield f"trainer.deterministic={flat['trainer.deterministic']}: must be true, false or warn"
    for key in ("trainer.limit_train_batches", "trainer.limit_val_batches"):
        value = flat[key]
        if value is not None and (value <= 0 or (isinstance(value, float) and value > 1)):
            yield f"{key}={value}: must be a number of batches from 1, or a share up to 1.0"
    if flat["checkpoint"] is not None and flat["resume"] is not None:
        yield "checkpoint and resume are both given: checkpoint starts from weights, resume continues a run; keep one"
    if flat["resume"] is not None and flat["stage.name"] not in ("train", "pipeline"):
        yield (
            f"resume continues a training or a pipeline, and stage is {flat['stage.name']}: write stage=train, "
            "stage=pipeline, or checkpoint=..."
        )


def _check_cache(flat: dict[str, Any]) -> Iterator[str]:
    if not flat["cache.max_gb"] > 0:
        yield f"cache.max_gb={flat['cache.max_gb']}: must be above 0; cache=none switches the cache off"


def _check_pipeline(flat: dict[str, Any]) -> Iterator[str]:
    if flat["stage.name"] == "pipeline" and flat["export.format"] != "openvino":
        yield (
            f"export.format={flat['export.format']}: a pipeline always exports openvino, which is what is quantized; "
            "stage.onnx=true adds ONNX"
        )


def _check_predict(flat: dict[str, Any]) -> Iterator[str]:
    if flat["stage.name"] != "predict":
        return
    from_dataset = flat["prompts"] == "dataset"
    if not flat["source"] and not from_dataset:
        yield "source is not given: write source=... (an image, a folder, or a pattern)"
    if flat["source"] and from_dataset:
        yield f"source={flat['source']}: prompts=dataset takes the images of the data set: leave out source"
    if not flat["prompts"]:
        yield "prompts is not given: write prompts=... (a JSON file of boxes and points, grid, or dataset)"
    if flat["output.folder"] and not flat["output.format"]:
        yield f"output.folder={flat['output.folder']}: say in which format: output.format={'|'.join(WRITTEN_FORMATS)}"


def _check_demo(flat: dict[str, Any]) -> Iterator[str]:
    labels = flat["demo.labels"]
    if flat["stage.name"] == "demo" and not flat["source"]:
        yield "source is not given: write source=... (an image, a folder, or a pattern)"
    if not labels or len(set(labels)) < len(labels) or not all(label.strip() for label in labels):
        yield f"demo.labels={labels}: give one name at least, each once"


def _check_register(flat: dict[str, Any]) -> Iterator[str]:
    name = flat["tracking.register"]
    if name is None:
        return
    if not REGISTERED_NAME.fullmatch(name):
        yield f"tracking.register={name}: a name is made of letters, digits, _, - and ."
    elif not flat["tracking.enabled"]:
        yield f"tracking.register={name}: the registry is MLflow's, and tracking is off: leave out tracking=none"
    elif flat["stage.name"] not in REGISTERING:
        yield (
            f"tracking.register={name}: stage={flat['stage.name']} makes no model that can be served; "
            f"{', '.join(REGISTERING)} do"
        )
    elif flat["stage.name"] == "export" and flat["export.format"] == "sam":
        yield f"tracking.register={name}: export.format=sam is weights alone; openvino and onnx can be served"


def _check_ptq(parts: list[str]) -> Iterator[str]:
    if not parts:
        yield "ptq.parts is empty, so there is nothing to quantize"
    for part in parts:
        if part not in QUANTIZED_PARTS:
            known = ", ".join(QUANTIZED_PARTS)
            yield f"ptq.parts: there is no part '{part}' (there are: {known}){format_suggestion(part, QUANTIZED_PARTS)}"


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _get_sections(schema: Any) -> dict[str, Any]:
    """The fields of a dataclass that are dataclasses themselves, optional ones included."""
    sections = {}
    for name, hint in get_type_hints(schema).items():
        for kind in (hint, *get_args(hint)):
            if is_dataclass(kind):
                sections[name] = kind
    return sections


def _find_unknown_keys(values: Any, schema: Any, prefix: str = "") -> Iterator[str]:
    """Keys that got past the schema: with ``+`` on the command line a key can be added anywhere."""
    known, sections = {field.name for field in fields(schema)}, _get_sections(schema)
    for key, value in values.items():
        if key not in known:
            yield f"{prefix}{key}"
        elif key in sections and isinstance(value, Mapping):
            yield from _find_unknown_keys(value, sections[key], f"{prefix}{key}.")


def _list_schema_keys(schema: Any, prefix: str = "") -> Iterator[str]:
    sections = _get_sections(schema)
    for field in fields(schema):
        yield f"{prefix}{field.name}"
        if field.name in sections:
            yield from _list_schema_keys(sections[field.name], f"{prefix}{field.name}.")
