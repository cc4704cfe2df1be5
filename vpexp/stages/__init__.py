"""The stages: each puts rooms together and computes nothing itself."""

from collections.abc import Callable

from vpexp.config.schema import StageConfig
from vpexp.registry import load_target
from vpexp.stages.shared.context import RunContext, StageResult

__all__ = ["RunContext", "StageResult", "find_stage"]


def find_stage(settings: StageConfig) -> Callable[[RunContext], StageResult]:
    """Import what a stage runs; its name was checked with the configuration.

    Raises:
        ConfigError: ``stage._target_`` cannot be imported.
    """
    run: Callable[[RunContext], StageResult] = load_target(
        "stage._target_", settings._target_ or f"vpexp.stages.{settings.name}.run"
    )
    return run
