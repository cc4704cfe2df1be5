"""The files of other tools, run as these tools do: on the same weights the official package's masks, and vpexp's own."""

import base64
import io
import re
import types
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
import torch
import yaml
from PIL import Image

from tests.references.exports import LABELS, crop, draw_vineyard
from tests.references.official import (
    build_official_sam,
    build_official_vit,
    import_onnx_model,
    randomize,
)
from tests.references.tools import CvatPage, XAnyLabeling, import_handler, open_session
from vpexp.config.schema import ExportConfig
from vpexp.data.geometry import normalize_and_pad, scale_points
from vpexp.deploy.graph import ExportInfo
from vpexp.deploy.targets.check import measure_target
from vpexp.deploy.targets.graphs import resize_logits
from vpexp.deploy.targets.write import TARGETS, write_target
from vpexp.errors import ConfigError
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.models.mask_decoder import ONE_MASK, THREE_MASKS, MaskDecoder
from vpexp.models.prompt_encoder import PromptEncoder
from vpexp.models.registry import build_sam_debug
from vpexp.models.sam import Sam, upscale_logits
from vpexp.models.vit import ImageEncoderViT

SIZE = 64
SMALL = {"channels": 48, "depth": 2, "heads": 3, "window_size": 4, "global_attention_blocks": (1,)}
BOX, POINT = (2, 3), (1,)


def write(sam, folder, target, **settings):
    info = ExportInfo("sam_of mine", sam.image_size, LABELS, "0123456789abcdef", "auto")
    return write_target(sam, folder, info, ExportConfig(target=target, **settings))


@torch.no_grad()
def answer(sam, image_HW3, points, labels, earlier=None):
    """Compute vpexp's own mask of a prompt: the best of three for one point alone, else token 0."""
    predictor = TorchPredictor(sam)
    embedding = predictor.embed(image_HW3)
    hw, resized_hw = embedding.original_hw, embedding.resized_hw
    coords = torch.from_numpy(scale_points(np.array([points], np.float32), hw, resized_hw))
    masks = THREE_MASKS if len(labels) == 1 else ONE_MASK
    first = torch.zeros(1, dtype=torch.int64)
    labels_1P = torch.tensor([labels], dtype=torch.float32)
    decoded = sam.decode(embedding.features, first, coords, labels_1P, earlier, masks=masks)
    best = int(decoded.iou_NK.argmax())
    low_res = decoded.low_res_logits_NKHW[:, best : best + 1]
    return upscale_logits(low_res, image_size=sam.image_size, resized_hw=resized_hw, original_hw=hw)[0].numpy() > 0


@pytest.fixture(scope="module")
def official():
    return randomize(build_official_sam(build_official_vit(image_size=SIZE, **SMALL), SIZE))


@pytest.fixture(scope="module")
def sam(official):
    model = Sam(
        ImageEncoderViT(image_size=SIZE, **SMALL), PromptEncoder(image_size=SIZE, embedding_size=4), MaskDecoder()
    )
    model.load_state_dict(official.state_dict())
    return model.eval()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """An image whose short side becomes a whole number of pixels at 256 and 1024 px, with objects on it."""
    image = draw_vineyard(tmp_path_factory.mktemp("drawn"), image_size=256, count=1, seed=9)[0]
    return crop(image, 192, 256)


def list_prompts(drawn):
    """A point, a box, and both, in pixels of the image."""
    box, point = drawn.boxes_N4[0].reshape(2, 2).tolist(), drawn.points_N2[0].tolist()
    return [([point], POINT), (box, BOX), ([*box, point], (*BOX, 1)), ([point, [5, 5]], (1, 0))]


# ---------------------------------------------------------------- the official ports


