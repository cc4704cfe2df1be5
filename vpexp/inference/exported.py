"""Exported models on disk: which files make one, and what they say of themselves.

An exported model is graphs in one folder, ``<name>_image_encoder`` and ``<name>_decoder``, each an OpenVINO IR
(``.xml`` with its ``.bin``) or an ONNX file. One that finds objects without prompts has ``<name>_prompter`` beside them, and where
it names several classes ``<name>_classifier``. ``stage=export`` names them ``exported_model``, ``stage=ptq``
``optimized_model``.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from vpexp.data.interface import SAM, Interface
from vpexp.errors import CheckpointError
from vpexp.runtime import find_thread_limit

EXPORTED_NAME = "exported_model"
OPTIMIZED_NAME = "optimized_model"
ENCODER, DECODER = "image_encoder", "decoder"
PROMPTER, CLASSIFIER = "prompter", "classifier"
FORMATS = {".xml": "openvino", ".onnx": "onnx"}
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 16, 4096  # of any model, pixels
MODEL_TYPES = {
    ENCODER: "sam_image_encoder",
    DECODER: "sam_decoder",
    PROMPTER: "vpexp_prompter",
    CLASSIFIER: "vpexp_classifier",
}
ERRORS_ONLY = 3  # onnxruntime's level of severity


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """The files of an exported model; of an IR the ``.xml``.

    Attributes:
        encoder: image in, embedding out.
        decoder: embedding and prompts in, masks out.
        format: openvino or onnx.
        prompter: embedding in, boxes of objects out; None: it answers prompts only.
        classifier: masks with the pixels around them in, classes out; None: there is one class, or no prompter.
    """

    encoder: Path
    decoder: Path
    format: str
    prompter: Path | None = None
    classifier: Path | None = None

    @classmethod
    def plan(cls, base: Path, suffix: str, parts: Iterable[str]) -> "ExportedModel":
        """Name the files of some parts: ``<base><part><suffix>``."""
        files = {part: base.with_name(f"{base.name}{part}{suffix}") for part in parts}
        return cls(files[ENCODER], files[DECODER], FORMATS[suffix], files.get(PROMPTER), files.get(CLASSIFIER))

    @property
    def parts(self) -> dict[str, Path]:
        """The file of each part that it has; of an IR the ``.xml``."""
        named = {ENCODER: self.encoder, DECODER: self.decoder, PROMPTER: self.prompter, CLASSIFIER: self.classifier}
        return {part: file for part, file in named.items() if file is not None}

    @property
    def folder(self) -> Path:
        """Where all of them lie."""
        return self.decoder.parent

    @property
    def is_quantized(self) -> bool:
        """Whether ``stage=ptq`` wrote it."""
        return self.decoder.name.startswith(OPTIMIZED_NAME)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that belong to it."""
        return tuple(file for part in self.parts.values() for file in list_files(part))

    @property
    def size_mb(self) -> float:
        """Size of all files in 10^6 bytes."""
        return sum(file.stat().st_size for file in self.files) / 1e6

    def move_to(self, folder: Path) -> "ExportedModel":
        """Move all files to another folder of the same disk, and give the model that is there."""
        for file in self.files:
            file.replace(folder / file.name)
        base = folder / self.decoder.stem.removesuffix(DECODER)
        return self.plan(base, self.decoder.suffix, self.parts)


def list_files(part: Path) -> tuple[Path, ...]:
    """List the files of a part: of an IR the weights too."""
    return (part,) if part.suffix == ".onnx" else (part, part.with_suffix(".bin"))


