"""The configuration of a run on disk: write it so that it can be run again, read it back, and let others have it.

A test inherits parts of it. A run that goes on has it with what the user changes now; nothing that is typed is dropped.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException, ValidationError

from vpexp.config.explain import explain
from vpexp.config.groups import find_conf_folder
from vpexp.config.schema import SCHEMA_NAME, Config
from vpexp.errors import ConfigError
from vpexp.registry import get_stage

# The seed is among them because it decides which images are set aside for val where a data set has no such split.
# The cache is, because a test reads the embeddings that the training made: those of the same precision.
INHERITED = ("model", "data", "prompt", "cache", "seed")
MAX_DEPTH, MAX_VALUES, MAX_BITS = 60, 200_000, 64  # of YAML that somebody else may have written
HEADER = """\
# The whole configuration of a run. The same run again:
#   python -m vpexp -cp "{folder}" -cn {name}
"""

# Whose state the checkpoint brings, which would overrule what is typed.
KEPT = ("model", "adapter", "optimizer", "scheduler")
# Whose keys may change one by one, by no other option.
BY_KEY = ("data", "prompt", "prompter", "loss", "trainer", "export", "ptq")
ELSEWHERE = ("resume", "checkpoint", "experiment", "stage", "paths")  # bare names that are heeded elsewhere
# Where things are and what computes them. That weights are those of its frozen parts is checked by the checkpoint.
FREE = (
    *("model.weights", "data.root", "data.num_workers"),
    *("trainer.accelerator", "trainer.devices", "trainer.threads", "stage.onnx"),
)
FORMER_KEYS = (("demo", "refine"),)  # sections and keys that older versions saved, and that mean nothing any more
_MISSING = object()


def save_config(cfg: DictConfig, path: Path) -> None:
    """Write the configuration, resolved and complete, with what Hydra needs to run it again from this file alone."""
    main = OmegaConf.load(find_conf_folder() / "config.yaml")
    overrides = [entry for entry in main.defaults if str(next(iter(entry), "")).startswith("override hydra/")]
    head = {"defaults": [SCHEMA_NAME, "_self_", *map(dict, overrides)], "hydra": main.hydra}
    text = HEADER.format(folder=path.resolve().parent, name=path.stem)
    text += OmegaConf.to_yaml(OmegaConf.create(head)) + "\n"
    text += OmegaConf.to_yaml(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)))
    path.write_text(text, encoding="utf-8")


def load_config(path: str | Path) -> DictConfig:
    """Read a configuration that ``save_config`` wrote, checked against the schema.

    Raises:
        ConfigError: the file is missing, damaged, or holds keys that this version does not know.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(f"no configuration at {path}")
    try:
        saved = read_yaml(path.read_text(encoding="utf-8"), path)
        for section in ("defaults", "hydra"):
            saved.pop(section, None)
        for section, key in FORMER_KEYS:
            if isinstance(saved.get(section), DictConfig):
                saved[section].pop(key, None)
        refuse_interpolations(saved, path)
        cfg = OmegaConf.merge(_build_defaults(saved), saved)
    except (OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {explain(error, (), (find_conf_folder(),))}") from error
    OmegaConf.set_struct(cfg, value=True)
    return cfg  # type: ignore[return-value]


def read_yaml(text: str, source: Path | str) -> DictConfig:
    """Read the YAML of a configuration; whatever is in it, reading costs no more than a file of its length should.

    Args:
        text: YAML.
        source: its file, for messages.

    Raises:
        ConfigError: it is broken, holds no keys, is nested too deeply, or its aliases or numbers grow too large.
    """
    stream = io.StringIO(text)
    stream.name = str(source)  # what PyYAML calls it in its messages
    try:
        _measure_yaml(yaml.parse(stream, yaml.SafeLoader), source)
        stream.seek(0)
        cfg = OmegaConf.load(stream)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
        line = explain(error, (), ()) or str(error)
        raise ConfigError(line if line.startswith(str(source)) else f"{source}: {line}") from error
    if not isinstance(cfg, DictConfig):
        raise ConfigError(f"{source} holds no configuration: its top level must be keys")
    for key, value in walk(OmegaConf.to_container(cfg)):
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise ConfigError(f"{source}: {key} is a number of more than {MAX_BITS} bits")
    return cfg


def _measure_yaml(events: Iterator[Any], source: Path | str) -> None:
    """Count the values that YAML stands for, those of aliases each time, before anything is built of it."""
    count = 0
    sizes: dict[str | None, int] = {}  # by anchor
    opened: list[tuple[str | None, int]] = []
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            sizes[anchor] = count - before
        elif isinstance(event, yaml.NodeEvent):
            if isinstance(event, yaml.AliasEvent):  # one to what it is inside of has no end
                count += sizes.get(event.anchor, MAX_VALUES)
            count += 1
            if isinstance(event, yaml.ScalarEvent):
                sizes[event.anchor] = 0
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, count))
        if len(opened) > MAX_DEPTH or count > MAX_VALUES:
            what = (
                f"nested more than {MAX_DEPTH} deep" if len(opened) > MAX_DEPTH else f"of more than {MAX_VALUES} values"
            )
            raise ConfigError(f"{source}: {what}: no configuration of vpexp")


