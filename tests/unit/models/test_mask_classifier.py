import numpy as np
import onnxruntime
import openvino
import pytest
import torch

from vpexp.models.mask_classifier import BINS, MaskClassifier, compute_statistics


def draw_crops(seed=0, count=5, side=64):
    rng = np.random.default_rng(seed)
    crops_K4PP = torch.from_numpy(rng.integers(0, 256, (count, 4, side, side), dtype=np.uint8))
    crops_K4PP[:, 3] = 0
    for crop_4PP in crops_K4PP:
        top, left = rng.integers(0, side // 2, 2)
        crop_4PP[3, top : top + rng.integers(8, side // 2), left : left + rng.integers(8, side // 2)] = 255
    return crops_K4PP, torch.from_numpy(rng.normal(size=(count, 2)).astype(np.float32))


def build(seed=0):
    torch.manual_seed(seed)
    classifier = MaskClassifier(3, width=4, statistics=True).eval()
    classifier.agreement.fill_(1)
    return classifier


def test_compute_statistics__of_one_color_and_of_nothing():
    crops_K4PP = torch.zeros(2, 4, 64, 64)
    crops_K4PP[0, :3], crops_K4PP[0, 3, 16:48, 16:48] = torch.tensor([1.0, 0.0, 0.0])[:, None, None], 1.0
    red_F, nothing_F = compute_statistics(crops_K4PP, torch.zeros(2, 2))
    assert red_F[:6].tolist() == pytest.approx([1, 0, 0, 0, 0, 0], abs=1e-5)
    histograms = red_F[6 : 6 + 3 * BINS].reshape(BINS, 3)
    assert histograms.sum(dim=0).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert histograms[[0, -1], 0].tolist() == pytest.approx(
        [0.5, 0.5], abs=1e-5
    )  # red is where the circle of hues closes
    assert histograms[-1, 1:].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert nothing_F.isfinite().all()


def test_compute_statistics__shape_is_the_same_turned_and_scaled():
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")

    def draw_star(points, degrees, radius):
        angle = torch.atan2(rows - 31.5, columns - 31.5) + np.deg2rad(degrees)
        inside = torch.hypot(rows - 31.5, columns - 31.5) < radius * (0.7 + 0.3 * torch.cos(points * angle))
        return torch.cat([torch.ones(3, 64, 64), inside.float()[None]])

    crops_K4PP = torch.stack([draw_star(5, 0, 30), draw_star(5, 25, 24), draw_star(4, 0, 30)])
    shape_KF = compute_statistics(crops_K4PP, torch.zeros(3, 2))[:, -18:-4]
    assert (shape_KF[0] - shape_KF[1]).abs().max() < 0.05
    assert (shape_KF[0] - shape_KF[2]).abs().max() > 0.2


@torch.no_grad()
def test_mask_classifier__a_doubtful_mask_is_named_like_the_others_of_its_image():
    classifier = MaskClassifier(2, width=0, statistics=True).eval()
    torch.nn.init.zeros_(classifier.statistics.weight)[0, -1] = (
        1.0  # the last extent speaks for class 0, its negative for 1
    )
    torch.nn.init.zeros_(classifier.statistics.bias)
    classifier.agreement.fill_(1)
    crops_K4PP, extents_K2 = draw_crops(count=4)
    extents_K2[:, 1] = torch.tensor([3.0, -0.5, 4.0, 3.0])
    assert classifier(crops_K4PP, extents_K2).argmax(dim=1).tolist() == [0, 0, 0, 0]
    assert classifier(crops_K4PP[1:2], extents_K2[1:2]).argmax(dim=1).tolist() == [1]
    extents_K2[1, 1] = -4.0
    assert classifier(crops_K4PP, extents_K2).argmax(dim=1).tolist() == [0, 1, 0, 0]


@pytest.mark.slow
def test_mask_classifier__its_graphs_take_any_number_of_masks(tmp_path):
    classifier = build()
    traced = torch.jit.trace(classifier, draw_crops(count=2))
    path = tmp_path / "classifier.onnx"
    names = {"crops": {0: "masks"}, "extents": {0: "masks"}, "logits": {0: "masks"}}
    torch.onnx.export(
        classifier,
        draw_crops(count=2),
        str(path),
        opset_version=17,
        dynamo=False,
        input_names=["crops", "extents"],
        output_names=["logits"],
        dynamic_axes=names,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    graph = openvino.convert_model(traced, example_input=draw_crops(count=2), input=[[-1, 4, 64, 64], [-1, 2]])
    compiled = openvino.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for count in (1, 7):
        crops_K4PP, extents_K2 = draw_crops(seed=count, count=count)
        with torch.no_grad():
            expected_KC = classifier(crops_K4PP, extents_K2).numpy()
        (by_onnx_KC,) = session.run(None, {"crops": crops_K4PP.numpy(), "extents": extents_K2.numpy()})
        by_openvino_KC = compiled([crops_K4PP.numpy(), extents_K2.numpy()])[0]
        np.testing.assert_allclose(by_onnx_KC, expected_KC, atol=1e-3)
        np.testing.assert_allclose(by_openvino_KC, expected_KC, atol=1e-3)


@torch.no_grad()
def test_mask_classifier__is_built_again_from_its_settings():
    for settings in (
        {"width": 4, "statistics": True},
        {"width": 4, "statistics": False},
        {"width": 0, "statistics": True},
    ):
        classifier = MaskClassifier(3, **settings).eval()
        again = MaskClassifier(**classifier.settings).eval()
        again.load_state_dict(classifier.state_dict())
        assert torch.equal(again(*draw_crops()), classifier(*draw_crops()))
        assert again(*draw_crops()).shape == (5, 3)
