"""Whose code a configuration may start: a run folder, a checkpoint and a saved configuration are data, whoever made them.

A target (``_target_``, at any depth) that such a file names is built where vpexp's own groups name it too, where it is an
optimizer, a schedule or a callback of torch, PyTorch Lightning or vpexp, and where the user repeats it: on the command
line, or in a ``--config-dir``.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vpexp.config.compose import compose_from
from vpexp.config.groups import find_conf_folder, list_groups
from vpexp.config.saved import read_yaml, walk
from vpexp.errors import ConfigError

CONFIG_DIR = "--config-dir="  # among what the user asked for: the folder of groups
CLASS_PREFIXES = ("torch.optim.", "pytorch_lightning.callbacks.", "vpexp.training.")
RESOLVER = re.compile(r"\$\{.*:", re.DOTALL)  # ${oc.env:NAME} reads what the user may not want to be recorded
# Hydra's own settings are taken from a file where they start nothing: names, places and numbers.
HYDRA_GROUPS = ("sweep", "hydra/launcher", "hydra/sweeper", "hydra/sweeper/sampler")
HYDRA_SETTINGS = re.compile(
    r"hydra\.(runtime|overrides|run|sweep)\..*|hydra\.searchpath\.\d+=file://.*|hydra\.job\.(name|config_name|override_dirname|id|num)=.*"
    r"|hydra\.sweeper\.(params\.|storage=|study_name=|direction=).*"
    r"|hydra\.launcher\.ray\.init\.address=(auto|[\w.-]+:\d+)",  # of a cluster that this machine belongs to
    re.DOTALL,
)


def refuse_foreign(cfg: DictConfig | Mapping[str, Any], own: Collection[str], source: Path | str) -> None:
    """Refuse a configuration that would start code which its file may not name.

    Args:
        cfg: what a file gave, with what the user laid over it.
        own: targets that the user named, see ``list_own_targets``.
        source: the file, for the message.

    Raises:
        ConfigError: it names such a target; the message says which, and how to allow it.
    """
    for key, value in walk(_to_container(cfg)):
        if is_target(key) and value is not None and value not in own and not _is_known(value):
            raise ConfigError(
                f"{source}: {key}={value} is no part of vpexp, and a file of settings starts no other code; if you trust "
                f"it, give it yourself: {key}={value}, or --config-dir <folder> with groups that name it"
            )


def list_own_targets(cfg: DictConfig | Mapping[str, Any], overrides: Iterable[str] = ()) -> set[str]:
    """List the targets of what the user composed, and of the ``--config-dir`` among ``overrides``."""
    own = {value for key, value in walk(_to_container(cfg)) if is_target(key)}
    for override in overrides:
        if override.startswith(CONFIG_DIR):
            own |= _list_group_texts(Path(override.removeprefix(CONFIG_DIR)))
    return own


def refuse_foreign_composition(
    cfg: DictConfig, source: Path | str, overrides: Sequence[str], config_dir: str | Path | None
) -> None:
    """Refuse what a main configuration that is not vpexp's own, or the record of a sweep, may not ask for.

    Beside targets these are settings of Hydra that start something, and resolvers, which read the environment.

    Args:
        cfg: as composed, with the section ``hydra``, not resolved.
        source: the file, for the message.
        overrides: what the user typed now.
        config_dir: the user's own folder of groups.

    Raises:
        ConfigError: what it is, and how to allow it.
    """
    content = _to_container(cfg, resolve=False)
    usual = _compose_usual(_list_hydra_overrides(cfg, overrides), config_dir, source)
    texts = _list_group_texts(Path(config_dir)) if config_dir else frozenset()
    own = {str(value) for _, value in walk(content) if value in texts or _is_typed(str(value), overrides)}
    settings = {}
    for key, value in walk(content):
        if key.startswith("hydra."):
            is_number = value is None or isinstance(value, bool | int | float)
            if usual.get(key) != value and not is_number and not HYDRA_SETTINGS.fullmatch(f"{key}={value}"):
                raise ConfigError(
                    f"{source}: {key}={value} is a setting of Hydra that no file gives; if you trust it, type it"
                )
            continue
        settings[key] = value
        if usual.get(key) != value and isinstance(value, str) and RESOLVER.search(value) and value not in own:
            raise ConfigError(
                f"{source}: {key}={value} looks outside of the file; if you trust it, type '{key}={value}'"
            )
    refuse_foreign(settings, own, source)


def check_main_config(file: Path, overrides: Sequence[str], config_dir: str | None) -> None:
    """Check a main configuration that is not vpexp's own before Hydra runs it: ``-cp <folder> -cn <name>``.

    Args:
        file: the main configuration; where it does not exist, Hydra looks in ``config_dir``.
        overrides: what the user typed.
        config_dir: the user's own folder of groups.

    Raises:
        ConfigError: see ``refuse_foreign_composition``, or it cannot be composed.
    """
    refuse_searchpath(file)
    cfg = compose_from(file.parent, file.stem, overrides, config_dir, with_hydra=True)
    refuse_foreign_composition(cfg, file, overrides, config_dir)


def refuse_searchpath(file: Path) -> None:
    """Refuse a main configuration that adds to Hydra's search path: to compose it would import what it names.

    Raises:
        ConfigError: it does, or is no YAML that a configuration needs.
    """
    if not file.is_file():
        return
    for key, value in walk(_to_container(read_yaml(file.read_text(encoding="utf-8"), file), resolve=False)):
        if "searchpath" in key:
            raise ConfigError(f"{file}: {key}={value}: folders of groups are given as --config-dir")


def is_target(key: str) -> bool:
    """Whether the value of a dotted key is something to call."""
    return key.rpartition(".")[2] == "_target_"


def _to_container(cfg: DictConfig | Mapping[str, Any], *, resolve: bool = True) -> Any:
    return OmegaConf.to_container(cfg, resolve=resolve) if isinstance(cfg, DictConfig) else cfg


def _is_known(target: Any) -> bool:
    """Whether vpexp's groups name it, or it is a class of a known kind, defined where its name says, not only found there."""
    if target in _list_group_texts(find_conf_folder()):
        return True
    module, _, name = str(target).rpartition(".")
    if not str(target).startswith(CLASS_PREFIXES) or not all(map(str.isidentifier, module.split("."))):
        return False
    from pytorch_lightning.callbacks import Callback
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    try:
        found = getattr(import_module(module), name, None)
    except ImportError:
        return False
    kinds = (Optimizer, LRScheduler, Callback)
    return isinstance(found, type) and issubclass(found, kinds) and f"{found.__module__}.".startswith(CLASS_PREFIXES)


