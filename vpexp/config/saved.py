"""The configuration of a run on disk: write it so that it can be run again, read it back, and let a test inherit it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vpexp.config.explain import explain
from vpexp.config.folders import find_conf_folder
from vpexp.config.schema import SCHEMA_NAME, Config
from vpexp.errors import ConfigError

# The seed is among them because it decides which images are set aside for val where a data set has no such split.
# The cache is, because a test reads the embeddings that the training made: those of the same precision.
INHERITED = ("model", "data", "prompt", "cache", "seed")

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
    try:
        saved = OmegaConf.load(path)
        if not isinstance(saved, DictConfig):
            raise ConfigError(f"{path} holds no configuration: its top level must be keys")
        for section in ("defaults", "hydra"):
            saved.pop(section, None)
        cfg = OmegaConf.merge(OmegaConf.structured(Config), saved)
    except FileNotFoundError:
        raise ConfigError(f"no configuration at {path}") from None
    except (OmegaConfBaseException, yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {explain(error, (), (find_conf_folder(),))}") from error
    OmegaConf.set_struct(cfg, value=True)
    return cfg  # type: ignore[return-value]


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
    keys = [override.lstrip("+~").partition("=")[0].partition("@")[0] for override in overrides]
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
