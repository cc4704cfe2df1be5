"""Exported models, run by OpenVINO (in full or half precision, and INT8) or by ONNX Runtime: numpy in, numpy out.

Each ``openvino.Core`` gives the thread that uses its CPU plugin a stack for signal handlers, and takes it away when it goes.
Where two of them do not go in the reverse order of their coming, the stack that is put back is one that is gone, and the next
signal (a data worker that ends, Ctrl-C) kills the process. So there is one Core, and it stays.

Legend as in ``predictor.py``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpexp.data.geometry import compute_resized_size, normalize_and_pad, resize_image, scale_points
from vpexp.data.masks import Region
from vpexp.data.prompts import Prompts
from vpexp.errors import CheckpointError
from vpexp.inference.exported import ExportedModel, ModelMetadata, _open_session, read_metadata
from vpexp.inference.predictor import (
    ImageEmbedding,
    Prediction,
    build_prompts,
    check_image,
    check_mask_input,
    count_prompts_a_call,
)
from vpexp.inference.upscaling import plan_upscaling
from vpexp.runtime import find_thread_limit

ENCODER_INPUTS = ("images",)
ENCODER_OUTPUTS = ("image_embeddings",)
DECODER_INPUTS = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_size")
DECODER_OUTPUTS = ("upscaled_masks", "iou_predictions", "low_res_masks")
Arrays = dict[str, NDArray[Any]]
RunGraph = Callable[[Arrays], Arrays]


class GraphPredictor:
    """Prepares what the two graphs take, and reads what they give.

    Args:
        model: the files.
        metadata: what they say of themselves.
        run_encoder: from ``ENCODER_INPUTS`` to ``ENCODER_OUTPUTS``.
        run_decoder: from ``DECODER_INPUTS`` to ``DECODER_OUTPUTS``.
    """

    def __init__(
        self, model: ExportedModel, metadata: ModelMetadata, run_encoder: RunGraph, run_decoder: RunGraph
    ) -> None:
        self.model = model
        self.metadata = metadata
        self.image_size = metadata.image_size
        self._run_encoder = run_encoder
        self._run_decoder = run_decoder

    def embed(self, image_HW3: NDArray[np.uint8]) -> ImageEmbedding:
        """Encode an RGB image: uint8 [H, W, 3], any size; ValueError for anything else."""
        check_image(image_HW3)
        original_hw = (int(image_HW3.shape[0]), int(image_HW3.shape[1]))
        input_3SS = normalize_and_pad(resize_image(image_HW3, self.image_size), self.image_size)
        features = self._run_encoder({"images": input_3SS[None]})["image_embeddings"]
        return ImageEmbedding(features, original_hw, compute_resized_size(*original_hw, self.image_size))

    def restore(self, embedding_CHW: NDArray[Any], original_hw: tuple[int, int]) -> ImageEmbedding:
        """Take up an embedding [C, S/16, S/16] that this model's encoder made before."""
        features = np.array(embedding_CHW, dtype=np.float32)[None]
        return ImageEmbedding(features, original_hw, compute_resized_size(*original_hw, self.image_size))

    def decode_prompts(self, embedding: ImageEmbedding, prompts: Prompts) -> Prediction:
        """Decode prompts in chunks that bound memory."""
        height, width = embedding.original_hw
        low_res_size = self.image_size // 4
        check_mask_input(prompts, low_res_size)
        masks = np.zeros((len(prompts), height, width), dtype=np.bool_)
        iou = np.zeros(len(prompts), dtype=np.float32)
        low_res = np.zeros((len(prompts), low_res_size, low_res_size), dtype=np.float32)
        regions: list[Region] = []
        upscaling = plan_upscaling(low_res_size, self.image_size, embedding.resized_hw, embedding.original_hw)
        chunk = count_prompts_a_call(embedding.original_hw, self.image_size)
        for start in range(0, len(prompts), chunk):
            part = slice(start, start + chunk)
            outputs = self._run_decoder(self.build_decoder_inputs(embedding, prompts.select(part)))
            iou[part] = outputs["iou_predictions"][:, 0]
            low_res[part] = outputs["low_res_masks"][:, 0]
            for mask_HW, logits_HW, own_hw in zip(
                masks[part], outputs["upscaled_masks"][:, 0], low_res[part], strict=True
            ):
                region = upscaling.find_region(own_hw)  # the logits are not above 0 anywhere else
                np.greater(logits_HW[region.slices], 0, out=mask_HW[region.slices])
                regions.append(region)
        return Prediction(masks, iou, low_res, regions)

    def build_decoder_inputs(self, embedding: ImageEmbedding, prompts: Prompts) -> Arrays:
        """Build the decoder's inputs for prompts in pixels of the original image."""
        size = self.image_size // 4
        earlier = prompts.mask_input_Nhw
        mask_input = np.zeros((1, 1, size, size), dtype=np.float32) if earlier is None else earlier[:, None]
        return {
            "image_embeddings": embedding.features,
            "point_coords": scale_points(prompts.coords_NP2, embedding.original_hw, embedding.resized_hw),
            "point_labels": prompts.labels_NP.astype(np.float32),
            "mask_input": mask_input,
            "has_mask_input": np.full((len(mask_input), 1), earlier is not None, dtype=np.float32),
            "orig_size": np.array([embedding.original_hw], dtype=np.int64),
        }

    def decode(
        self,
        embedding: ImageEmbedding,
        *,
        boxes: NDArray[np.float32] | None = None,
        points: NDArray[np.float32] | None = None,
        point_labels: NDArray[np.float32] | None = None,
        mask_input: NDArray[np.float32] | None = None,
    ) -> Prediction:
        """Decode boxes [N, 4], points [N, P, 2] with labels [N, P], or both together for each of the N prompts."""
        return self.decode_prompts(embedding, build_prompts(boxes, points, point_labels, mask_input))


