"""The stages: each puts rooms together and computes nothing itself."""

from collections.abc import Callable

from vpexp.stages.shared.context import RunContext, StageResult

__all__ = ["RunContext", "StageResult", "get_stage"]


def get_stage(name: str) -> Callable[[RunContext], StageResult]:
    """Import a stage by its name; the name was checked with the configuration."""
    from importlib import import_module

    run: Callable[[RunContext], StageResult] = import_module(f"vpexp.stages.{name}").run
    return run
