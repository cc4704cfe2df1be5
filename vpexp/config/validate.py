"""Values that have the right type and yet make no sense."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vpexp.config.explain import explain, format_suggestion
from vpexp.config.schema import PARTS, TUNE_PATTERN, Config
from vpexp.errors import ConfigError
from vpexp.registry import FORMATS, STAGES, VPEXP, get_stage

PHOTO = "photo"  # of data.augment
REGISTERED_NAME = re.compile(r"\w[\w.-]*")  # what needs no quoting in models:/<name>/<version>


def validate(cfg: DictConfig) -> None:
    """Check what types cannot: choices, ranges, and keys that contradict each other.

    Raises:
        ConfigError: the first thing that is wrong, as ``data.batch_size=0: must be at least 1``.
    """
    unresolved: Any = OmegaConf.to_container(cfg)
    for key in _find_unknown_keys(unresolved, Config):
        raise ConfigError(f"unknown key '{key}'{format_suggestion(key, dict(_list_settings(Config)))}")
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
    for key, setting in _list_settings(Config):
        is_own = key in ("stage.name", "data.format") and flat.get(f"{key.partition('.')[0]}._target_")
        yield from () if is_own else _check_setting(key, flat.get(key), setting.metadata)
    yield from _check_data(flat)
    yield from _check_model(flat, values["model"]["freeze"], values["adapter"]["targets"])
    yield from _check_loss(flat)
    yield from _check_free_sections(flat, {name: values[name] for name in ("callbacks", "metrics")})
    yield from _check_trainer(flat)
    yield from _check_auto(flat)
    yield from _check_cache(flat, values["data"]["augment"], values["model"]["freeze"])
    yield from _check_pipeline(flat)
    yield from _check_target(flat)
    if not values["ptq"]["parts"]:
        yield "ptq.parts is empty, so there is nothing to quantize"
    yield from _check_predict(flat)
    yield from _check_demo(flat)
    yield from _check_register(flat)
    if flat["stage.name"] == "sync" and not flat["run"]:
        yield "run is not given: write run=... (the folder of a run, a pipeline or a sweep)"


def _check_setting(key: str, value: Any, rule: Mapping[str, Any]) -> Iterator[str]:
    """Check a value against what the schema declares of its key; null stands for no choice and no number."""
    if value is None or not rule:
        return
    choices, lowest, highest = rule["choices"], rule["lowest"], rule["highest"]
    if choices and isinstance(value, list):
        for part in value:
            if part not in choices:
                known = ", ".join(choices)
                yield f"{key}: there is no part '{part}' (there are: {known}){format_suggestion(part, choices)}"
    elif choices and value not in choices:
        yield f"{key}={value}: must be one of {', '.join(choices)}{format_suggestion(str(value), choices)}"
    if lowest is not None and not value >= lowest:
        yield f"{key}={value}: must be at least {lowest}"
    if highest is not None and value > highest:
        yield f"{key}={value}: must be at most {highest}"


def _check_data(flat: dict[str, Any]) -> Iterator[str]:
    if flat["data.format"] != "synthetic" and not flat["data.root"]:
        yield "data.root is not given: write data.root=... (the folder of the data set)"
    if flat["data.format"] == "synthetic" and "data.synthetic.scene" not in flat:
        yield "data.format=synthetic: says nothing about what to draw; choose data=synthetic"
    if not 0 < flat["data.val_fraction"] < 1:
        yield f"data.val_fraction={flat['data.val_fraction']}: must lie between 0 and 1"


def _check_model(flat: dict[str, Any], freeze: list[str], targets: list[str]) -> Iterator[str]:
    tune, kind = flat["model.tune"], flat["adapter.kind"]
    if not TUNE_PATTERN.fullmatch(tune):
        yield f"model.tune={tune}: must be none, neck, last:<k> as last:2, or full"
    if flat["stage.name"] in ("train", "pipeline") and set(freeze) == set(PARTS) and (tune, kind) == ("none", "none"):
        yield "model.freeze: all parts are frozen, so there is nothing to learn"
    if kind == "lora" and tune == "neck":
        yield "adapter=lora changes blocks, and model.tune=neck names none: write model.tune=last:<k>, or leave it out"
    if kind == "lora" and not targets:
        yield "adapter.targets is empty, so LoRA has nothing to change"
    if flat["trainer.gradient_checkpointing"] and (tune, kind) == ("none", "none") and "image_encoder" in freeze:
        yield "trainer.gradient_checkpointing saves what an image encoder that learns needs, and this one does not: leave it out"


def _check_loss(flat: dict[str, Any]) -> Iterator[str]:
    if not 0 <= flat["loss.focal_alpha"] <= 1:
        yield f"loss.focal_alpha={flat['loss.focal_alpha']}: must lie between 0 and 1"
    if not flat["loss.focal_weight"] + flat["loss.dice_weight"] > 0:
        yield "loss: focal_weight and dice_weight are both 0, so no mask is learnt"


def _check_free_sections(flat: dict[str, Any], built: dict[str, dict[str, Any]]) -> Iterator[str]:
    lr = flat.get("optimizer.lr")
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not lr > 0:
        yield f"optimizer.lr={lr}: must be a number above 0"
    for key in ("optimizer.weight_decay", "scheduler.warmup_steps"):
        value = flat.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            yield f"{key}={value}: must be a number"
        elif value is not None and not value >= 0:
            yield f"{key}={value}: must be at least 0"
    yield from _check_rates(flat)
    for section in ("optimizer", "scheduler"):
        if not isinstance(flat.get(f"{section}._target_"), str):
            yield f"{section}._target_ is not given: choose an option of the group, as {section}=..."
    for section, entries in built.items():
        for name, entry in entries.items():
            if entry is not None and not (isinstance(entry, dict) and "_target_" in entry):
                yield f"{section}.{name}: needs a _target_, or null to switch it off"


def _check_rates(flat: dict[str, Any]) -> Iterator[str]:
    for key, highest in (("optimizer.lr_encoder", math.inf), ("optimizer.layer_decay", 1)):
        value = flat.get(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (is_number and 0 < value <= highest):
            yield f"{key}={value}: must be a number above 0" + (f" and at most {highest}" if highest == 1 else "")


def _check_trainer(flat: dict[str, Any]) -> Iterator[str]:
    share = flat["trainer.blend"]
    if not (
        share in (None, "auto") or (isinstance(share, int | float) and not isinstance(share, bool) and 0 < share <= 1)
    ):
        yield f"trainer.blend={share}: must be auto, null, or the share of what is learnt, above 0 and up to 1"
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


def _check_auto(flat: dict[str, Any]) -> Iterator[str]:
    stage = flat["stage.name"]
    if flat["prompt.type"] == "auto" and stage in ("train", "pipeline", "ptq"):
        yield (
            f"prompt=auto is how stage=test asks a model, and stage is {stage}: write prompt=box or another; what finds objects "
            "without prompts is learnt beside that (prompter=default)"
        )


def _check_cache(flat: dict[str, Any], augment: list[str], freeze: list[str]) -> Iterator[str]:
    if not flat["cache.max_gb"] > 0:
        yield f"cache.max_gb={flat['cache.max_gb']}: must be above 0; cache=none switches the cache off"
    is_frozen = "image_encoder" in freeze and (flat["model.tune"], flat["adapter.kind"]) == ("none", "none")
    if PHOTO in augment and flat["cache.enabled"] and is_frozen:  # a run finds out where a part of it learns
        yield (
            f"data.augment: {PHOTO} changes each image in each epoch, and the cache encodes it once: set cache=none (the encoder then "
            "runs in each step), or take flip and turn alone"
        )
    tune = flat["model.tune"]
    if (
        flat["cache.precision"] == "int8"
        and tune not in ("none", "full")
        and flat["stage.name"] in ("train", "pipeline")
    ):
        yield (
            f"cache.precision=int8 is for whole embeddings, and with model.tune={tune} what comes before the blocks that learn is "
            "kept: set cache.precision=float16"
        )


def _check_pipeline(flat: dict[str, Any]) -> Iterator[str]:
    if flat["stage.name"] == "pipeline" and flat["export.format"] != "openvino":
        yield (
            f"export.format={flat['export.format']}: a pipeline always exports openvino, which is what is quantized; "
            "stage.onnx=true adds ONNX"
        )


def _check_target(flat: dict[str, Any]) -> Iterator[str]:
    target = flat["export.target"]
    if target == VPEXP:
        return
    if flat["stage.name"] == "pipeline":
        yield f"export.target={target}: a pipeline tests and quantizes vpexp's own export; stage=export writes the others"
    if flat["export.format"] == "sam":
        yield f"export.target={target}: export.format=sam is weights alone: leave out one of the two"
    if flat["tracking.register"] is not None:
        yield f"tracking.register={flat['tracking.register']}: MLflow serves export.target={VPEXP} alone"


def _check_predict(flat: dict[str, Any]) -> Iterator[str]:
    if flat["stage.name"] != "predict":
        return
    from_dataset = flat["prompts"] == "dataset"
    if not flat["source"] and not from_dataset:
        yield "source is not given: write source=... (an image, a folder, or a pattern)"
    if flat["source"] and from_dataset:
        yield f"source={flat['source']}: prompts=dataset takes the images of the data set: leave out source"
    if flat["prompts"] == "":
        yield "prompts is empty: write prompts=... (auto, grid, dataset, or a JSON file of boxes and points), or leave it out"
    if flat["output.folder"] and not flat["output.format"]:
        yield f"output.folder={flat['output.folder']}: say in which format: output.format={'|'.join(FORMATS)}"


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
    elif not get_stage(flat["stage.name"]).serves:
        serving = ", ".join(stage for stage in STAGES if STAGES[stage].serves)
        yield (f"tracking.register={name}: stage={flat['stage.name']} makes no model that can be served; {serving} do")
    elif flat["stage.name"] == "export" and flat["export.format"] == "sam":
        yield f"tracking.register={name}: export.format=sam is weights alone; openvino and onnx can be served"


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


def _list_settings(schema: Any, prefix: str = "") -> Iterator[tuple[str, Field[Any]]]:
    """List all keys of the schema, sections included, with their declarations."""
    sections = _get_sections(schema)
    for field in fields(schema):
        yield f"{prefix}{field.name}", field
        if field.name in sections:
            yield from _list_settings(sections[field.name], f"{prefix}{field.name}.")
