"""What every stage is given, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from vpexp.config.schema import Config
from vpexp.runfolder import RunFolder
from vpexp.tracking.mlflow_run import MlflowRun


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage found.

    Attributes:
        metrics: final numbers by name, ``test/f1-score``; NaN where a number has no meaning.
        artifacts: files made, by name.
        folder: the run's folder.
        details: what does not fit a number by name (per-class tables, baselines); goes into ``metrics.json``.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    artifacts: dict[str, Path] = field(default_factory=dict)
    folder: Path | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunContext:
    """A run that is under way.

    Attributes:
        cfg: the complete configuration.
        folder: where its files lie.
        tracker: its record in MLflow.
        run_child: runs another stage as a whole run of its own, ``run_child(cfg, "test_torch")``: in that folder inside
            this run's, and as a child of this run in MLflow.
    """

    cfg: DictConfig
    folder: RunFolder
    tracker: MlflowRun
    run_child: Callable[[DictConfig, str], StageResult]

    @cached_property
    def settings(self) -> Config:
        """The configuration as the schema declares it."""
        settings: Any = OmegaConf.to_object(self.cfg)
        return cast("Config", settings)

    @property
    def output_dir(self) -> Path:
        """Where runs lie."""
        return Path(self.cfg.paths.output_dir).expanduser()

    @property
    def cache_dir(self) -> Path:
        """Where generated images, annotations and embeddings lie."""
        return Path(self.cfg.paths.cache_dir).expanduser()

    @property
    def weights_dir(self) -> Path:
        """Where downloaded weights lie."""
        return self.cache_dir / "weights"
