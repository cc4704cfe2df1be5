"""What each tool is given: two graphs, and the files that make them run there."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from jinja2 import StrictUndefined, Template

from vpexp.config.schema import ExportConfig
from vpexp.deploy.graph import ExportInfo, build_model_info
from vpexp.deploy.onnx_format import write_graph
from vpexp.deploy.targets.graphs import (
    CvatDecoder,
    HwcEncoder,
    MapsDecoder,
    MapsEncoder,
    ModelApiDecoder,
    OfficialDecoder,
    SquareEncoder,
    ToolDecoder,
)
from vpexp.errors import ConfigError
from vpexp.files import write_text
from vpexp.inference.exported import DECODER, ENCODER
from vpexp.models.sam import Sam
from vpexp.registry import MODEL_API, OFFICIAL, VPEXP

EXPECTED_SIDE = 1024
"""The size that X-AnyLabeling, samexporter and CVAT take every SAM to have, pixels."""
EXPECTED_CHANNELS = 256
TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True, slots=True)
class Graphs:
    """The two modules of a target.

    Attributes:
        encoder: from an image to its embedding.
        decoder: from an embedding and prompts to masks.
    """

    encoder: SquareEncoder | HwcEncoder
    decoder: ToolDecoder | MapsDecoder | ModelApiDecoder


@dataclass(frozen=True, slots=True)
class Target:
    """What is written for a tool, into a folder of its name.

    Attributes:
        build: the modules of a model, with ``prompt.multimask``.
        then: what to do with the folder, in one line.
        encoder: place of the encoder's file, without suffix.
        files: the template of each further file, by its place in the folder; beside them there is a README.txt.
        takes_maps: whether the tool runs models whose embedding has several maps.
    """

    build: Callable[[Sam, ExportConfig, str], Graphs]
    then: str
    encoder: str = "encoder"
    files: Mapping[str, str] = field(default_factory=dict)
    takes_maps: bool = False


@dataclass(frozen=True, slots=True)
class WrittenTarget:
    """A target in its folder.

    Attributes:
        folder: where all of it lies.
        encoder: the encoder's file.
        decoder: the decoder's file.
        graphs: what they were made of.
    """

    folder: Path
    encoder: Path
    decoder: Path
    graphs: Graphs


def _build_official(sam: Sam, settings: ExportConfig, _: str) -> Graphs:
    return Graphs(SquareEncoder(sam), OfficialDecoder(sam, single_mask=settings.return_single_mask))


def _build_model_api(sam: Sam, _: ExportConfig, multimask: str) -> Graphs:
    return Graphs(SquareEncoder(sam), ModelApiDecoder(sam, multimask))


def _build_x_anylabeling(sam: Sam, _: ExportConfig, multimask: str) -> Graphs:
    if len(sam.interface.maps) > 1:
        return Graphs(MapsEncoder(sam), MapsDecoder(sam, multimask))
    encoder = HwcEncoder(sam, image_side=EXPECTED_SIDE, side=EXPECTED_SIDE)
    return Graphs(encoder, ToolDecoder(sam, multimask, side=EXPECTED_SIDE))


def _build_cvat(sam: Sam, _: ExportConfig, multimask: str) -> Graphs:
    if sam.image_size > EXPECTED_SIDE or sam.embedding_channels != EXPECTED_CHANNELS:
        raise ConfigError(
            f"export.target=cvat: CVAT's page takes embeddings of 256 x 64 x 64, at most 1024 pixels; this model has "
            f"{sam.embedding_channels} channels and {sam.image_size} pixels: label_studio takes any"
        )
    encoder = HwcEncoder(sam, image_side=sam.image_size, side=EXPECTED_SIDE)
    return Graphs(encoder, CvatDecoder(sam, multimask, side=EXPECTED_SIDE))


def _build_label_studio(sam: Sam, _: ExportConfig, multimask: str) -> Graphs:
    encoder = HwcEncoder(sam, image_side=sam.image_size, side=sam.image_size)
    return Graphs(encoder, ToolDecoder(sam, multimask, side=sam.image_size))


TARGETS: dict[str, Target] = {
    OFFICIAL: Target(_build_official, "run both files by onnxruntime as README.txt shows"),
    MODEL_API: Target(_build_model_api, "open both files by SAMVisualPrompter as README.txt shows"),
    "x_anylabeling": Target(
        _build_x_anylabeling,
        "in X-AnyLabeling choose Load Custom Model, and there segment_anything.yaml",
        files={"segment_anything.yaml": "segment_anything.yaml"},
        takes_maps=True,
    ),
    "cvat": Target(
        _build_cvat,
        "deploy the folder nuclio by nuctl, and put decoder.onnx among the assets of CVAT's page: README.txt",
        encoder="nuclio/encoder",
        files={
            "nuclio/function.yaml": "function.yaml",
            "nuclio/main.py": "cvat_main.py",
            "nuclio/model_handler.py": "model_handler.py",
        },
    ),
    "label_studio": Target(
        _build_label_studio,
        "pip install -r requirements.txt, then python _wsgi.py in the folder, and connect it to the project: README.txt",
        files={
            "model.py": "label_studio_model.py",
            "model_handler.py": "model_handler.py",
            "_wsgi.py": "label_studio_wsgi.py",
            "requirements.txt": "requirements.txt",
            "labeling.xml": "labeling.xml",
        },
    ),
}


def write_target(sam: Sam, folder: Path, info: ExportInfo, settings: ExportConfig) -> WrittenTarget:
    """Write what ``export.target`` names into a folder of its name.

    Args:
        sam: in eval mode, float32, on the CPU.
        folder: where the folder is made.
        info: what goes into the metadata.
        settings: the section ``export``.

    Raises:
        ConfigError: the tool cannot run this model, or the package onnx is not installed.
    """
    target, folder, maps = TARGETS[settings.target], folder / settings.target, len(sam.interface.maps)
    if maps > 1 and not target.takes_maps:
        able = [name for name, one in TARGETS.items() if one.takes_maps]
        raise ConfigError(
            f"export.target={settings.target} writes the one map of SAM's embedding, and {info.model_name} has {maps}: "
            f"export.target={' or '.join([VPEXP, *able])} writes them as {', '.join(sam.interface.names)}"
        )
    graphs = target.build(sam, settings, info.multimask)
    suffix = "xml" if settings.target == MODEL_API and settings.format == "openvino" else "onnx"
    written = WrittenTarget(folder, folder / f"{target.encoder}.{suffix}", folder / f"decoder.{suffix}", graphs)
    written.encoder.parent.mkdir(parents=True)
    precisions = {ENCODER: settings.precision, DECODER: settings.decoder_precision}
    write = _write_ir if suffix == "xml" else _write_onnx
    write(
        written,
        {part: build_model_info(info, part, precision) for part, precision in precisions.items()},
        {part: precision == "FP16" for part, precision in precisions.items()},
    )
    content = {
        "image_size": sam.image_size,
        "labels": list(info.labels) or ["object"],
        "maps": maps,
        "model_name": info.model_name,
        "name": re.sub(r"[^A-Za-z0-9._-]+", "_", f"vpexp_{info.model_name}_{info.source_hash[:8]}"),
        "single_mask": settings.return_single_mask,
        "suffix": suffix,
        "version": version("vpexp"),
    }
    for place, template in {**target.files, "README.txt": f"{settings.target}.txt"}.items():
        text = (TEMPLATES / template).read_text(encoding="utf-8")
        if not template.endswith(".py"):
            text = Template(text, undefined=StrictUndefined, trim_blocks=True).render(content) + "\n"
        write_text(folder / place, text)
    return written


def _write_ir(written: WrittenTarget, model_info: Mapping[str, dict[str, str]], halved: Mapping[str, bool]) -> None:
    """Write the encoder of vpexp's own IR, which takes images of any size, and the decoder."""
    from vpexp.deploy.openvino_format import build_encoder, convert_module, name_ports, save_graph

    decoder = written.graphs.decoder
    sam = decoder.sam
    shapes = [
        [1, sam.embedding_channels, *[sam.embedding_size] * 2],
        [-1, -1, 2],
        [-1, -1],
        [-1, 1, -1, -1],
        [-1, 1],
        [1, 2],
    ]
    graph = convert_module(decoder, shapes)
    name_ports(graph, tuple(decoder.inputs), tuple(decoder.outputs))
    graph.validate_nodes_and_infer_types()
    save_graph(build_encoder(sam), written.encoder, model_info[ENCODER], halve=halved[ENCODER])
    save_graph(graph, written.decoder, model_info[DECODER], halve=halved[DECODER])


def _write_onnx(written: WrittenTarget, model_info: Mapping[str, dict[str, str]], halved: Mapping[str, bool]) -> None:
    parts = ((ENCODER, written.encoder, written.graphs.encoder), (DECODER, written.decoder, written.graphs.decoder))
    for part, file, module in parts:
        write_graph(module, file, module.inputs, module.outputs, model_info[part], halve=halved[part])
