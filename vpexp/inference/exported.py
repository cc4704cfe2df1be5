"""Exported models on disk: which two files make one, and what they say of themselves.

An exported model is a pair of files in one folder, ``<name>_image_encoder`` and ``<name>_decoder``, each an OpenVINO IR
(``.xml`` with its ``.bin``) or an ONNX file. ``stage=export`` names them ``exported_model``, ``stage=ptq``
``optimized_model``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from vpexp.errors import CheckpointError
from vpexp.runtime import find_thread_limit

EXPORTED_NAME = "exported_model"
OPTIMIZED_NAME = "optimized_model"
ENCODER, DECODER = "image_encoder", "decoder"
FORMATS = {".xml": "openvino", ".onnx": "onnx"}
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 16, 4096  # of any model, pixels
MODEL_TYPES = {ENCODER: "sam_image_encoder", DECODER: "sam_decoder"}
ERRORS_ONLY = 3  # onnxruntime's level of severity


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """The two files of an exported model.

    Attributes:
        encoder: image in, embedding out.
        decoder: embedding and prompts in, masks out.
        format: openvino or onnx.
    """

    encoder: Path
    decoder: Path
    format: str

    @property
    def folder(self) -> Path:
        """Where both lie."""
        return self.decoder.parent

    @property
    def is_quantized(self) -> bool:
        """Whether ``stage=ptq`` wrote it."""
        return self.decoder.name.startswith(OPTIMIZED_NAME)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that belong to it."""
        if self.format == "onnx":
            return self.encoder, self.decoder
        return self.encoder, self.encoder.with_suffix(".bin"), self.decoder, self.decoder.with_suffix(".bin")

    @property
    def size_mb(self) -> float:
        """Size of all files in 10^6 bytes."""
        return sum(file.stat().st_size for file in self.files) / 1e6


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What an exported model says of itself.

    Attributes:
        image_size: side S of the model's square input, pixels.
        labels: class names of the data that it was trained on.
        model_name: name in the table of ``stage=models``.
        precision: ``FP32``, ``FP16``, ``INT8`` or the like.
        source_hash: hash of the weights that it was exported from, the same in both parts.
        multimask: which prompts it answers by the best of three masks: ``auto``, ``always`` or ``never``.
        tile: side of the tiles that it was trained on, pixels of the original image; None: it was shown whole images.
        tile_overlap: share of a tile's side that the next one has too.
    """

    image_size: int
    labels: tuple[str, ...]
    model_name: str
    precision: str
    source_hash: str
    multimask: str
    tile: int | None
    tile_overlap: float


def is_exported_reference(path: Path) -> bool:
    """Return whether a path is a file of an exported model, or a folder that holds one."""
    if path.is_dir():
        return bool(_find_bases(path))
    return path.suffix in (*FORMATS, ".bin")


def find_exported(path: Path) -> ExportedModel:
    """Find both parts of an exported model.

    Args:
        path: either of its files, or the folder.

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
    for part in (ENCODER, DECODER):
        if path.suffix in FORMATS and path.stem.endswith(f"_{part}"):
            return _pair(path.with_name(path.stem.removesuffix(part)), path.suffix)
    raise CheckpointError(
        f"{path} is no part of an exported model: its name must end with _{ENCODER} or _{DECODER}, and .xml or .onnx"
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
    """Build the pair of ``<base>image_encoder`` and ``<base>decoder``; both must be whole."""
    model = ExportedModel(
        encoder=base.with_name(f"{base.name}{ENCODER}{suffix}"),
        decoder=base.with_name(f"{base.name}{DECODER}{suffix}"),
        format=FORMATS[suffix],
    )
    for file in model.files:
        if not file.is_file():
            raise CheckpointError(
                f"{file} is missing: an exported model needs {', '.join(f.name for f in model.files)}"
            )
    return model


def read_metadata(model: ExportedModel) -> ModelMetadata:
    """Read what both parts say of themselves.

    Raises:
        CheckpointError: a part is damaged, is not vpexp's, has the other part's place, or is from another export.
    """
    found = {part: _read_info(file) for part, file in ((ENCODER, model.encoder), (DECODER, model.decoder))}
    for part, info in found.items():
        file = model.encoder if part == ENCODER else model.decoder
        if info.get("model_type") != MODEL_TYPES[part]:
            raise CheckpointError(
                f"{file} is no {part.replace('_', ' ')} of vpexp: its model_type is {info.get('model_type', 'not given')}"
            )
    parsed = {part: _parse(info, model.folder) for part, info in found.items()}
    encoder, decoder = parsed[ENCODER], parsed[DECODER]
    if encoder.source_hash != decoder.source_hash:
        raise CheckpointError(
            f"{model.encoder.name} and {model.decoder.name} in {model.folder} come from different exports: "
            "take both from one run of stage=export"
        )
    precision = (
        encoder.precision if encoder.precision == decoder.precision else f"{encoder.precision}+{decoder.precision}"
    )
    return replace(decoder, precision=precision)


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
            size, tuple(labels), info["model_name"], info["precision"], info["source_hash"], rule, tile, overlap
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
