"""Exported models, run by OpenVINO (in full or half precision, and INT8) or by ONNX Runtime: numpy in, numpy out.

Each ``openvino.Core`` gives the thread that uses its CPU plugin a stack for signal handlers, and takes it away when it goes.
Where two of them do not go in the reverse order of their coming, the stack that is put back is one that is gone, and the next
signal (a data worker that ends, Ctrl-C) kills the process. So there is one Core, and it stays.

Legend as in ``predictor.py``.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpexp.data.interface import Interface
from vpexp.data.prompts import Prompts
from vpexp.errors import CheckpointError
from vpexp.inference.exported import (
    CLASSIFIER,
    DECODER,
    ENCODER,
    PROMPTER,
    ExportedModel,
    ModelMetadata,
    _open_session,
    read_metadata,
)
from vpexp.inference.mask_crops import MaskCrops
from vpexp.inference.predictor import ImageEmbedding, InstanceModel, Predictor
from vpexp.runtime import find_thread_limit

ENCODER_INPUTS = ("images",)
PROMPT_INPUTS = ("point_coords", "point_labels", "mask_input", "has_mask_input", "orig_size")
TOKEN_OUTPUTS = ("token_masks", "token_ious")
DECODER_OUTPUTS = ("upscaled_masks", "iou_predictions", "low_res_masks", *TOKEN_OUTPUTS)
Arrays = dict[str, NDArray[Any]]
RunGraph = Callable[[Arrays], Arrays]
Ports = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]


def list_ports(interface: Interface) -> Ports:
    """List the names of the inputs and of the outputs of each part."""
    return {
        ENCODER: (ENCODER_INPUTS, interface.names),
        DECODER: ((*interface.names, *PROMPT_INPUTS), DECODER_OUTPUTS),
        PROMPTER: ((interface.names[0], "images"), ("boxes", "scores")),
        CLASSIFIER: (("crops", "extents"), ("probabilities",)),
    }


def _list_read_ports(interface: Interface) -> Ports:
    """List those that are used here."""
    ports = list_ports(interface)
    return ports | {DECODER: (ports[DECODER][0], TOKEN_OUTPUTS)}


class GraphPredictor(Predictor):
    """Prepares what the graphs take, and reads what they give.

    Args:
        model: the files.
        metadata: what they say of themselves.
        run: runs each part, from its inputs to its outputs.
        multimask: as in ``Predictor``; None: as the model was exported.
    """

    def __init__(
        self, model: ExportedModel, metadata: ModelMetadata, run: Mapping[str, RunGraph], multimask: str | None
    ) -> None:
        super().__init__(metadata.image_size, multimask or metadata.multimask, metadata.interface)
        self.model = model
        self.metadata = metadata
        self._run = run
        if (about := metadata.instances) is not None:
            classify = self._classify if about.is_classified else None
            self.instances = InstanceModel(self._find_boxes, classify, about.labels, about.threshold, about.max_overlap)

    def _encode(self, input_3SS: NDArray[np.float32]) -> Arrays:
        return self._run[ENCODER]({"images": input_3SS[None]})

    def _find_boxes(
        self, maps: Arrays, image_13SS: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        first = self.interface.names[0]
        outputs = self._run[PROMPTER]({first: maps[first], "images": image_13SS})
        return outputs["boxes"], outputs["scores"]

    def _classify(self, crops: MaskCrops) -> NDArray[np.float32]:
        return self._run[CLASSIFIER]({"crops": crops.crops_K4PP, "extents": crops.extents_K2})["probabilities"]

    def _adopt(self, embedding_CHW: NDArray[Any]) -> Arrays:
        return self.interface.unpack(np.array(embedding_CHW, dtype=np.float32)[None])

    def read_map(self, embedding: ImageEmbedding) -> NDArray[np.float32]:
        """As of ``Predictor``."""
        map_CEE: NDArray[np.float32] = embedding.features[self.interface.names[0]][0]
        return map_CEE

    def _run_decoder(self, embedding: ImageEmbedding, prompts: Prompts) -> tuple[NDArray[Any], NDArray[Any]]:
        outputs = self._run[DECODER](build_decoder_inputs(embedding.features, prompts, embedding.original_hw))
        return outputs["token_masks"], outputs["token_ious"]


def build_decoder_inputs(maps: Mapping[str, NDArray[Any]], prompts: Prompts, original_hw: tuple[int, int]) -> Arrays:
    """Build the decoder's inputs.

    Args:
        maps: float32, by name; the first is [1, C, S/16, S/16].
        prompts: N prompts, pixels of the resized image.
        original_hw: size of the masks that are asked for.
    """
    side, earlier = 4 * next(iter(maps.values())).shape[-1], prompts.mask_input_Nhw
    mask_input = np.zeros((1, 1, side, side), dtype=np.float32) if earlier is None else earlier[:, None]
    return {
        **maps,
        "point_coords": prompts.coords_NP2,
        "point_labels": prompts.labels_NP.astype(np.float32),
        "mask_input": mask_input,
        "has_mask_input": np.full((len(mask_input), 1), earlier is not None, dtype=np.float32),
        "orig_size": np.array([original_hw], dtype=np.int64),
    }


class OpenvinoPredictor(GraphPredictor):
    """Runs an exported model by OpenVINO.

    In float32, whatever the processor prefers: on CPUs with bfloat16 OpenVINO's default would move mask outlines.

    Args:
        model: the files.
        threads: CPU threads; None: OMP_NUM_THREADS, else OpenVINO's own choice.
        device: OpenVINO's name of the device.
        multimask: as in ``Predictor``; None: as the model was exported.

    Raises:
        CheckpointError: the files are damaged, have other ports than vpexp writes, or there is no such device.
    """

    def __init__(
        self, model: ExportedModel, *, threads: int | None = None, device: str = "CPU", multimask: str | None = None
    ) -> None:
        metadata = read_metadata(model)
        core = get_core()
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        threads = threads or find_thread_limit()
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        ports = _list_read_ports(metadata.interface)
        graphs = {part: _read_graph(core, file, *ports[part]) for part, file in model.parts.items()}
        # What is embedded here has the model's size already, so what would fit it in falls away.
        graphs[ENCODER].reshape([1, 3, metadata.image_size, metadata.image_size])
        for result in graphs[
            DECODER
        ].get_results():  # what enlarges masks in the graph is not used here, so not computed
            if not result.get_input_tensor(0).get_names() & set(TOKEN_OUTPUTS):
                graphs[DECODER].remove_result(result)
        run = {
            part: partial(
                _run_openvino,
                _compile(core, graph, device, settings),
                ports[part][1],
                in_place=part == DECODER,
            )
            for part, graph in graphs.items()
        }
        super().__init__(model, metadata, run, multimask)


def _read_graph(core: Any, file: Path, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Any:
    try:
        graph = core.read_model(file)
    except Exception as error:  # OpenVINO raises RuntimeError and its own kinds
        line = " ".join(str(error).split())[-200:]
        raise CheckpointError(
            f"{file} cannot be read by OpenVINO: damaged, or its .bin is of another file ({line})"
        ) from error
    for wanted, ports in ((inputs, graph.inputs), (outputs, graph.outputs)):
        names = {name for port in ports for name in port.get_names()}
        if not set(wanted) <= names:
            missing = ", ".join(sorted(set(wanted) - names))
            raise CheckpointError(f"{file} has no port {missing}: it was not written by stage=export of this version")
    return graph


def _compile(core: Any, graph: Any, device: str, settings: dict[str, Any]) -> Any:
    try:
        return core.compile_model(graph, device, settings)
    except Exception as error:  # as above
        line = " ".join(str(error).split())[-200:]
        known = ", ".join(name.lower() for name in core.available_devices)
        raise CheckpointError(
            f"OpenVINO cannot run the model on device={device.lower()}; devices here: {known} ({line})"
        ) from error


def _run_openvino(graph: Any, outputs: tuple[str, ...], inputs: Arrays, *, in_place: bool = False) -> Arrays:
    """Run a graph; ``in_place`` gives outputs that hold until it runs again, and saves copying them."""
    results = graph(inputs, share_outputs=in_place)
    return {name: results[name] for name in outputs}


@cache
def get_core() -> Any:
    """Get the process's ``openvino.Core``; its CPU plugin is loaded."""
    import openvino

    core = openvino.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin before anybody else's
    return core