@lru_cache
def _list_group_texts(folder: Path) -> frozenset[str]:
    """List the targets and interpolations in a folder's groups."""
    files = [file for options in list_groups([folder]).values() for file in options.values()]
    leaves = [
        leaf
        for file in files
        for leaf in walk(_to_container(read_yaml(file.read_text(encoding="utf-8"), file), resolve=False))
    ]
    return frozenset(value for key, value in leaves if isinstance(value, str) and (is_target(key) or "${" in value))


def _is_typed(text: str, overrides: Sequence[str]) -> bool:
    return any(re.search(rf"(?<![\w.]){re.escape(text)}(?![\w.])", override) for override in overrides)


def _list_hydra_overrides(cfg: DictConfig, overrides: Sequence[str]) -> tuple[str, ...]:
    """List what chooses the launcher and the sweeper that were composed, and the user's own settings of Hydra."""
    typed = [word for word in overrides if word.lstrip("+~").startswith(("hydra.", "hydra/", "sweep="))]
    given = {word.lstrip("+~").partition("=")[0] for word in typed}
    choices = cfg.hydra.runtime.choices
    return (
        *(f"{group}={choices[group]}" for group in HYDRA_GROUPS if choices.get(group) and group not in given),
        *typed,
    )


@lru_cache(maxsize=8)
def _compose_usual(overrides: tuple[str, ...], config_dir: str | Path | None, source: Path | str) -> Mapping[str, Any]:
    """Compose vpexp's own configuration with the same launcher and sweeper; return its values by dotted key."""
    try:
        cfg = compose_from(find_conf_folder(), "config", overrides, config_dir, with_hydra=True)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error} (a group of your own is given as --config-dir <folder>)") from error
    return dict(walk(_to_container(cfg, resolve=False)))