def refuse_interpolations(saved: DictConfig, source: Path | str) -> None:
    """Refuse interpolations, which vpexp resolves before it saves: they could read the environment into a record.

    Raises:
        ConfigError: there is one.
    """
    for key, value in walk(OmegaConf.to_container(saved, resolve=False)):
        if isinstance(value, str) and "${" in value:
            raise ConfigError(f"{source}: {key}={value} is no plain value: vpexp saves none with ${{}}; changed since?")


def walk(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Go through all values of nested mappings and lists, with their dotted keys: ``callbacks.mine._args_.0``."""
    if isinstance(content, Mapping):
        items = list(content.items())
    elif isinstance(content, list | tuple):
        items = list(enumerate(content))
    else:
        yield key, content
        return
    for name, value in items:
        yield from walk(value, f"{key}.{name}" if key else str(name))


def get_key(override: str) -> str:
    """Return the key or group that an override is of: ``data.batch_size`` of ``+data.batch_size=1``."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def list_keys(overrides: Sequence[str]) -> list[str]:
    """List the keys and groups that overrides are of; ``prompt=auto`` is its one key, and leaves the rest as it was trained."""
    keys = [get_key(override) for override in overrides]
    is_auto = [override.lstrip("+") == "prompt=auto" for override in overrides]
    return ["prompt.type" if auto else key for key, auto in zip(keys, is_auto, strict=True)]


def inherit(cfg: DictConfig, saved_cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Take model, data, prompt, cache and seed from the run that made a checkpoint, except what the user asked for.

    The tiles that the model was trained on come with it for other data too, unless these or the user name a size.

    Args:
        cfg: what was composed now.
        saved_cfg: the configuration of the run that made the checkpoint; plain containers will do.
        overrides: what the user asked for. A group (``data=voc``, or ``experiment=...``, which may set all of them)
            keeps that section of ``cfg`` whole, and so does its bare name (``data``); a single key
            (``data.batch_size=1``) is laid over the saved section.

    Raises:
        ConfigError: the checkpoint holds keys that this version does not know.
    """
    saved = _restore_types(saved_cfg)
    keys = list_keys(overrides)
    merged = cfg.copy()
    for section in INHERITED:
        if section in keys or "experiment" in keys:
            continue
        merged[section] = saved[section]
        for key in keys:
            if key.startswith(f"{section}."):
                merged = _lay_over(merged, key, OmegaConf.select(cfg, key))
    inherit_tiles(merged, saved.data.tile, saved.data.tile_overlap, keys)
    return merged


def inherit_tiles(cfg: DictConfig, tile: int | None, overlap: float, keys: Sequence[str]) -> None:
    """Take the tiles that a model is used to, whatever the data, where neither these nor the user's ``keys`` name any."""
    if cfg.data.tile is None and "data.tile" not in keys:
        cfg.data.tile = tile
        if "data.tile_overlap" not in keys:
            cfg.data.tile_overlap = overlap


def _restore_types(saved_cfg: DictConfig) -> DictConfig:
    sections = {name: saved_cfg[name] for name in INHERITED if name in saved_cfg}
    try:
        return OmegaConf.merge(_build_defaults(saved_cfg), sections)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        line = explain(error, (), (find_conf_folder(),))
        raise ConfigError(f"the checkpoint was made by another version of vpexp: {line}") from error


def _build_defaults(saved_cfg: DictConfig) -> DictConfig:
    """Build the schema's defaults; where an older version saved no value, the one that it had built in."""
    cfg = OmegaConf.structured(Config)
    if "multimask" not in saved_cfg.get("prompt", {}):
        cfg.prompt.multimask = "never"
    cfg.prompter.enabled = "prompter" in saved_cfg
    return cfg  # type: ignore[no-any-return]


def _lay_over(cfg: DictConfig, key: str, value: Any) -> DictConfig:
    """Set one dotted key; sections on the way that are null come to life."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return OmegaConf.merge(cfg, value)  # type: ignore[return-value]


def name_data(cfg: DictConfig) -> str:
    """Name for people what a run works on.

    A source by its last part; a data set by its own name, or that of its folder where the name only says the format.
    """
    if cfg.source is not None and get_stage(cfg.stage.name).from_source:
        return PurePath(cfg.source).name or str(cfg.source)
    return name_dataset(cfg)


def name_dataset(cfg: DictConfig) -> str:
    """Name the data set that a run works on, or that its model was made for."""
    if cfg.data.name == cfg.data.format and cfg.data.root:
        return Path(cfg.data.root).expanduser().resolve().name
    return str(cfg.data.name)


def lay_over_saved(
    saved: DictConfig, cfg: DictConfig, overrides: Sequence[str], settled: Sequence[str] = ()
) -> DictConfig:
    """Lay what the user asks for over the configuration of a run that goes on.

    Args:
        saved: of the run.
        cfg: as composed now.
        overrides: what the user asked for: keys, groups (``trainer=gpu``), experiments; a bare name is a whole section.
        settled: sections, beside ``KEPT``, that were used by what has finished.

    Raises:
        ConfigError: something asked for would not be heeded.
    """
    merged = saved.copy()
    asked = [(get_key(override), override) for override in overrides]
    if "stage" in dict(asked) and cfg.stage.name != saved.stage.name:
        raise ConfigError(f"stage={cfg.stage.name}: the run that goes on is of stage={saved.stage.name}")
    # Single keys first: where they change a section, its group agrees with what they made of it.
    asked.sort(key=lambda entry: OmegaConf.is_config(OmegaConf.select(cfg, entry[0])))
    for key, override in asked:
        section = key.partition(".")[0]
        if key in ELSEWHERE or section in ("paths", "hydra") or "/" in key:
            continue
        is_fixed = section in (*KEPT, *settled) or key in BY_KEY
        _change(merged, cfg, key, override, fixed=is_fixed)
    for key, override in asked:
        if key == "experiment":
            for name in _list_experiment(override.partition("=")[2]):
                _change(merged, cfg, name, override, fixed=True)
    merged.paths = cfg.paths
    return merged


def _list_experiment(option: str) -> list[str]:
    """List the keys and groups that an experiment of vpexp sets; one of the user's own may set any."""
    file = find_conf_folder() / "experiment" / f"{option}.yaml"
    if not file.is_file():
        return [*KEPT, *BY_KEY, "callbacks", "metrics", "seed"]
    content: Any = OmegaConf.to_container(OmegaConf.load(file))
    groups = [str(name).removeprefix("override /") for entry in content.pop("defaults", ()) for name in entry]
    return [name for name in (*groups, *dict(_list_leaves(content))) if name not in ELSEWHERE]


def _change(merged: DictConfig, cfg: DictConfig, key: str, override: str, *, fixed: bool) -> None:
    """Take over a key, or all keys of a section.

    Raises:
        ConfigError: it is fixed, and another one now.
    """
    now, then = (dict(_list_leaves({key: _select(source, key)})) for source in (cfg, merged))
    for name in dict.fromkeys((*now, *then)):
        if now.get(name, _MISSING) == then.get(name, _MISSING):
            continue
        if fixed and name not in FREE:
            raise ConfigError(
                f"{override}: the run that goes on has {name}={then.get(name, 'not set')}, and would keep it. A run keeps its "
                "model, optimizer and scheduler and what finished steps have used; other keys may change one by one, as "
                "trainer.max_epochs=20. To train with others, start from its weights: checkpoint=<its folder>, without resume"
            )
        if key.partition(".")[0] != "callbacks":
            _set(merged, name, now.get(name, _MISSING))
    if now != then and key.partition(".")[0] == "callbacks":  # no keys of one callback among those of another
        _set(merged, key, _select(cfg, key))


def _select(cfg: DictConfig, key: str) -> Any:
    value = OmegaConf.select(cfg, key, default=_MISSING)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _list_leaves(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _list_leaves(value, f"{prefix}{key}.")
        elif value is not _MISSING:
            yield f"{prefix}{key}", value


def _set(cfg: DictConfig, key: str, value: Any) -> None:
    with open_dict(cfg):
        try:
            OmegaConf.update(cfg, key, None if value is _MISSING else value, merge=False, force_add=True)
        except ValidationError:  # a tag that is deleted; a callback that is, is switched off
            if value is not _MISSING:
                raise
            parent, _, name = key.rpartition(".")
            OmegaConf.select(cfg, parent).pop(name, None)
