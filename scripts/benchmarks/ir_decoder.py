"""12 prompts on one image by OpenVINO: one call of vpexp's decoder, against one call a prompt of the original graph.

The original graph is segment-anything's ``SamOnnxModel``, written as ONNX and converted, as its export script does; both
compute in float32. Masks come out at original size on both sides, which is the same enlarging on both; and, measured
apart, without it: at a quarter of the model's input size.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.benchmarks import ours
from scripts.benchmarks.contender import Ready
from scripts.benchmarks.settings import Settings
from vpexp.deploy.graph import ExportInfo
from vpexp.deploy.openvino_format import write_openvino
from vpexp.inference.exported import DECODER, ENCODER, ExportedModel
from vpexp.inference.graph_predictor import get_core

PROMPTS = 12
ORIGINAL_HW = (1365, 2048)
OPSET = 17
LOW_RES = ("low_res_masks", "iou_predictions")
TOLERANCES = {"masks": 1e-4, "iou": 1e-4}
NAMES = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size")

Arrays = dict[str, NDArray[Any]]


def write_export(settings: Settings) -> ExportedModel:
    """Export the model as ``stage=export`` does, unless it was done before."""
    folder = settings.folder / f"ir_{settings.model}"
    model = ExportedModel(
        folder / f"exported_model_{ENCODER}.xml", folder / f"exported_model_{DECODER}.xml", "openvino"
    )
    if not all(file.is_file() for file in model.files):
        folder.mkdir(exist_ok=True)
        sam = ours.build_sam(ours.open_context(settings))
        info = ExportInfo(settings.model, sam.image_size, ("round", "long"), "benchmark", "never")
        write_openvino(sam, folder, info, precisions=dict.fromkeys((ENCODER, DECODER), "FP32"))
    return model


def compile_graph(graph: Any, threads: int, outputs: tuple[str, ...] = ()) -> Any:
    """Compile for one request at a time, in float32; with ``outputs`` only what these need."""
    if outputs:
        from openvino import Model

        graph = Model([graph.output(name) for name in outputs], graph.get_parameters(), "part")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
    }
    return get_core().compile_model(graph, "CPU", settings)


class _Inputs:
    """Boxes to time, and pairs of points to check: both graphs append the same padding to points."""

    def __init__(self, image_size: int) -> None:
        rng = np.random.default_rng(0)
        side = image_size // 16
        self.low = image_size // 4
        self.embedding_1CHW = rng.standard_normal((1, 256, side, side), dtype=np.float32)
        self.corners_N22 = np.sort(rng.uniform(0, image_size * 0.66, (PROMPTS, 2, 2)), axis=1).astype(np.float32)
        self.boxes_N2 = np.tile(np.array([2, 3], np.float32), (PROMPTS, 1))
        self.inside_N2 = np.ones((PROMPTS, 2), np.float32)

    def build(self, coords: NDArray[np.float32], labels: NDArray[np.float32]) -> Arrays:
        """Build what both graphs take, but for the original size."""
        return {
            "image_embeddings": self.embedding_1CHW,
            "point_coords": coords,
            "point_labels": labels,
            "mask_input": np.zeros((1, 1, self.low, self.low), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
        }


class Ours(Ready):
    """vpexp's exported decoder."""

    outputs: tuple[str, ...] = ()

    def __init__(self, settings: Settings) -> None:
        self.inputs = _Inputs(ours.open_context(settings).cfg.model.image_size)
        decoder = get_core().read_model(write_export(settings).decoder)
        self.graph = compile_graph(decoder, settings.threads, self.outputs)

    def decode(self, labels_NP: NDArray[np.float32]) -> Any:
        """Decode all prompts."""
        inputs = self.inputs.build(self.inputs.corners_N22, labels_NP)
        inputs["has_mask_input"] = inputs["has_mask_input"][None]
        return self.graph({**inputs, "orig_size": np.array([ORIGINAL_HW], np.int64)})

    def turn(self) -> None:
        """Decode boxes."""
        self.decode(self.inputs.boxes_N2)

    def check(self) -> dict[str, Any]:
        """Decode pairs of points."""
        results = self.decode(self.inputs.inside_N2)
        return {"masks": results["low_res_masks"].copy(), "iou": results["iou_predictions"].copy()}


class OursLowRes(Ours):
    """The same without enlarging."""

    outputs = LOW_RES


class Plain(Ready):
    """The original graph."""

    outputs: tuple[str, ...] = ()

    def __init__(self, settings: Settings) -> None:
        from openvino import convert_model

        path = settings.folder / f"original_decoder_{settings.model}.onnx"
        image_size = ours.open_context(settings).cfg.model.image_size
        write_original(settings.weights, image_size, path)
        self.inputs = _Inputs(image_size)
        self.graph = compile_graph(convert_model(path), settings.threads, self.outputs)

    def turn(self) -> None:
        """Decode boxes, one after another."""
        for number in range(PROMPTS):
            one = slice(number, number + 1)
            self._decode(self.inputs.corners_N22[one], self.inputs.boxes_N2[one])

    def check(self) -> dict[str, Any]:
        """Decode pairs of points, with the padding that the original predictor appends to points.

        Of three points and more, the graph answers by the single-mask token, as ours always does.
        """
        masks, ious = [], []
        for corners_22 in self.inputs.corners_N22:
            coords = np.concatenate([corners_22, np.zeros((1, 2), np.float32)])[None]
            results = self._decode(coords, np.array([[1, 1, -1]], np.float32))
            masks.append(results["low_res_masks"].copy())
            ious.append(results["iou_predictions"].copy())
        return {"masks": np.concatenate(masks), "iou": np.concatenate(ious)}

    def _decode(self, coords_1P2: NDArray[np.float32], labels_1P: NDArray[np.float32]) -> Any:
        size = np.array(ORIGINAL_HW, np.float32)
        return self.graph({**self.inputs.build(coords_1P2, labels_1P), "orig_im_size": size})


class PlainLowRes(Plain):
    """The same without enlarging."""

    outputs = LOW_RES


def write_original(weights: Path, image_size: int, path: Path) -> None:
    """Write the original decoder graph as the export script of segment-anything does."""
    from tests.references.official import build_official_sam, import_segment_anything

    import_segment_anything()
    from segment_anything.utils.onnx import SamOnnxModel

    encoder = torch.nn.Identity()
    encoder.img_size = image_size  # type: ignore[assignment]
    sam = build_official_sam(encoder, image_size)
    state = torch.load(weights, weights_only=True)
    sam.load_state_dict({n: v for n, v in state.items() if not n.startswith("image_encoder.")}, strict=False)
    side = image_size // 16
    example = (
        torch.randn(1, 256, side, side),
        torch.randint(0, image_size, (1, 5, 2)).float(),
        torch.randint(0, 4, (1, 5)).float(),
        torch.randn(1, 1, 4 * side, 4 * side),
        torch.tensor([1.0]),
        torch.tensor([1500.0, 2250.0]),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of the sizes that the model takes as numbers
        torch.onnx.export(
            SamOnnxModel(sam, return_single_mask=True),
            example,
            str(path),
            input_names=list(NAMES),
            output_names=["masks", "iou_predictions", "low_res_masks"],
            dynamic_axes={"point_coords": {1: "points"}, "point_labels": {1: "points"}},
            opset_version=OPSET,
            dynamo=False,
        )


SIDES = {"ours": Ours, "plain": Plain, "ours_low_res": OursLowRes, "plain_low_res": PlainLowRes}