@pytest.mark.parametrize("single", [True, False])
@torch.no_grad()
def test_official__equals_the_official_package(official, sam, tmp_path, single):
    written = write(sam, tmp_path, "official", return_single_mask=single)
    reference = import_onnx_model()(official, single)
    encoder, decoder = open_session(written.encoder), open_session(written.decoder)
    generator = torch.Generator().manual_seed(4)
    pixels = (torch.rand(48, SIZE, 3, generator=generator) * 255).to(torch.uint8).numpy()
    (embedding,) = encoder.run(None, {"input_image": normalize_and_pad(pixels, SIZE)[None]})
    ours = official.image_encoder(official.preprocess(torch.from_numpy(pixels).permute(2, 0, 1)[None].float()))
    np.testing.assert_allclose(embedding, ours, atol=1e-4)

    assert [port.name for port in decoder.get_inputs()] == [
        *("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size")
    ]
    assert [port.name for port in decoder.get_outputs()] == ["masks", "iou_predictions", "low_res_masks"]
    earlier, none = torch.randn(1, 1, 16, 16, generator=generator), torch.zeros(1, 1, 16, 16)
    chosen = set()
    for labels, mask_input in (
        ((1, -1), none),
        ((1,), none),
        ((2, 3), none),
        ((2, 3, -1), none),
        ((1, 0, -1), none),
        ((1, 2, 3), none),
        ((1, 0, 1, -1), earlier),
        ((1, -1), earlier),
    ):
        for size in ((120, 160), (96, 41)):
            coords = torch.rand(1, len(labels), 2, generator=generator) * SIZE
            inputs = {
                "image_embeddings": ours,
                "point_coords": coords * (torch.tensor(labels)[None, :, None] >= 0),
                "point_labels": torch.tensor([labels], dtype=torch.float32),
                "mask_input": mask_input,
                "has_mask_input": torch.tensor([float(mask_input is earlier)]),
                "orig_im_size": torch.tensor(size, dtype=torch.float32),
            }
            expected = [value.numpy() for value in reference(**inputs)]
            got = decoder.run(None, {name: value.numpy() for name, value in inputs.items()})
            assert [value.shape for value in got] == [value.shape for value in expected]
            assert got[0].shape == (1, 1 if single else 4, *size)
            assert np.count_nonzero((got[0] > 0) != (expected[0] > 0)) == 0
            np.testing.assert_allclose(got[1], expected[1], atol=1e-4)
            np.testing.assert_allclose(got[2], expected[2], atol=1e-3)
            chosen.add(float(got[1][0, 0]))
    assert len(chosen) > 4


# ---------------------------------------------------------------- tools that take every model to have 1024 pixels


@pytest.mark.slow
def test_x_anylabeling__gives_vpexps_masks(tmp_path):
    sam = randomize(build_sam_debug(1024), seed=3)
    written = write(sam, tmp_path, "x_anylabeling")
    config = yaml.safe_load((written.folder / "segment_anything.yaml").read_text())
    assert config["type"] == "segment_anything"
    assert re.fullmatch(r"[A-Za-z0-9._-]+", config["name"])
    assert config["display_name"] == "sam_of mine (vpexp)"
    assert (config["input_size"], config["max_width"], config["max_height"]) == (1024, 1024, 682)
    files = [written.folder / config[f"{part}_model_path"] for part in ("encoder", "decoder")]
    for file in files:
        onnx.checker.check_model(str(file))
    # An image of the tool's own canvas is not warped: no pixel differs.
    image = crop(draw_vineyard(tmp_path, image_size=1024, count=1)[0], 684, 1024)
    tool = XAnyLabeling(*files)
    for points, labels in list_prompts(image):
        expected = answer(sam, image.image_HW3, points, labels)
        assert 0 < expected.mean() < 1
        assert np.count_nonzero(tool.segment(image.image_HW3, points, labels) != expected) == 0


def test_x_anylabeling__model_of_another_size(micro_sam, tmp_path):
    """The tool's canvas has 1024 pixels, so the image is enlarged by it and shrunk by the graph."""
    written = write(micro_sam, tmp_path, "x_anylabeling")
    tool = XAnyLabeling(written.encoder, written.decoder)
    image = crop(draw_vineyard(tmp_path, image_size=512, count=1, seed=9)[0], 342, 512)
    for points, labels in list_prompts(image):
        expected = answer(micro_sam, image.image_HW3, points, labels)
        got = tool.segment(image.image_HW3, points, labels)
        assert (expected & got).sum() / (expected | got).sum() > 0.9