@dataclass(frozen=True, slots=True)
class InstanceMetadata:
    """What an exported model says of how it finds and names objects; as in ``InstanceModel``.

    Attributes:
        labels: class names.
        threshold: lowest score of a mask that is kept.
        max_overlap: of masks whose IoU is higher the better one is kept.
        is_classified: it has a classifier.
    """

    labels: tuple[str, ...]
    threshold: float
    max_overlap: float
    is_classified: bool


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What an exported model says of itself.

    Attributes:
        image_size: side S of the model's square input, pixels.
        labels: class names of the data that it was trained on.
        model_name: name in the table of ``stage=models``.
        precision: ``FP32``, ``FP16``, ``INT8`` or the like.
        source_hash: hash of the weights that it was exported from, the same in all parts.
        multimask: which prompts it answers by the best of three masks: ``auto``, ``always`` or ``never``.
        tile: side of the tiles that it was trained on, pixels of the original image; None: it was shown whole images.
        tile_overlap: share of a tile's side that the next one has too.
        instances: how it finds and names objects; None: it answers prompts only.
        interface: how the model's family takes images and answers.
    """

    image_size: int
    labels: tuple[str, ...]
    model_name: str
    precision: str
    source_hash: str
    multimask: str
    tile: int | None
    tile_overlap: float
    instances: InstanceMetadata | None = None
    interface: Interface = SAM


def is_exported_reference(path: Path) -> bool:
    """Return whether a path is a file of an exported model, or a folder that holds one."""
    if path.is_dir():
        return bool(_find_bases(path))
    return path.suffix in (*FORMATS, ".bin")


def find_exported(path: Path) -> ExportedModel:
    """Find the parts of an exported model.

    Args:
        path: one of its files, or the folder.

    Raises:
        CheckpointError: a file is missing, or the folder holds none or several models.
    """
    path = path.expanduser()
    if path.suffix == ".bin":
        path = path.with_suffix(".xml")
    if path.is_dir():
        return _find_in_folder(path.resolve())
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    path = path.parent.resolve() / path.name  # a link keeps its own name, and its own neighbour
    for part in MODEL_TYPES:
        if path.suffix in FORMATS and path.stem.endswith(f"_{part}"):
            return _pair(path.with_name(path.stem.removesuffix(part)), path.suffix)
    raise CheckpointError(
        f"{path} is no part of an exported model: its name must end with _{', _'.join(MODEL_TYPES)}, and .xml or .onnx"
    )


def _find_in_folder(folder: Path) -> ExportedModel:
    bases = _find_bases(folder)
    if not bases:
        raise CheckpointError(f"{folder} holds no exported model (looked for *_{DECODER}.xml and *_{DECODER}.onnx)")
    if len(bases) > 1:
        names = ", ".join(sorted(f"{base.name}{DECODER}{suffix}" for base, suffix in bases))
        raise CheckpointError(f"{folder} holds several exported models: name one of {names}")
    return _pair(*bases.pop())


def _find_bases(folder: Path) -> set[tuple[Path, str]]:
    """Find what names in a folder begin with, up to the part's name, and their suffix."""
    return {
        (file.with_name(file.stem.removesuffix(part)), suffix)
        for suffix in FORMATS
        for part in (ENCODER, DECODER)
        for file in folder.glob(f"*_{part}{suffix}")
    }


def _pair(base: Path, suffix: str) -> ExportedModel:
    """Build the model whose files begin with ``base``; image encoder and decoder must be there, and all parts be whole."""
    whole = ExportedModel.plan(base, suffix, MODEL_TYPES)
    found = {part for part, file in whole.parts.items() if any(one.is_file() for one in list_files(file))}
    model = ExportedModel.plan(base, suffix, {ENCODER, DECODER} | found)
    for file in model.files:
        if not file.is_file():
            raise CheckpointError(
                f"{file} is missing: an exported model needs {', '.join(f.name for f in model.files)}"
            )
    return model


def read_metadata(model: ExportedModel) -> ModelMetadata:
    """Read what the parts say of themselves.

    Raises:
        CheckpointError: a part is damaged, is not vpexp's, has another part's place, is from another export, or is missing.
    """
    found = {part: _read_info(file) for part, file in model.parts.items()}
    for part, info in found.items():
        if info.get("model_type") != MODEL_TYPES[part]:
            raise CheckpointError(
                f"{model.parts[part]} is no {part.replace('_', ' ')} of vpexp: "
                f"its model_type is {info.get('model_type', 'not given')}"
            )
    parsed = {part: _parse(info, model.folder) for part, info in found.items()}
    encoder, decoder = parsed[ENCODER], parsed[DECODER]
    for part, metadata in parsed.items():
        if metadata.source_hash != decoder.source_hash:
            raise CheckpointError(
                f"{model.parts[part].name} and {model.decoder.name} in {model.folder} come from different exports: "
                "take both from one run of stage=export"
            )
    precision = (
        encoder.precision if encoder.precision == decoder.precision else f"{encoder.precision}+{decoder.precision}"
    )
    instances = parsed[PROMPTER].instances if PROMPTER in parsed else None
    if (instances is not None and instances.is_classified) != (CLASSIFIER in parsed):
        missing = PROMPTER if CLASSIFIER in parsed else CLASSIFIER
        name = model.decoder.name.replace(DECODER, missing)
        raise CheckpointError(
            f"{model.folder / name} is missing: copy all files of one run of stage=export or stage=ptq"
        )
    return replace(decoder, precision=precision, instances=instances)


