"""The notebook's door: the same configuration, the same ``run``."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import EllipsisType
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vpexp.config import compose_config, load_config
from vpexp.config.compose import quote_value
from vpexp.config.explain import explain, format_suggestion, list_keys
from vpexp.config.trust import CONFIG_DIR, list_own_targets, refuse_foreign
from vpexp.errors import ConfigError
from vpexp.run import run
from vpexp.stages.shared.context import StageResult

CheckpointLike = str | PathLike[str] | StageResult | EllipsisType | None


class Engine:
    """Fine-tunes, tests, exports and quantizes from Python.

        engine = Engine(model="sam_tiny_vit", data_root="data/wgisd", work_dir="outputs")
        engine.train(max_epochs=10)
        engine.test()

    Args:
        model: an option of the group ``model``.
        data_root: folder of the data set.
        data: an option of the group ``data``; ``auto`` where only ``data_root`` is given.
        work_dir: where runs lie.
        config_dir: a folder with configuration groups of your own.
        overrides: further settings, ``{"data.batch_size": 1}``.

    Raises:
        ConfigError: a wrong key, option or type, with the closest right name.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        data_root: str | PathLike[str] | None = None,
        data: str | None = None,
        work_dir: str | PathLike[str] = "outputs",
        config_dir: str | PathLike[str] | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        settings: dict[str, Any] = {}
        if model is not None:
            settings["model"] = model
        if data is not None or data_root is not None:
            settings["data"] = data or "auto"
        if data_root is not None:
            settings["data.root"] = str(data_root)
        settings["paths.output_dir"] = str(work_dir)
        self.settings = settings | dict(overrides or {})
        self.config_dir = None if config_dir is None else Path(config_dir)
        self.saved: DictConfig | None = None
        self.source = Path()
        self._compose({})

    @classmethod
    def from_config(cls, path: str | PathLike[str]) -> "Engine":
        """Take the configuration of an earlier run: its ``config.yaml``.

        A class or function of your own that it names is repeated in ``overrides``: ``{"optimizer._target_": "mine.Lion"}``.
        """
        engine = cls.__new__(cls)
        engine.saved = load_config(Path(path))
        engine.source = Path(path)
        engine.settings = {}
        engine.config_dir = None
        return engine

    def data(self, *, overrides: Mapping[str, Any] | None = None) -> StageResult:
        """Survey the data set: ``result.metrics["data/leaks"]``, ``result.artifacts["report"]``."""
        return self._run({"stage": "data"} | dict(overrides or {}))

    def train(self, *, max_epochs: int | None = None, overrides: Mapping[str, Any] | None = None) -> StageResult:
        """Fine-tune; ``result.metrics["val/f1-score"]``, ``result.artifacts["best_checkpoint"]``."""
        settings: dict[str, Any] = {"stage": "train"}
        if max_epochs is not None:
            settings["trainer.max_epochs"] = max_epochs
        return self._run(settings | dict(overrides or {}))

    def test(self, *, checkpoint: CheckpointLike = ..., overrides: Mapping[str, Any] | None = None) -> StageResult:
        """Test a checkpoint or an exported model; ``checkpoint=None`` tests the model as it came.

        Left out, it is what was trained last; after ``from_config`` of a test, what that one tested. What ``train``,
        ``export`` and ``ptq`` return will do as well.
        """
        return self._run(_start_settings("test", checkpoint) | dict(overrides or {}))

    def export(
        self,
        *,
        checkpoint: CheckpointLike = ...,
        format: str | None = None,  # noqa: A002 (the configuration's own word)
        overrides: Mapping[str, Any] | None = None,
    ) -> StageResult:
        """Export what was trained last: ``result.artifacts["image_encoder"]`` and ``["decoder"]``.

        ``format`` is openvino (the default), onnx or sam; ``checkpoint`` as for ``test``.
        """
        settings = _start_settings("export", checkpoint)
        if format is not None:
            settings["export.format"] = format
        return self._run(settings | dict(overrides or {}))

    def ptq(self, *, checkpoint: CheckpointLike = ..., overrides: Mapping[str, Any] | None = None) -> StageResult:
        """Quantize what was exported last to INT8; artifacts as of ``export``."""
        return self._run(_start_settings("ptq", checkpoint) | dict(overrides or {}))

    def predict(
        self,
        source: str | PathLike[str] | None = None,
        prompts: str | PathLike[str] = "grid",
        *,
        checkpoint: CheckpointLike = ...,
        overrides: Mapping[str, Any] | None = None,
    ) -> StageResult:
        """Segment images without annotation: ``result.artifacts["predictions"]``.

        Args:
            source: an image, a folder, or a pattern as ``photos/*.jpg``; None for ``prompts="dataset"``.
            prompts: a JSON file of boxes and points by image, ``grid``, or ``dataset``: the boxes of the data set.
            checkpoint: as for ``test``.
            overrides: further settings, as ``{"output.format": "coco"}``, which makes a data set of the masks.
        """
        images = None if source is None else str(source)
        settings = _start_settings("predict", checkpoint) | {"source": images, "prompts": str(prompts)}
        return self._run(settings | dict(overrides or {}))

    def demo(
        self,
        source: str | PathLike[str],
        *,
        checkpoint: CheckpointLike = ...,
        overrides: Mapping[str, Any] | None = None,
    ) -> StageResult:
        """Serve the labelling page until it is interrupted: ``result.artifacts["annotations"]``.

        Args:
            source: an image, a folder, or a pattern as ``photos/*.jpg``.
            checkpoint: as for ``test``.
            overrides: further settings, ``{"demo.labels": ["berry"]}``.
        """
        return self._run(_start_settings("demo", checkpoint) | {"source": str(source)} | dict(overrides or {}))

    def pipeline(self, *, overrides: Mapping[str, Any] | None = None) -> StageResult:
        """Train, test, export, quantize and test again; ``result.artifacts["report"]`` compares them."""
        return self._run({"stage": "pipeline"} | dict(overrides or {}))

    def _run(self, settings: Mapping[str, Any]) -> StageResult:
        cfg, overrides = self._compose(settings)
        return run(cfg, overrides)

    def _compose(self, settings: Mapping[str, Any]) -> tuple[DictConfig, list[str]]:
        if self.saved is not None:
            cfg = self._change_saved(self.saved, settings)
            refuse_foreign(cfg, list_own_targets(settings), self.source)
            return cfg, list(map(str, cfg))  # a saved configuration is complete
        overrides = [f"{name}={quote_value(value)}" for name, value in (self.settings | dict(settings)).items()]
        cfg = compose_config(overrides, self.config_dir)
        return cfg, overrides if self.config_dir is None else [*overrides, f"{CONFIG_DIR}{self.config_dir.absolute()}"]

    def _change_saved(self, saved: DictConfig, settings: Mapping[str, Any]) -> DictConfig:
        """Lay settings over a saved configuration, in which the stage is a section of its own."""
        stage = str(settings["stage"])
        cfg = saved.copy()
        if stage != saved.stage.name:
            fresh = compose_config([f"stage={stage}"])
            cfg.stage, cfg.checkpoint = fresh.stage, fresh.checkpoint
            cfg.tracking.register = None  # what the saved run made was registered
        for name, value in settings.items():
            if name == "stage":
                continue
            if OmegaConf.select(cfg, name, default=_MISSING) is _MISSING:
                raise ConfigError(f"unknown key '{name}'{format_suggestion(name, list_keys(cfg))}")
            try:
                OmegaConf.update(cfg, name, value)
            except OmegaConfBaseException as error:
                raise ConfigError(explain(error, (), ())) from error
        return cfg


_MISSING = object()


def _start_settings(stage: str, checkpoint: CheckpointLike) -> dict[str, Any]:
    """The stage, and what it starts from where that is given."""
    if isinstance(checkpoint, EllipsisType):
        return {"stage": stage}
    if isinstance(checkpoint, StageResult):
        checkpoint = checkpoint.folder
    return {"stage": stage, "checkpoint": None if checkpoint is None else str(checkpoint)}