@contextmanager
def lend_core() -> Iterator[Any]:
    """Let a library that makes Cores of its own (NNCF: one for each model it compiles) get this one meanwhile."""
    import openvino

    core, usual = get_core(), (openvino.Core, openvino.compile_model)
    openvino.Core = lambda *_: core
    openvino.compile_model = lambda model, device_name="CPU", config=None: core.compile_model(
        model, device_name, config or {}
    )
    try:
        yield core
    finally:
        openvino.Core, openvino.compile_model = usual


class OnnxPredictor(GraphPredictor):
    """Runs an exported model by onnxruntime, on the CPU.

    Args:
        model: the files.
        threads: CPU threads; None: OMP_NUM_THREADS, else onnxruntime's own choice.
        multimask: as in ``Predictor``; None: as the model was exported.

    Raises:
        CheckpointError: the files are damaged or not vpexp's, or onnxruntime is not installed.
    """

    def __init__(self, model: ExportedModel, *, threads: int | None = None, multimask: str | None = None) -> None:
        metadata = read_metadata(model)
        ports = _list_read_ports(metadata.interface)
        run = {
            part: partial(_run_onnx, _open_session(file, threads), ports[part][1]) for part, file in model.parts.items()
        }
        super().__init__(model, metadata, run, multimask)


def _run_onnx(session: Any, outputs: tuple[str, ...], inputs: Arrays) -> Arrays:
    return dict(zip(outputs, session.run(list(outputs), inputs), strict=True))
