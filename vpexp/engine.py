"""The notebook's door: the same configuration, the same ``run``."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import EllipsisType
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from vpexp.config import compose_config, load_config
from vpexp.config.compose import quote_value
from vpexp.config.explain import explain, format_suggestion, list_keys
from vpexp.config.trust import CONFIG_DIR, list_own_targets, refuse_foreign
from vpexp.data.images import read_image
from vpexp.data.tiles import Tiling
from vpexp.errors import ConfigError
from vpexp.inference.instances import Instances, find_instances
from vpexp.inference.predictor import Prediction, Predictor, build_prompts, check_image, check_places
from vpexp.inference.tiled import decode_tiles
from vpexp.resolve import complete
from vpexp.run import run
from vpexp.runtime import quiet_libraries
from vpexp.stages.shared.context import StageResult
from vpexp.stages.shared.dataset import build_tiling
from vpexp.stages.shared.model import load_stage_model

CheckpointLike = str | PathLike[str] | StageResult | EllipsisType | None
ImageLike = str | PathLike[str] | Image.Image | NDArray[np.uint8]


class Engine:
    """Fine-tunes, tests, exports and quantizes from Python.

        engine = Engine(model="sam_tiny_vit", data_root="data/wgisd", work_dir="outputs")
        engine.train(max_epochs=10)
        engine.test()

    Every stage takes further settings as ``overrides={"data.batch_size": 1}`` or ``**{"data.batch_size": 1}``.

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
        self._predictor: tuple[str, Predictor] | None = None
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
        engine._predictor = None  # noqa: SLF001 (an engine of this class)
        return engine

    def data(self, *, overrides: Mapping[str, Any] | None = None, **settings: Any) -> StageResult:
        """Survey the data set: ``result.metrics["data/leaks"]``, ``result.artifacts["report"]``."""
        return self._run({"stage": "data"} | dict(overrides or {}) | settings)

    def train(
        self,
        *,
        max_epochs: int | None = None,
        lr: float | None = None,
        batch_size: int | None = None,
        overrides: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> StageResult:
        """Fine-tune; ``result.metrics["val/f1-score"]``, ``result.artifacts["best_checkpoint"]``, ``result.plot()``.

        ``lr`` is ``optimizer.lr``, ``batch_size`` is ``data.batch_size``.
        """
        named = {"trainer.max_epochs": max_epochs, "optimizer.lr": lr, "data.batch_size": batch_size}
        chosen = {name: value for name, value in named.items() if value is not None}
        return self._run({"stage": "train"} | chosen | dict(overrides or {}) | settings)

    def test(
        self, *, checkpoint: CheckpointLike = ..., overrides: Mapping[str, Any] | None = None, **settings: Any
    ) -> StageResult:
        """Test a checkpoint or an exported model; ``checkpoint=None`` tests the pretrained model.

        Left out, it is what was trained last; after ``from_config`` of a test, what that one tested. What ``train``,
        ``export`` and ``ptq`` return will do as well.
        """
        return self._run(_start_settings("test", checkpoint) | dict(overrides or {}) | settings)

    def export(
        self,
        *,
        checkpoint: CheckpointLike = ...,
        format: str | None = None,  # noqa: A002 (the configuration's own word)
        overrides: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> StageResult:
        """Export what was trained last: ``result.artifacts["image_encoder"]`` and ``["decoder"]``.

        ``format`` is openvino (the default), onnx or sam; ``checkpoint`` as for ``test``.
        """
        start = _start_settings("export", checkpoint) | ({} if format is None else {"export.format": format})
        return self._run(start | dict(overrides or {}) | settings)

    def ptq(
        self, *, checkpoint: CheckpointLike = ..., overrides: Mapping[str, Any] | None = None, **settings: Any
    ) -> StageResult:
        """Quantize what was exported last to INT8; artifacts as of ``export``."""
        return self._run(_start_settings("ptq", checkpoint) | dict(overrides or {}) | settings)

    @overload
    def predict(
        self,
        source: Sequence[ImageLike],
        *,
        boxes: Any = ...,
        points: Any = ...,
        point_labels: Any = ...,
        **settings: Any,
    ) -> list[Prediction] | list[Instances]: ...
    @overload
    def predict(self, source: Image.Image | NDArray[np.uint8], **settings: Any) -> Instances: ...
    @overload
    def predict(
        self, source: ImageLike, *, boxes: Any, points: Any = ..., point_labels: Any = ..., **settings: Any
    ) -> Prediction: ...
    @overload
    def predict(self, source: ImageLike, *, points: Any, point_labels: Any = ..., **settings: Any) -> Prediction: ...
    @overload
    def predict(
        self, source: str | PathLike[str] | None = ..., prompts: str | PathLike[str] | None = ..., **settings: Any
    ) -> StageResult: ...
    def predict(
        self,
        source: ImageLike | Sequence[ImageLike] | None = None,
        prompts: str | PathLike[str] | None = None,
        *,
        boxes: Any = None,
        points: Any = None,
        point_labels: Any = None,
        checkpoint: CheckpointLike = ...,
        overrides: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Prediction | list[Prediction] | Instances | list[Instances] | StageResult:
        """Segment images without annotation.

        In memory where boxes or points are given, and where the source is no path but pixels, in which the model then finds
        objects by itself; files else, as ``stage=predict`` does.

            engine.predict("a.jpg", boxes=[[10, 20, 90, 80]]).masks
            engine.predict(pixels).labels
            engine.predict("photos/").artifacts["predictions"]

        Args:
            source: an image: a PIL image, an RGB array uint8 [H, W, 3], or, with boxes or points, a path; or a list of images.
                Otherwise an image file, a folder, or a pattern as ``photos/*.jpg``; None for ``prompts="dataset"``.
            prompts: for files: ``auto``, ``grid``, a JSON file of boxes and points by image, or ``dataset``: the boxes of the data
                set; None: ``auto`` where the model has learnt to find objects, else ``grid``.
            boxes: [N, 4], (x1, y1, x2, y2) in pixels of the image; for a list of images, one such array for each.
            points: [N, P, 2], (x, y), with or without boxes; N objects of P points each. For a list as ``boxes``.
            point_labels: [N, P], 1 inside the object, 0 outside; left out, all 1.
            checkpoint: as for ``test``.
            overrides: further settings, as ``{"output.format": "coco"}``, which makes a data set of the masks.
            **settings: the same, as ``**{"output.format": "coco"}``.

        Returns:
            With boxes or points the masks of the image, or a list with those of each; of pixels alone the objects with their
            classes and scores, or a list with those of each image; otherwise what the stage found.

        Raises:
            ConfigError: pixels are given alone, and the model has not learnt to find objects.
            ValueError: the image, boxes or points are no such thing; the message names them.
        """
        changed = dict(overrides or {}) | settings
        if boxes is None and points is None:
            if source is None or isinstance(source, str | PathLike):
                asked = {"source": source and str(source), "prompts": prompts and str(prompts)}
                return self._run(_start_settings("predict", checkpoint) | asked | changed)
            predictor, tiling, score = self._load_predictor(checkpoint, changed)
            if isinstance(source, np.ndarray | Image.Image):
                return _find(predictor, tiling, score, source)
            return [_find(predictor, tiling, score, image) for image in source]
        if source is None:
            raise ValueError("boxes and points need an image, or a list of images")
        predictor, tiling, _ = self._load_predictor(checkpoint, changed)
        given = {"boxes": boxes, "points": points, "point_labels": point_labels}
        if isinstance(source, str | PathLike | np.ndarray | Image.Image):
            return _predict(predictor, tiling, source, **given)
        count = len(source)
        lists = {name: [None] * count if values is None else list(values) for name, values in given.items()}
        for name, values in lists.items():
            if len(values) != count:
                raise ValueError(
                    f"{name} are given for {len(values)} of {count} images: one array for each image of the list"
                )
        own = [{name: values[place] for name, values in lists.items()} for place in range(count)]
        return [_predict(predictor, tiling, image, **prompts) for image, prompts in zip(source, own, strict=True)]

    def demo(
        self,
        source: str | PathLike[str],
        *,
        checkpoint: CheckpointLike = ...,
        overrides: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> StageResult:
        """Serve the labelling page until it is interrupted: ``result.artifacts["annotations"]``.

        Args:
            source: an image, a folder, or a pattern as ``photos/*.jpg``.
            checkpoint: as for ``test``.
            overrides: further settings, ``{"demo.labels": ["berry"]}``.
            **settings: the same, as ``**{"demo.labels": ["berry"]}``.
        """
        start = _start_settings("demo", checkpoint) | {"source": str(source)}
        return self._run(start | dict(overrides or {}) | settings)

    def pipeline(self, *, overrides: Mapping[str, Any] | None = None, **settings: Any) -> StageResult:
        """Train, test, export, quantize and test again; ``result.artifacts["report"]`` compares them."""
        return self._run({"stage": "pipeline"} | dict(overrides or {}) | settings)

    def _load_predictor(
        self, checkpoint: CheckpointLike, settings: Mapping[str, Any]
    ) -> tuple[Predictor, Tiling | None, float | None]:
        """Load what predicts, unless it is the one of the call before; also return how images are cut, and ``auto_score``."""
        quiet_libraries()
        cfg, _ = complete(*self._compose(_start_settings("test", checkpoint) | dict(settings)))
        files = [] if cfg.checkpoint is None else [cfg.checkpoint, Path(cfg.checkpoint).stat().st_mtime_ns]
        key = str([*files, cfg.model, cfg.prompt.multimask, cfg.trainer])
        if self._predictor is None or self._predictor[0] != key:
            self._predictor = key, load_stage_model(cfg).predictor
        data: Any = OmegaConf.to_object(cfg.data)
        return self._predictor[1], build_tiling(data), cfg.predict.auto_score

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


def _predict(
    predictor: Predictor, tiling: Tiling | None, image: ImageLike, *, boxes: Any, points: Any, point_labels: Any
) -> Prediction:
    """Decode the prompts of one image, in its tiles where it is cut."""
    image = _read_pixels(image)
    if tiling is None:
        return predictor.decode(predictor.embed(image), boxes=boxes, points=points, point_labels=point_labels)
    check_image(image)
    prompts = build_prompts(boxes, points, point_labels)
    check_places(prompts, image.shape[:2])
    return decode_tiles(predictor, image, prompts, tiling)


def _find(predictor: Predictor, tiling: Tiling | None, score: float | None, image: ImageLike) -> Instances:
    """Find the objects of one image."""
    if predictor.instances is None:
        raise ConfigError(
            "an image alone needs a model that has learnt to find objects: train with prompter=default, or give boxes or points"
        )
    image_HW3 = _read_pixels(image)
    check_image(image_HW3)
    _, found = find_instances(predictor, image_HW3, tiling, min_score=score)
    return Instances(found.masks, (image_HW3.shape[0], image_HW3.shape[1]))


def _read_pixels(image: ImageLike) -> NDArray[np.uint8]:
    if isinstance(image, str | PathLike):
        return read_image(Path(image))
    return np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else image
