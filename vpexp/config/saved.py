"""The configuration of a run on disk: write it so that it can be run again, read it back, and let a test inherit it."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

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
        refuse_interpolations(saved, path)
        cfg = OmegaConf.merge(OmegaConf.structured(Config), saved)
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


def inherit(cfg: DictConfig, saved_cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Take model, data, prompt, cache and seed from the run that made a checkpoint, except what the user asked for.

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
    keys = [get_key(override) for override in overrides]
    merged = cfg.copy()
    for section in INHERITED:
        if section in keys or "experiment" in keys:
            continue
        merged[section] = saved[section]
        for key in keys:
            if key.startswith(f"{section}."):
                merged = _lay_over(merged, key, OmegaConf.select(cfg, key))
    return merged


def _restore_types(saved_cfg: DictConfig) -> DictConfig:
    sections = {name: saved_cfg[name] for name in INHERITED if name in saved_cfg}
    try:
        return OmegaConf.merge(OmegaConf.structured(Config), sections)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        line = explain(error, (), (find_conf_folder(),))
        raise ConfigError(f"the checkpoint was made by another version of vpexp: {line}") from error


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
    if cfg.data.name == cfg.data.format and cfg.data.root:
        return Path(cfg.data.root).expanduser().resolve().name
    return str(cfg.data.name)
