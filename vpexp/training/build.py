"""Build what training needs from a configuration: loss, optimizer, schedule, callbacks."""

import inspect
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from vpexp.config.schema import LossConfig
from vpexp.errors import ConfigError
from vpexp.models.sam import Sam
from vpexp.models.tuning import group_parameters
from vpexp.registry import build_target, get_cause, load_target
from vpexp.training.losses import Loss, MaskLoss

INTERVALS = ("step", "epoch")
MONITOR = "val/f1-score"  # what ReduceLROnPlateau looks at, the higher the better


def build_optimizer_factory(cfg: DictConfig) -> Callable[[Sam], Optimizer]:
    """Return a function that builds the optimizer of the section ``optimizer`` for what learns of a model.

    ``lr_encoder`` and ``layer_decay`` are vpexp's: see ``group_parameters``.

    Raises:
        ConfigError: the class cannot be imported, or does not take the options.
    """
    options = _to_options(cfg, "optimizer")
    lr_encoder, layer_decay = options.pop("lr_encoder", None), options.pop("layer_decay", None) or 1.0
    factory = _instantiate_partial(options, "optimizer")

    def build(sam: Sam) -> Optimizer:
        learning: list[Any] = [parameter for parameter in sam.parameters() if parameter.requires_grad]
        if lr_encoder is not None or layer_decay != 1:
            learning = group_parameters(sam, lr=options["lr"], lr_encoder=lr_encoder, layer_decay=layer_decay)
        try:
            optimizer: Optimizer = factory(learning)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"optimizer: {error}") from error
        return optimizer

    return build


def build_scheduler_factory(cfg: DictConfig) -> Callable[[Optimizer, int], dict[str, Any]]:
    """Return a function that builds the schedule of the section ``scheduler`` for an optimizer and a number of steps.

    It returns what Lightning takes: ``scheduler``, ``interval`` and ``monitor``. A target that takes ``total_steps`` (vpexp's own,
    ``OneCycleLR``) is given the optimizer steps of the whole training and counts in steps, any other in epochs
    (``scheduler._target_=torch.optim.lr_scheduler.StepLR +scheduler.step_size=10``), unless ``+scheduler.interval=step`` or ``epoch``
    says otherwise. ``ReduceLROnPlateau`` looks at ``val/f1-score``, the higher the better, after each validation;
    ``+scheduler.monitor`` and ``+scheduler.mode`` name another number. The column ``lr`` of metrics.csv shows the rate.

    Raises:
        ConfigError: the target cannot be imported, or does not take the options.
    """
    options = _to_options(cfg, "scheduler")
    factory = _instantiate_partial(options, "scheduler")
    target = getattr(factory, "func", factory)
    taken = inspect.signature(target).parameters
    if "warmup_steps" not in taken and options.get("warmup_steps") == 0:  # a group's way to say none
        del options["warmup_steps"]
    interval = options.pop("interval", "step" if "total_steps" in taken else "epoch")
    if interval not in INTERVALS:
        raise ConfigError(f"scheduler.interval={interval}: must be {' or '.join(INTERVALS)}")
    monitor = str(options.pop("monitor", MONITOR))
    if target is ReduceLROnPlateau and monitor == MONITOR:
        options.setdefault("mode", "max")
    for key in options:
        if key not in taken and key != "_target_":
            known = ", ".join(name for name in taken if name not in ("optimizer", "total_steps", "last_epoch"))
            raise ConfigError(
                f"scheduler: {target.__name__} takes no {key} (it takes {known}); leave it out: ~scheduler.{key}"
            )
    factory = _instantiate_partial(options, "scheduler")

    def build(optimizer: Optimizer, total_steps: int) -> dict[str, Any]:
        counted = {"total_steps": total_steps} if "total_steps" in taken and "total_steps" not in options else {}
        try:
            scheduler = factory(optimizer, **counted)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"scheduler: {error}") from error
        return {"scheduler": scheduler, "interval": interval, "monitor": monitor}

    return build


def build_callbacks(cfg: DictConfig) -> list[Callback]:
    """Build the callbacks of the section ``callbacks``; an entry that is null is switched off."""
    entries = {str(name): cfg[name] for name in cfg if cfg[name] is not None}
    callbacks = {name: build_target(f"callbacks.{name}", options) for name, options in entries.items()}
    for name, callback in callbacks.items():
        if not isinstance(callback, Callback):
            raise ConfigError(f"callbacks.{name}: {type(callback).__name__} is no callback of PyTorch Lightning")
    return list(callbacks.values())


def build_loss(settings: LossConfig) -> Loss:
    """Build the loss of the section ``loss``: vpexp's, or the user's own."""
    build = MaskLoss if settings._target_ is None else load_target("loss._target_", settings._target_)
    try:
        loss: Loss = build(settings)
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"loss._target_={settings._target_}: {get_cause(error)}") from error
    return loss


def _to_options(cfg: DictConfig, section: str) -> dict[str, Any]:
    options: Any = OmegaConf.to_container(cfg, resolve=True)
    if "_target_" not in options:
        raise ConfigError(f"{section} has no _target_: choose one of the group's options, e.g. {section}=<name>")
    options.pop("_partial_", None)  # as Hydra users write it; it is so either way
    return dict(options)


def _instantiate_partial(options: dict[str, Any], section: str) -> Callable[..., Any]:
    factory: Callable[..., Any] = build_target(section, {**options, "_partial_": True})
    return factory