def _read_info(file: Path) -> Mapping[str, str]:
    return _read_onnx_info(file) if file.suffix == ".onnx" else _read_ir_info(file)


def _read_ir_info(file: Path) -> dict[str, str]:
    """Read ``rt_info/model_info`` of an IR; OpenVINO itself is not needed for it."""
    try:
        root = ET.parse(file).getroot()  # noqa: S314 (a model is code that will run: as trusted as its user)
    except (ET.ParseError, LookupError, OSError, ValueError) as error:  # of an encoding too
        raise CheckpointError(f"{file} cannot be read as an OpenVINO IR: {error}") from error
    section = root.find("rt_info/model_info")
    return {} if section is None else {entry.tag: entry.get("value", "") for entry in section}


def _read_onnx_info(file: Path) -> dict[str, str]:
    prefix = "model_info "  # as Model API writes nested keys
    return {
        key.removeprefix(prefix): value for key, value in read_onnx_properties(file).items() if key.startswith(prefix)
    }


def _parse(info: Mapping[str, str], folder: Path) -> ModelMetadata:
    try:
        labels, size = json.loads(info["label_names"]), int(info["image_size"])
        rule = info.get("multimask", "never")  # older versions exported the one mask of token 0
        tile, overlap = (int(info["tile"]) if "tile" in info else None), float(info.get("tile_overlap", 0.25))
        metadata = ModelMetadata(
            size,
            tuple(labels),
            info["model_name"],
            info["precision"],
            info["source_hash"],
            rule,
            tile,
            overlap,
            _parse_instances(info, tuple(labels)) if info["model_type"] == MODEL_TYPES[PROMPTER] else None,
            Interface.parse(info),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"the exported model in {folder} was not written by vpexp, or changed since: {error} in its model_info"
        ) from error
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise CheckpointError(
            f"the exported model in {folder} changed since vpexp wrote it: label_names holds no names"
        )
    if metadata.multimask not in ("auto", "always", "never"):
        raise CheckpointError(
            f"the exported model in {folder} changed since vpexp wrote it: multimask is {metadata.multimask}"
        )
    if not MIN_IMAGE_SIZE <= size <= MAX_IMAGE_SIZE:
        raise CheckpointError(f"the exported model in {folder} changed since vpexp wrote it: image_size is {size}")
    return metadata


def _parse_instances(info: Mapping[str, str], labels: tuple[str, ...]) -> InstanceMetadata:
    """Read how objects are found; KeyError or ValueError where that was changed."""
    threshold, max_overlap = float(info["threshold"]), float(info["max_overlap"])
    if not (labels and 0 <= threshold <= 1 and 0 <= max_overlap <= 1):
        raise ValueError(f"threshold={threshold} max_overlap={max_overlap} labels={len(labels)}")
    return InstanceMetadata(labels, threshold, max_overlap, is_classified=info["classifier"] == "True")


def read_onnx_properties(file: Path) -> dict[str, str]:
    """Read the metadata of an ONNX file."""
    return dict(_open_session(file, 1, optimize=False).get_modelmeta().custom_metadata_map)


def _open_session(file: Path, threads: int | None, *, optimize: bool = True) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise CheckpointError(f"{file} needs onnxruntime: pip install 'vpexp[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    threads = threads or find_thread_limit()
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base
        line = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{file} cannot be read by onnxruntime: {line}") from error
