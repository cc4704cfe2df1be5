"""SAM 2 as exported graphs: ports under the names of its tools, images stretched, masks as torch computes them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from tests.references.exports import assert_same_predictions, export
from tests.references.official import randomize
from tests.references.tools import XAnyLabelingSam2, open_session
from vpexp.config.schema import ExportConfig
from vpexp.data.geometry import MEAN, STD
from vpexp.data.prompts import Prompts, prompts_from_boxes, prompts_from_points
from vpexp.deploy.graph import ExportInfo
from vpexp.deploy.ignored_scope import find_precise_nodes
from vpexp.deploy.targets.check import measure_target
from vpexp.deploy.targets.write import write_target
from vpexp.errors import ConfigError
from vpexp.inference.exported import read_metadata
from vpexp.inference.graph_predictor import get_core
from vpexp.inference.load import load_predictor
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.models.sam2 import INTERFACE, build_sam2_debug

SIZE = 64
MAPS = {
    "image_embed": [1, 256, 4, 4],
    "high_res_feats_0": [1, 32, 16, 16],
    "high_res_feats_1": [1, 64, 8, 8],
}
PROMPTS = ("point_coords", "point_labels", "mask_input", "has_mask_input", "orig_size")
IMAGES = [(64, 64), (50, 80), (90, 31)]


@pytest.fixture(scope="module")
def sam():
    return randomize(build_sam2_debug(SIZE), seed=3)


@pytest.fixture(scope="module", params=["openvino", "onnx"])
def exported(sam, tmp_path_factory, request):
    return export(sam, "sam2_debug", tmp_path_factory.mktemp("sam2"), request.param)


def draw_image(height, width):
    """Smooth colours under noise, as photos are."""
    rng = np.random.default_rng(height * 7 + width)
    coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)).resize((width, height))
    return np.clip(np.asarray(coarse, np.int64) + rng.integers(-20, 21, (height, width, 3)), 0, 255).astype(np.uint8)


def list_ports(file):
    """Names and shapes of the inputs and outputs of an IR or an ONNX file."""
    graph = get_core().read_model(file)
    return [
        {
            port.get_any_name(): [int(n.get_length()) if n.is_static else -1 for n in port.get_partial_shape()]
            for port in side
        }
        for side in (graph.inputs, graph.outputs)
    ]


def test_ports__have_the_names_that_tools_of_sam2_use(exported):
    inputs, outputs = list_ports(exported.encoder)
    assert list(inputs) == ["images"]
    assert outputs == MAPS
    inputs, outputs = list_ports(exported.decoder)
    assert set(inputs) == {*MAPS, *PROMPTS}
    assert {name: inputs[name] for name in MAPS} == MAPS
    assert {"upscaled_masks", "iou_predictions", "low_res_masks"} <= set(outputs)


def test_metadata__says_how_images_are_taken(exported):
    metadata = read_metadata(exported)
    assert metadata.interface == INTERFACE
    assert (metadata.interface.resize, metadata.interface.dynamic_multimask) == ("stretch", True)


def draw_prompts(height, width):
    rng = np.random.default_rng(height)
    corners = np.sort(rng.uniform(0, 1, (5, 2, 2)), axis=1) * [width, height]
    return corners.reshape(5, 4).astype(np.float32), (rng.uniform(0, 1, (5, 2, 2)) * [width, height]).astype(np.float32)


@pytest.mark.parametrize("hw", IMAGES)
def test_exported__equals_torch(sam, exported, hw):
    image_HW3 = draw_image(*hw)
    torch_model, model = TorchPredictor(sam), load_predictor(exported, threads=1)
    expected_embedding, embedding = torch_model.embed(image_HW3), model.embed(image_HW3)
    for name, values in torch_model.interface.unpack(expected_embedding.features.numpy()).items():
        np.testing.assert_allclose(embedding.features[name], values, atol=1e-4 * values.std(), rtol=1e-3)
    boxes, points = draw_prompts(*hw)
    cases = (
        {"boxes": boxes},
        {"points": points},
        {"points": points[:, :1]},
        {"boxes": boxes, "points": points},
        {"points": points[:, :1], "multimask": True},
    )
    for case in cases:
        expected, got = torch_model.decode(expected_embedding, **case), model.decode(embedding, **case)
        assert expected.masks.any()
        assert_same_predictions(expected, got)
    again = {"boxes": boxes, "mask_input": torch_model.decode(expected_embedding, boxes=boxes).low_res}
    assert_same_predictions(torch_model.decode(expected_embedding, **again), model.decode(embedding, **again))


def test_decoder__its_own_output_is_what_vpexp_answers(sam, exported):
    """A client that takes ``upscaled_masks``, as tools do, gets the masks of the predictor."""
    image_HW3 = draw_image(50, 80)
    predictor = load_predictor(exported, threads=1)
    embedding = predictor.embed(image_HW3)
    boxes, _ = draw_prompts(50, 80)
    expected = predictor.decode(embedding, boxes=boxes)
    compiled = get_core().compile_model(exported.decoder, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = compiled(
        {
            **embedding.features,
            "point_coords": (boxes.reshape(-1, 2, 2) * [SIZE / 80, SIZE / 50]).astype(np.float32),
            "point_labels": np.tile(np.float32([2, 3]), (5, 1)),
            "mask_input": np.zeros((1, 1, 16, 16), np.float32),
            "has_mask_input": np.zeros((1, 1), np.float32),
            "orig_size": np.array([[50, 80]]),
        }
    )
    assert np.count_nonzero((outputs["upscaled_masks"][:, 0] > 0) != expected.masks) <= 2
    np.testing.assert_allclose(outputs["low_res_masks"][:, 0], expected.low_res, atol=1e-4)
    np.testing.assert_allclose(outputs["iou_predictions"][:, 0], expected.iou, atol=1e-5)


def test_encoder__ir_stretches_an_image_of_any_size(sam, tmp_path):
    exported = export(sam, "sam2_debug", tmp_path, "openvino")
    compiled = get_core().compile_model(exported.encoder, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    image_HW3 = draw_image(50, 80)
    normalized = (image_HW3.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    got = compiled(np.ascontiguousarray(normalized.transpose(2, 0, 1)[None]))["image_embed"]
    expected = load_predictor(exported, threads=1).embed(image_HW3).features["image_embed"]
    np.testing.assert_allclose(got, expected, atol=1e-2 * expected.std())


def test_prepare__equals_the_official_transform_within_a_grey_level(sam):
    image_HW3 = draw_image(50, 80)
    pixels = torch.from_numpy(image_HW3).permute(2, 0, 1)[None] / 255  # ToTensor
    resized = F.interpolate(pixels, (SIZE, SIZE), mode="bilinear", antialias=True)  # Resize
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # Normalize
    expected = (resized[0] - mean[:, None, None]) / std[:, None, None]
    difference = np.abs(TorchPredictor(sam).prepare(image_HW3) - expected.numpy()) * std.numpy()[:, None, None]
    assert difference.max() <= 1 / 255
    assert difference.mean() <= 0.4 / 255


def test_decode__masks_are_enlarged_at_once_as_the_official_transform_does(sam):
    image_HW3 = draw_image(50, 80)
    predictor = TorchPredictor(sam)
    boxes, _ = draw_prompts(50, 80)
    prediction = predictor.decode(predictor.embed(image_HW3), boxes=boxes)
    enlarged = F.interpolate(torch.from_numpy(prediction.low_res)[:, None], (50, 80), mode="bilinear")[:, 0]
    assert prediction.low_res.max() < 32  # no logit was cut
    assert np.count_nonzero(prediction.masks != (enlarged > 0).numpy()) <= 1


def test_low_res__is_limited_as_the_official_predictor_does(sam):
    predictor = TorchPredictor(sam)
    embedding = predictor.embed(draw_image(50, 80))
    boxes, _ = draw_prompts(50, 80)
    usual = predictor.decode(embedding, boxes=boxes)
    with torch.no_grad():
        for network in sam.mask_decoder.output_hypernetworks_mlps:
            network.layers[-1].weight.mul_(1e3)
            network.layers[-1].bias.mul_(1e3)
    found = predictor.decode(embedding, boxes=boxes)
    with torch.no_grad():
        for network in sam.mask_decoder.output_hypernetworks_mlps:
            network.layers[-1].weight.div_(1e3)
            network.layers[-1].bias.div_(1e3)
    assert np.abs(usual.low_res).max() < 32 == np.abs(found.low_res).max()


def test_find_precise_nodes__knows_the_decoder_and_its_maps(sam, tmp_path):
    exported = export(sam, "sam2_debug", tmp_path, "openvino")
    graph = get_core().read_model(exported.decoder)
    kinds = {node.get_friendly_name(): node.get_type_name() for node in graph.get_ordered_ops()}
    precise = [kinds[name] for name in find_precise_nodes(graph)]
    assert precise.count("Gelu") >= 2  # those of the upscaling
    assert {"Sin", "Cos"} <= set(precise)
    assert "Softmax" not in precise


def write(sam, folder, target):
    info = ExportInfo("sam2_debug", SIZE, (), "0123456789", "auto")
    return write_target(sam, folder, info, ExportConfig(target=target))


@pytest.mark.parametrize("target", ["official", "model_api", "cvat", "label_studio"])
def test_write_target__refuses_what_it_cannot_write(sam, tmp_path, target):
    message = (
        rf"export.target={target} writes the one map .* has 3: export.target=vpexp or x_anylabeling writes them as"
    )
    with pytest.raises(ConfigError, match=message):
        write(sam, tmp_path, target)
    assert not list(tmp_path.iterdir())


def test_x_anylabeling__gives_vpexps_masks(sam, tmp_path):
    written = write(sam, tmp_path, "x_anylabeling")
    config = yaml.safe_load((written.folder / "segment_anything.yaml").read_text())
    assert config["type"] == "segment_anything_2"
    assert "--sam_variant sam2" in (written.folder / "README.txt").read_text()
    files = [written.folder / config[f"{part}_model_path"] for part in ("encoder", "decoder")]
    assert [port.name for port in open_session(files[0]).get_outputs()] == [*MAPS][1:] + [*MAPS][:1]
    tool, predictor = XAnyLabelingSam2(*files), TorchPredictor(sam)
    for height, width in IMAGES:
        image = draw_image(height, width)
        boxes, points = draw_prompts(height, width)
        embedding = predictor.embed(image)
        flipped = []
        for places, labels in ((points, (1,)), (boxes, (2, 3))):
            for corners_P2 in places.reshape(-1, len(labels), 2):
                prompts = Prompts(corners_P2[None].astype(np.float32), np.array([labels], np.float32))
                expected = predictor.decode_prompts(embedding, prompts).masks[0]
                assert expected.any()
                flipped.append(np.count_nonzero(tool.segment(image, corners_P2, labels) != expected))
        # The tool resizes images in floating point, and then another mask may be the best: one that needs no resize is the same.
        assert np.median(flipped) <= 0.005 * height * width
        assert (height, width) != (SIZE, SIZE) or max(flipped) == 0


def test_x_anylabeling__passes_the_check_of_the_export(sam, tmp_path):
    image = draw_image(50, 80)
    boxes, points = draw_prompts(50, 80)
    prompts = [prompts_from_boxes(boxes), prompts_from_points(points[:, 0])]
    parity = measure_target(write(sam, tmp_path, "x_anylabeling"), image, prompts)
    assert parity.prompts == len(boxes) + len(points)
    assert parity.flipped <= 1e-3
    assert parity.logits < 1e-3


def test_image__pillow_and_predictor_agree():
    image_HW3 = draw_image(50, 80)
    prepared = TorchPredictor(build_sam2_debug(SIZE)).prepare(image_HW3)
    resized = np.asarray(Image.fromarray(image_HW3).resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float32)
    np.testing.assert_allclose(prepared, ((resized - MEAN) / STD).transpose(2, 0, 1), atol=1e-5)