class OpenvinoPredictor(GraphPredictor):
    """Runs an exported model by OpenVINO.

    In float32, whatever the processor prefers: on CPUs with bfloat16 OpenVINO's default would move mask outlines.

    Args:
        model: the files.
        threads: CPU threads; None: OMP_NUM_THREADS, else OpenVINO's own choice.
        device: OpenVINO's name of the device.

    Raises:
        CheckpointError: the files are damaged, have other ports than vpexp writes, or there is no such device.
    """

    def __init__(self, model: ExportedModel, *, threads: int | None = None, device: str = "CPU") -> None:
        metadata = read_metadata(model)
        core = get_core()
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        threads = threads or find_thread_limit()
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        encoder = _read_graph(core, model.encoder, ENCODER_INPUTS, ENCODER_OUTPUTS)
        # What is embedded here has the model's size already, so what would fit it in falls away.
        encoder.reshape([1, 3, metadata.image_size, metadata.image_size])
        decoder = _read_graph(core, model.decoder, DECODER_INPUTS, DECODER_OUTPUTS)
        super().__init__(
            model,
            metadata,
            partial(_run_openvino, _compile(core, encoder, device, settings), ENCODER_OUTPUTS),
            partial(_run_openvino, _compile(core, decoder, device, settings), DECODER_OUTPUTS, in_place=True),
        )


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
            raise CheckpointError(f"{file} has no port {missing}: it was not written by stage=export")
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
    """Run a graph; ``in_place`` gives outputs that hold until it runs again, and saves copying full-size logits."""
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

    Raises:
        CheckpointError: the files are damaged or not vpexp's, or onnxruntime is not installed.
    """

    def __init__(self, model: ExportedModel, *, threads: int | None = None) -> None:
        metadata = read_metadata(model)
        super().__init__(
            model,
            metadata,
            partial(_run_onnx, _open_session(model.encoder, threads), ENCODER_OUTPUTS),
            partial(_run_onnx, _open_session(model.decoder, threads), DECODER_OUTPUTS),
        )


def _run_onnx(session: Any, outputs: tuple[str, ...], inputs: Arrays) -> Arrays:
    return dict(zip(outputs, session.run(list(outputs), inputs), strict=True))
