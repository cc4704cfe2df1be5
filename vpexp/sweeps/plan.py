"""What a sweep is going to do, read from its command line before anything starts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vpexp.command_line import CommandLine
from vpexp.config.compose import compose_from
from vpexp.config.explain import explain
from vpexp.config.trust import refuse_foreign_composition, refuse_searchpath
from vpexp.errors import ConfigError
from vpexp.tracking.store import normalize_uri, write_sqlite_uri

HYDRAS_OWN = "hydra._internal"
JOBLIB = "hydra_plugins.hydra_joblib_launcher"
STUDY = "optuna.db"  # a search's trials, in the sweep's folder


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """What a search is asked beside its values; None is vpexp's choice.

    Attributes:
        storage: address of the database of its trials.
        study: what it is called there.
        seed: of what is proposed; None for another search every time.
    """

    storage: str | None
    study: str | None
    seed: int | None


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """A sweep before it starts.

    Attributes:
        overrides: what every job is asked, and what varies, as typed.
        flags: Hydra's own.
        varying: keys that have several values, those of the configuration before those of the command line.
        jobs: how many there will be.
        folder: of the sweep, absolute.
        cfg: the first job's configuration.
        workers: jobs at once on this machine; None where a launcher decides that elsewhere.
        search: by a sweeper that chooses values as it goes; None where all are known.
    """

    overrides: tuple[str, ...]
    flags: tuple[str, ...]
    varying: tuple[str, ...]
    jobs: int
    folder: Path
    cfg: DictConfig
    workers: int | None
    search: SearchSettings | None

    @property
    def searches(self) -> bool:
        """Whether a sweeper chooses values as it goes."""
        return self.search is not None


@dataclass(frozen=True, slots=True)
class _Axis:
    """A key of the command line with its overrides; an interval is known by its start."""

    key: str
    overrides: tuple[str, ...]
    varies: bool


def plan_sweep(command_line: CommandLine, folder: Path | None = None) -> SweepPlan:
    """Compose the first job, and each value of what varies once, so that a typing error costs no job.

    Args:
        command_line: with ``-m``.
        folder: of a sweep that goes on; None makes a new one.

    Raises:
        ConfigError: what is wrong: a key, a value, or nothing that varies.
    """
    if command_line.is_foreign:
        refuse_searchpath(command_line.main_config)
    typed = _read_axes(command_line.overrides)
    cfg = _compose(command_line, [axis.overrides[0] for axis in typed])
    keys = {axis.key for axis in typed}
    axes = [axis for axis in _read_axes(_list_params(cfg)) if axis.key not in keys] + typed
    cfg = _compose(command_line, [axis.overrides[0] for axis in axes])
    varying = [axis for axis in axes if axis.varies]
    if not varying:
        raise ConfigError(
            "a sweep needs a key with several values: python -m vpexp -m optimizer.lr=1e-5,1e-4, or sweep=lr_batch"
        )
    _check_values(command_line, axes)
    hydra = cfg.hydra
    search = _read_search(hydra.sweeper)
    jobs = int(hydra.sweeper.n_trials) if search else math.prod(len(axis.overrides) for axis in varying)
    place = folder or Path(str(OmegaConf.select(cfg, "hydra.sweep.dir"))).expanduser().absolute()
    OmegaConf.set_struct(cfg, value=False)
    del cfg["hydra"]
    refuse_many_devices(cfg)
    if cfg.tracking.enabled:
        normalize_uri(cfg.tracking.uri)
    if search and not search.storage:
        write_sqlite_uri(place / STUDY)
    return SweepPlan(
        overrides=tuple(command_line.overrides),
        flags=tuple(command_line.flags),
        varying=tuple(axis.key for axis in varying),
        jobs=jobs,
        folder=place,
        cfg=cfg,
        workers=_count_workers(hydra.launcher, jobs),
        search=search,
    )


def _read_axes(overrides: Sequence[str]) -> list[_Axis]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except Exception as error:
        line = explain(error, overrides, ())
        if line is None:
            raise
        raise ConfigError(line) from error
    axes = []
    for typed, override in zip(overrides, parsed, strict=True):
        key = override.get_key_element()
        if not override.is_sweep_override():
            axes.append(_Axis(key, (typed,), varies=False))
        elif override.is_discrete_sweep():
            values = tuple(f"{key}={value}" for value in override.sweep_string_iterator())
            if len(set(map(repr, override.sweep_iterator()))) < len(values):  # 1e-4 and 0.0001 too
                raise ConfigError(f"{typed}: a value stands there twice; each job of a sweep runs once")
            axes.append(_Axis(key, values, varies=True))
        else:
            start: float = getattr(override.value(), "start", 0.0)
            axes.append(_Axis(key, (f"{key}={start}",), varies=True))
    return axes


def _list_params(cfg: DictConfig) -> list[str]:
    """List what the configuration itself sweeps over, as overrides."""
    params: Any = cfg.hydra.sweeper.get("params")
    container: Any = OmegaConf.to_container(params, resolve=True) if params else {}
    return [f"{key}={value}" for key, value in container.items()]


def _read_search(sweeper: DictConfig) -> SearchSettings | None:
    if "n_trials" not in sweeper:
        return None
    return SearchSettings(sweeper.storage, sweeper.study_name, sweeper.sampler.get("seed"))


def _check_values(command_line: CommandLine, axes: Sequence[_Axis]) -> None:
    """Compose every value once, beside the first of the others."""
    firsts = [axis.overrides[0] for axis in axes]
    for place, axis in enumerate(axes):
        for override in axis.overrides[1:]:
            _compose(command_line, [*firsts[:place], override, *firsts[place + 1 :]])


def _compose(command_line: CommandLine, overrides: Sequence[str]) -> DictConfig:
    folder, name = command_line.folders[0], command_line.config_name
    cfg = compose_from(folder, name, overrides, command_line.config_dir, with_hydra=True)
    if command_line.is_foreign:
        typed = command_line.typed or command_line
        refuse_foreign_composition(cfg, command_line.source, typed.overrides, typed.config_dir)
    return cfg


def _count_workers(launcher: DictConfig, jobs: int) -> int | None:
    target = str(launcher.get("_target_", ""))
    if target.startswith(HYDRAS_OWN):
        return 1
    if target.startswith(JOBLIB):
        from joblib import effective_n_jobs

        return min(int(effective_n_jobs(launcher.n_jobs)), jobs)
    return None


def refuse_many_devices(cfg: DictConfig) -> None:
    """A sweep's devices are for its jobs: several at once would start their processes on the same ones.

    Raises:
        ConfigError: a job would train on several devices.
    """
    strategy, devices = str(cfg.trainer.strategy), cfg.trainer.devices
    many = devices > 1 if isinstance(devices, int) else len(str(devices).strip("[], ").split(",")) > 1
    if strategy.startswith(("ddp", "fsdp", "deepspeed")) or many:
        raise ConfigError(
            f"trainer.strategy={strategy} trainer.devices={devices}: a job of a sweep trains on one device; use "
            "hydra/launcher=joblib or ray for several jobs at once, or train on several devices without -m"
        )