def encode_png(image_HW3):
    content = io.BytesIO()
    Image.fromarray(image_HW3).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def test_cvat__gives_vpexps_masks(micro_sam, drawn, tmp_path):
    written = write(micro_sam, tmp_path, "cvat")
    function = yaml.safe_load((written.folder / "nuclio/function.yaml").read_text())
    assert function["metadata"]["name"] == "pth-facebookresearch-sam-vit-h"
    assert function["spec"]["handler"] == "main:handler"
    context = types.SimpleNamespace(user_data=types.SimpleNamespace(), Response=types.SimpleNamespace)
    with import_handler(written.folder / "nuclio/main.py") as main:
        main.init_context(context)
        response = main.handler(context, types.SimpleNamespace(body={"image": encode_png(drawn.image_HW3)}))
    assert response.status_code == 200
    blob = base64.b64decode(yaml.safe_load(response.body)["blob"])
    page, size = CvatPage(written.decoder), (256, 192)
    for points, labels in list_prompts(drawn):
        expected = answer(micro_sam, drawn.image_HW3, points, labels)
        assert expected.any()
        assert np.count_nonzero(page.segment(blob, size, points, labels) != expected) == 0
        # An older page appends a padding point, to boxes too.
        padded = page.segment(blob, size, [*points, [0, 0]], (*labels, -1))
        assert np.count_nonzero(padded != expected) == 0
    points, labels = list_prompts(drawn)[2]
    page.segment(blob, size, points[:2], labels[:2])
    earlier = resize_logits(torch.from_numpy(page.low_res), 64)
    refined = page.segment(blob, size, points, labels, further=True)
    assert np.count_nonzero(refined != answer(micro_sam, drawn.image_HW3, points, labels, earlier)) == 0


def test_cvat__refuses_what_its_page_cannot_take(tmp_path):
    sam = build_sam_debug(64)
    sam.prompt_encoder.image_size = 2048
    with pytest.raises(ConfigError, match="at most 1024 pixels; this model has 256 channels and 2048 pixels"):
        write(sam, tmp_path, "cvat")
    assert not list(tmp_path.iterdir())


def test_label_studio__gives_vpexps_masks(micro_sam, drawn, tmp_path):
    written = write(micro_sam, tmp_path, "label_studio")
    Image.fromarray(drawn.image_HW3).save(tmp_path / "a.png")
    for name in ("_wsgi.py", "requirements.txt", "README.txt"):
        assert (written.folder / name).read_text()
    percent = np.array([100 / 256, 100 / 192])
    with import_handler(written.folder / "model.py") as module:
        backend = module.SegmentAnything()
        assert backend.predict([{"data": {"image": "a.png"}}]) == []
        for points, labels in list_prompts(drawn):
            marks, places = [], (np.array(points) * percent).tolist()
            if labels[:2] == BOX:
                (left, top), (right, bottom) = places[:2]
                box = {"x": left, "y": top, "width": right - left, "height": bottom - top, "rectanglelabels": ["vine"]}
                marks.append({"type": "rectanglelabels", "value": box})
            for (x, y), label in zip(places, labels, strict=True):
                if label in (0, 1):
                    value = {"x": x, "y": y, "keypointlabels": ["vine"]}
                    marks.append({"type": "keypointlabels", "is_positive": label, "value": value})
            (answered,) = backend.predict(
                [{"id": 1, "data": {"image": str(tmp_path / "a.png")}}], context={"result": marks}
            )
            (result,) = answered["result"]
            assert (result["type"], result["from_name"], result["to_name"]) == ("brushlabels", "brush", "image")
            assert (result["original_width"], result["original_height"]) == (256, 192)
            assert result["value"]["brushlabels"] == ["vine"]
            assert answered["model_version"] == "sam_of mine-01234567"
            expected = answer(micro_sam, drawn.image_HW3, points, labels)
            assert np.count_nonzero((result["value"]["rle"] > 0) != expected) == 0


def test_label_studio__interface_has_all_labels(debug_sam, tmp_path):
    written = write(debug_sam, tmp_path, "label_studio")
    view = ET.parse(written.folder / "labeling.xml").getroot()
    assert [child.tag for child in view] == ["Image", "BrushLabels", "KeyPointLabels", "RectangleLabels"]
    assert [label.get("value") for label in view.find("BrushLabels")] == list(LABELS)
    assert {view.find(tag).get("smart") for tag in ("KeyPointLabels", "RectangleLabels")} == {"true"}


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("target", list(TARGETS))
def test_write_target__passes_its_check(debug_sam, drawn, tmp_path, target):
    written = write(debug_sam, tmp_path, target, precision="FP16")
    assert written.folder == tmp_path / target
    assert "sam_of mine" in (written.folder / "README.txt").read_text()
    parity = measure_target(written, drawn.image_HW3, [drawn.boxes.select(slice(2)), drawn.points.select(slice(2))])
    assert parity.prompts == 4
    assert parity.flipped < 1e-2
    assert "{{" not in "".join(
        file.read_text() for file in written.folder.rglob("*.*") if file.suffix in (".txt", ".yaml")
    )
