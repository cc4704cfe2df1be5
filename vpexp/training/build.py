"""Build what training needs from a configuration: loss, optimizer, schedule, callbacks."""

from collections.abc import Callable
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vpexp.errors import ConfigError
from vpexp.training.losses import MaskLoss


def build_loss(cfg: DictConfig) -> MaskLoss:
    """Build the loss from the section ``loss``."""
    return MaskLoss(
        focal_weight=cfg.focal_weight,
        dice_weight=cfg.dice_weight,
        iou_weight=cfg.iou_weight,
        focal_alpha=cfg.focal_alpha,
        focal_gamma=cfg.focal_gamma,
    )


def build_optimizer_factory(cfg: DictConfig) -> Callable[[list[nn.Parameter]], Optimizer]:
    """Return a function that builds the optimizer of the section ``optimizer`` for some parameters.

    Raises:
        ConfigError: the class cannot be imported, or does not take the options.
    """
    factory = _instantiate_partial(cfg, "optimizer")

    def build(parameters: list[nn.Parameter]) -> Optimizer:
        try:
            optimizer: Optimizer = factory(parameters)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"optimizer: {error}") from error
        return optimizer

    return build


def build_scheduler_factory(cfg: DictConfig) -> Callable[[Optimizer, int], LRScheduler]:
    """Return a function that builds the schedule of the section ``scheduler`` for an optimizer and a number of steps."""
    factory = _instantiate_partial(cfg, "scheduler")

    def build(optimizer: Optimizer, total_steps: int) -> LRScheduler:
        try:
            scheduler: LRScheduler = factory(optimizer, total_steps=total_steps)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"scheduler: {error}") from error
        return scheduler

    return build


def build_callbacks(cfg: DictConfig) -> list[Callback]:
    """Build the callbacks of the section ``callbacks``; an entry that is null is switched off."""
    callbacks: list[Callback] = []
    for name in map(str, cfg):
        options = cfg[name]
        if options is None:
            continue
        try:
            callback = instantiate(options)
        except Exception as error:
            raise ConfigError(f"callbacks.{name}: {_innermost(error)}") from error
        if not isinstance(callback, Callback):
            raise ConfigError(f"callbacks.{name}: {type(callback).__name__} is no callback of PyTorch Lightning")
        callbacks.append(callback)
    return callbacks


def _instantiate_partial(cfg: DictConfig, section: str) -> Callable[..., Any]:
    options = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(options, dict)
    if "_target_" not in options:
        raise ConfigError(f"{section} has no _target_: choose one of the group's options, e.g. {section}=<name>")
    try:
        factory: Callable[..., Any] = instantiate({**options, "_partial_": True}, _convert_="all")
    except Exception as error:
        raise ConfigError(f"{section}: {_innermost(error)}") from error
    return factory


def _innermost(error: BaseException) -> str:
    """Take the message of the cause: Hydra wraps it in several lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
