"""What vpexp knows by name: stages and data formats, each named here alone, with where it is defined.

Models are in ``vpexp/models/registry.py``. Something of one's own needs no entry: its class or function is the ``_target_`` of a
group in a ``--config-dir`` (docs/extending.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vpexp.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Stage:
    """What holds for a stage; its work is ``run(context)`` in ``vpexp/stages/<name>.py``, or ``stage._target_``.

    Attributes:
        takes_exported: its checkpoint may be an exported model.
        inherits: it takes model, data and prompt from the run that made its ``.ckpt``.
        from_source: it works on the images of ``source``.
        serves: it makes a model that MLflow can serve.
        recorded: it has a run folder and a record.
    """

    takes_exported: bool = False
    inherits: bool = False
    from_source: bool = False
    serves: bool = False
    recorded: bool = True


@dataclass(frozen=True, slots=True)
class DataFormat:
    """A data format.

    Attributes:
        reader: where its subclass of ``vpexp.data.readers.base.Reader`` is defined.
        writer: where the function is defined that writes it.
        overlaps: whether masks that it holds may overlap.
    """

    reader: str
    writer: str
    overlaps: bool = True


STAGES = {
    "data": Stage(),
    "train": Stage(),
    "test": Stage(takes_exported=True, inherits=True),
    "export": Stage(inherits=True, serves=True),
    "ptq": Stage(takes_exported=True, serves=True),
    "predict": Stage(takes_exported=True, inherits=True, from_source=True),
    "demo": Stage(takes_exported=True, inherits=True, from_source=True),
    "pipeline": Stage(serves=True),
    "models": Stage(recorded=False),
    "sync": Stage(recorded=False),
}
VPEXP, OFFICIAL, MODEL_API = "vpexp", "official", "model_api"
EXPORT_TARGETS = (VPEXP, OFFICIAL, MODEL_API, "x_anylabeling", "cvat", "label_studio")
FORMATS = {
    "coco": DataFormat("vpexp.data.readers.coco.CocoReader", "vpexp.data.writers.json_files.write_coco"),
    "voc": DataFormat("vpexp.data.readers.voc.VocReader", "vpexp.data.writers.label_images.write_voc", overlaps=False),
    "datumaro": DataFormat(
        "vpexp.data.readers.datumaro.DatumaroReader", "vpexp.data.writers.json_files.write_datumaro"
    ),
    "common_semantic_segmentation": DataFormat(
        "vpexp.data.readers.semantic.SemanticReader", "vpexp.data.writers.label_images.write_semantic", overlaps=False
    ),
}


def get_stage(name: str) -> Stage:
    """Return what holds for a stage; one of the user's own is recorded, and no more."""
    return STAGES.get(name, Stage())


def load_target(key: str, target: str) -> Any:
    """Import what a key of the configuration names: ``mine.MyReader``.

    Raises:
        ConfigError: it cannot be imported.
    """
    from hydra.utils import get_object

    try:
        return get_object(target)
    except Exception as error:  # whatever the module does when it is imported
        raise ConfigError(f"{key}={target} cannot be imported: {get_cause(error)}") from error


def build_target(key: str, options: Mapping[str, Any], kind: type | None = None) -> Any:
    """Build what a free section of the configuration describes: its ``_target_``, called with the other keys.

    Raises:
        ConfigError: it cannot be imported, does not take the options, or is not of that kind.
    """
    from hydra.utils import instantiate

    try:
        built = instantiate(dict(options), _convert_="all")
    except Exception as error:
        raise ConfigError(f"{key}: {get_cause(error)}") from error
    if kind is not None and not isinstance(built, kind):
        raise ConfigError(f"{key}: {type(built).__name__} is no {kind.__name__}, see docs/extending.md")
    return built


def get_cause(error: BaseException) -> str:
    """Take the first line of what an error came from: Hydra wraps it in several lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
