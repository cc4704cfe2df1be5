"""The configuration of a run that goes on: its own, with what the user changes now. Nothing that is typed is dropped."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ValidationError

from vpexp.config.groups import find_conf_folder
from vpexp.config.saved import get_key
from vpexp.errors import ConfigError

KEPT = ("model", "optimizer", "scheduler")  # whose state the checkpoint brings, which would overrule what is typed
BY_KEY = ("data", "prompt", "loss", "trainer", "export", "ptq")  # whose keys may change one by one, by no other option
ELSEWHERE = ("resume", "checkpoint", "experiment", "stage", "paths")  # bare names that are heeded elsewhere
# Where things are and what computes them. That weights are those of its frozen parts is checked by the checkpoint.
FREE = (
    *("model.weights", "data.root", "data.num_workers"),
    *("trainer.accelerator", "trainer.devices", "trainer.threads", "stage.onnx"),
)
_MISSING = object()


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
