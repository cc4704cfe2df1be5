"""What tests of whole runs share: drawn images, made once, and a quiet configuration that trains in a second."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vpexp.config import compose_config
from vpexp.run import run
from vpexp.stages.context import StageResult

DEBUG = ("experiment=debug", "callbacks.progress=null", "optimizer.lr=1e-4", "stage.overlays=1")

RunDebug = Callable[..., StageResult]


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache folder of the whole session: images are drawn once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def run_debug(cache_dir: Path) -> RunDebug:
    """Run a stage on a handful of drawn images: ``run_debug(output_dir, "stage=test", "prompt=point")``."""

    def run_stage(output_dir: Path, *asked: str) -> StageResult:
        stage = [word for word in asked if word.startswith("stage=")]
        defaults = DEBUG if not stage else ("callbacks.progress=null",)
        overrides = [*defaults, f"paths.output_dir='{output_dir}'", f"paths.cache_dir='{cache_dir}'", *asked]
        return run(compose_config(overrides), overrides)

    return run_stage
