"""The check that the files of a target compute what their torch modules do, on a real image, before they are kept.

Shapes: N prompts, P points of a prompt, K masks of a prompt, H W size of the original image.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vpexp.data.geometry import compute_resized_size, scale_points
from vpexp.data.prompts import Prompts
from vpexp.deploy.parity import Parity, measure_parity
from vpexp.deploy.targets.write import Graphs, WrittenTarget
from vpexp.inference.exported import _open_session
from vpexp.inference.graph_predictor import get_core
from vpexp.inference.predictor import ImageEmbedding, Prediction
from vpexp.runtime import find_thread_limit

SIZE_PORTS = {"orig_im_size", "orig_size"}
"""Ports for height and width of the image."""
Arrays = list[NDArray[Any]]
Run = Callable[[Arrays], Arrays]


def measure_target(written: WrittenTarget, image_HW3: NDArray[np.uint8], prompts: list[Prompts]) -> Parity:
    """Compare the files with the modules they were made of, each from pixels to masks.

    Args:
        written: from ``write_target``.
        image_HW3: RGB uint8.
        prompts: sets of prompts, pixels of the image.
    """
    graphs = written.graphs
    modules = (run_module(module, module.build_example()) for module in (graphs.encoder, graphs.decoder))
    files = (run_file(file) for file in (written.encoder, written.decoder))
    expected: Any = ToolClient(graphs, *modules)
    got: Any = ToolClient(graphs, *files)
    return measure_parity(expected, got, image_HW3, prompts)


class ToolClient:
    """Feeds a target as its tool does, prompt by prompt, all without earlier masks.

    Args:
        graphs: whose ports are fed.
        run_encoder: from an image to its embedding.
        run_decoder: from the inputs in the order of the ports to the outputs.
    """

    def __init__(self, graphs: Graphs, run_encoder: Run, run_decoder: Run) -> None:
        self.graphs = graphs
        self._run_encoder = run_encoder
        self._run_decoder = run_decoder

    def embed(self, image_HW3: NDArray[np.uint8]) -> ImageEmbedding:
        """Encode an RGB image."""
        original_hw = (int(image_HW3.shape[0]), int(image_HW3.shape[1]))
        encoder, decoder = self.graphs.encoder, self.graphs.decoder
        maps = self._run_encoder([encoder.prepare(image_HW3)])
        resized_hw = compute_resized_size(*original_hw, decoder.side, decoder.sam.interface.resize)
        return ImageEmbedding(dict(zip(encoder.outputs, maps, strict=True)), original_hw, resized_hw)

    def decode_prompts(self, embedding: ImageEmbedding, prompts: Prompts) -> Prediction:
        """Decode prompts; the masks of one follow each other, [N * K, H, W]."""
        decoder, original_hw = self.graphs.decoder, embedding.original_hw
        example = (value.numpy() for value in decoder.build_example())
        given: dict[str, NDArray[Any]] = dict(zip(decoder.inputs, example, strict=True)) | embedding.features
        for name in SIZE_PORTS & given.keys():
            given[name] = np.array(original_hw, given[name].dtype).reshape(given[name].shape)
        given["mask_input"] = given["mask_input"][:1]
        coords_NP2 = scale_points(prompts.coords_NP2, original_hw, embedding.resized_hw)
        answers: list[tuple[NDArray[Any], ...]] = []
        for coords_P2, labels_P in zip(coords_NP2, prompts.labels_NP.astype(np.float32), strict=True):
            given |= {"point_coords": coords_P2[None], "point_labels": labels_P[None]}
            logits, iou, *others = self._run_decoder([given[name] for name in decoder.inputs])
            low_res, *bounds = others or [logits]
            if not others:  # the tool itself brings the mask to the image
                logits = np.stack([cv2.resize(mask_hw, original_hw[::-1]) for mask_hw in logits[0]])[None]
            answers.append((_place(logits[0] > 0, bounds, original_hw), iou[0], low_res[0]))
        masks, iou, low_res = (np.concatenate(values) for values in zip(*answers, strict=True))
        return Prediction(masks, iou, low_res)


def _place(masks_KHW: NDArray[np.bool_], bounds: Arrays, original_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Bring masks that are cut to their bounds back to their place."""
    if not bounds:
        return masks_KHW
    left, top, right, bottom = (int(bound[0]) for bound in bounds)
    whole_KHW = np.zeros((len(masks_KHW), *original_hw), np.bool_)
    whole_KHW[:, top : bottom + 1, left : right + 1] = masks_KHW
    return whole_KHW


def run_module(module: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> Run:
    """Trace a module, so that it computes what is exported."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python numbers, all of them constants of the model
        traced: Any = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def run(inputs: Arrays) -> Arrays:
        outputs = traced(*map(torch.from_numpy, inputs))
        return [value.numpy() for value in (outputs if isinstance(outputs, tuple) else (outputs,))]

    return run


def run_file(file: Path) -> Run:
    """Open an ONNX file or an IR on the CPU, in float32."""
    if file.suffix == ".onnx":
        session = _open_session(file, None)
        names = [port.name for port in session.get_inputs()]
        return lambda inputs: list(session.run(None, dict(zip(names, inputs, strict=True))))
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": find_thread_limit() or 0}
    compiled = get_core().compile_model(file, "CPU", settings)
    return lambda inputs: [np.array(value) for value in compiled(inputs).values()]
