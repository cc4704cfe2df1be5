"""The graphs that find and name objects: they answer as torch does, in all formats, and are found, refused and quantized."""

import shutil
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from tests.references.exports import FULL, LABELS, draw_vineyard, export
from vpexp.config.schema import PtqConfig
from vpexp.data.masks import encode_mask
from vpexp.deploy.benchmark import build_gain_table, measure_costs
from vpexp.deploy.parity import InstanceParity, _compare_boxes, check_instance_parity, measure_instance_parity
from vpexp.deploy.quantize import INT8, KEEP, add_prompter, quantize_model
from vpexp.errors import CheckpointError, ExportError
from vpexp.inference.exported import find_exported, read_metadata
from vpexp.inference.graph_predictor import get_core
from vpexp.inference.instances import find_instances
from vpexp.inference.load import load_predictor
from vpexp.inference.mask_crops import crop_masks
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.models.mask_classifier import MaskClassifier

HALF = FULL | {"image_encoder": "FP16", "prompter": "FP16"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw_vineyard(tmp_path_factory.mktemp("drawn"), image_size=96)


@pytest.fixture(scope="module")
def reference(debug_sam, debug_instances):
    predictor = TorchPredictor(debug_sam)
    predictor.instances = debug_instances.build_model(torch.device("cpu"))
    return predictor


@pytest.fixture(scope="module")
def int8(instance_ir, calibrate, tmp_path_factory):
    methods = {"image_encoder": KEEP, "decoder": KEEP}
    made = quantize_model(instance_ir, tmp_path_factory.mktemp("int8"), calibrate(64, 3), PtqConfig(), methods)
    return add_prompter(instance_ir, made, calibrate(64, 3), PtqConfig(), INT8)


def find(predictor, image_HW3):
    prompts, found = find_instances(predictor, image_HW3)
    return prompts, found.masks


@pytest.mark.parametrize("which", ["instance_ir", "instance_onnx"])
def test_find__exported_equals_torch(which, reference, debug_instances, drawn, request):
    predictor = load_predictor(request.getfixturevalue(which), threads=1)
    assert predictor.instances.labels == LABELS
    assert (predictor.instances.threshold, predictor.instances.max_overlap) == (0.0, 0.6)
    names = set()
    for one in drawn:
        image_HW3 = one.image_HW3[:70]
        parity = measure_instance_parity(
            debug_instances.prompter, reference, predictor, image_HW3, prompts=one.boxes, precision="FP32"
        )
        assert parity.boxes > 3
        check_instance_parity(parity, "FP32", "model")
        assert parity.boxes_px < 0.01
        (expected_prompts, expected), (prompts, got) = find(reference, image_HW3), find(predictor, image_HW3)
        np.testing.assert_allclose(prompts.coords_NP2, expected_prompts.coords_NP2, atol=0.01)
        assert [mask.label for mask in got] == [mask.label for mask in expected]
        np.testing.assert_allclose([mask.score for mask in got], [mask.score for mask in expected], atol=1e-4)
        names |= {mask.label for mask in got}
    assert names


@pytest.mark.parametrize("format_", ["openvino", "onnx"])
def test_export__half_precision_and_one_class(format_, debug_sam, debug_instances, drawn, tmp_path):
    parts = replace(debug_instances, classifier=None, labels=("grape",))
    model = export(debug_sam, "sam_debug", tmp_path, format_, precisions=HALF, instances=parts)
    assert set(model.parts) == {"image_encoder", "decoder", "prompter"}
    assert find_exported(tmp_path) == model
    predictor = load_predictor(model, threads=1)
    assert predictor.instances.classify is None
    alone = TorchPredictor(debug_sam)
    alone.instances = parts.build_model(torch.device("cpu"))
    image_HW3, prompts = drawn[0].image_HW3, drawn[0].boxes
    parity = measure_instance_parity(parts.prompter, alone, predictor, image_HW3, prompts=prompts, precision="FP16")
    assert parity.boxes_px > 0
    check_instance_parity(parity, "FP16", "model")


@pytest.mark.parametrize("format_", ["openvino", "onnx"])
def test_export__every_kind_of_classifier_has_the_same_ports(format_, debug_sam, debug_instances, drawn, tmp_path):
    squares_KHW = np.zeros((2, *drawn[0].image_HW3.shape[:2]), np.bool_)
    squares_KHW[0, 5:20, 8:30] = squares_KHW[1, 40:60, 30:45] = True
    crops = crop_masks(drawn[0].image_HW3, [encode_mask(mask_HW) for mask_HW in squares_KHW])
    for name, settings in {"learnt": (4, False), "linear": (0, True)}.items():
        classifier = MaskClassifier(3, width=settings[0], statistics=settings[1]).eval()
        parts = replace(debug_instances, classifier=classifier)
        (tmp_path / name).mkdir()
        predictor = load_predictor(export(debug_sam, "sam_debug", tmp_path / name, format_, instances=parts), threads=1)
        with torch.no_grad():
            tensors = torch.from_numpy(crops.crops_K4PP), torch.from_numpy(crops.extents_K2)
            expected_KC = classifier(*tensors).softmax(dim=1).numpy()
        np.testing.assert_allclose(predictor.instances.classify(crops), expected_KC, atol=1e-4)


def test_graphs__ports(instance_ir):
    graphs = {part: get_core().read_model(file) for part, file in instance_ir.parts.items()}

    def describe(ports):
        return {
            port.get_any_name(): f"{port.get_partial_shape()} {port.get_element_type().to_string()}" for port in ports
        }

    assert describe(graphs["prompter"].inputs) == {"image_embeddings": "[1,256,4,4] f32", "images": "[1,3,64,64] f32"}
    assert describe(graphs["prompter"].outputs) == {"boxes": "[100,4] f32", "scores": "[100] f32"}
    assert describe(graphs["classifier"].inputs) == {"crops": "[?,4,64,64] u8", "extents": "[?,2] f32"}
    assert describe(graphs["classifier"].outputs) == {"probabilities": "[?,3] f32"}
    assert {graph.get_rt_info(["model_info", "source_hash"]).astype(str) for graph in graphs.values()} == {
        read_metadata(instance_ir).source_hash
    }


def test_graphs__onnx_knows_no_float64(instance_onnx):
    for file in instance_onnx.parts.values():
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        kinds = {port.type for port in (*session.get_inputs(), *session.get_outputs())}
        assert kinds <= {"tensor(float)", "tensor(uint8)", "tensor(int64)"}


# ---------------------------------------------------------------- files


def copy(model, folder, left_out=()):
    folder.mkdir()
    for file in model.files:
        if file.name not in left_out:
            shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("which", ["instance_ir", "instance_onnx"])
def test_find_exported__takes_all_parts_along(which, request, tmp_path):
    model = request.getfixturevalue(which)
    there = find_exported(copy(model, tmp_path / "a"))
    assert list(there.parts) == ["image_encoder", "decoder", "prompter", "classifier"]
    assert len(there.files) == len(model.files)
    assert there.size_mb == model.size_mb
    assert all(find_exported(file) == there for file in there.files)
    (tmp_path / "b").mkdir()
    moved = there.move_to(tmp_path / "b")
    assert moved == find_exported(tmp_path / "b")
    assert not list((tmp_path / "a").iterdir())


@pytest.mark.parametrize(
    ("left_out", "complaint"),
    [
        (["prompter.bin"], "exported_model_prompter.bin is missing: an exported model needs "),
        (["classifier.xml"], "exported_model_classifier.xml is missing: an exported model needs "),
        (["classifier.xml", "classifier.bin"], "exported_model_classifier.xml is missing: copy all files of one run"),
        (["prompter.xml", "prompter.bin"], "exported_model_prompter.xml is missing: copy all files of one run"),
    ],
)
def test_load_predictor__missing_part(instance_ir, tmp_path, left_out, complaint):
    folder = copy(instance_ir, tmp_path / "a", {f"exported_model_{name}" for name in left_out})
    with pytest.raises(CheckpointError, match=complaint):
        load_predictor(folder)


def test_load_predictor__without_prompter_and_classifier_answers_prompts(instance_ir, tmp_path):
    names = {f"exported_model_{part}.{suffix}" for part in ("prompter", "classifier") for suffix in ("xml", "bin")}
    assert load_predictor(copy(instance_ir, tmp_path / "a", names)).instances is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda text: text[:500], "exported_model_prompter.xml cannot be read as an OpenVINO IR"),
        (
            lambda text: text.replace("vpexp_prompter", "sam_decoder"),
            "is no prompter of vpexp: its model_type is sam_decoder",
        ),
        (
            lambda text: text.replace('<threshold value="0.0"', '<threshold value="nan"'),
            "not written by vpexp, or changed",
        ),
        (lambda text: text.replace("<max_overlap", "<other"), "not written by vpexp, or changed since"),
        (
            lambda text: text.replace('name="boxes', 'name="circles').replace('"boxes"', '"circles"'),
            "has no port boxes",
        ),
    ],
)
def test_load_predictor__damaged_prompter(instance_ir, tmp_path, change, complaint):
    file = copy(instance_ir, tmp_path / "a") / "exported_model_prompter.xml"
    text = file.read_text()
    assert change(text) != text
    file.write_text(change(text))
    with pytest.raises(CheckpointError, match=complaint) as caught:
        load_predictor(file.parent)
    assert "\n" not in str(caught.value)


def test_load_predictor__prompter_of_another_export(instance_ir, tmp_path):
    file = copy(instance_ir, tmp_path / "a") / "exported_model_prompter.xml"
    source = read_metadata(instance_ir).source_hash
    file.write_text(file.read_text().replace(source, source[::-1]))
    with pytest.raises(
        CheckpointError, match=r"prompter.xml and exported_model_decoder.xml in .* come from different exports"
    ):
        load_predictor(file.parent)


# ---------------------------------------------------------------- the check


@pytest.mark.parametrize("change", ["boxes", "scores", "classes", "nan"])
def test_check_instance_parity__refuses_what_finds_other_objects(change, reference, debug_instances, debug_sam, drawn):
    other = TorchPredictor(debug_sam)

    def find_boxes(features, image_13SS):
        boxes_K4, scores_K = reference.instances.find_boxes(features, image_13SS)
        if change == "nan":
            return boxes_K4 * np.nan, scores_K
        return boxes_K4 + (change == "boxes"), scores_K * (1 - 0.01 * (change == "scores"))

    def classify(crops):
        probabilities_KC = reference.instances.classify(crops)
        return np.roll(probabilities_KC, 1, axis=1) if change == "classes" else probabilities_KC

    other.instances = replace(reference.instances, find_boxes=find_boxes, classify=classify)
    image_HW3, prompts = drawn[0].image_HW3, drawn[0].boxes
    parity = measure_instance_parity(
        debug_instances.prompter, reference, other, image_HW3, prompts=prompts, precision="FP32"
    )
    with pytest.raises(
        ExportError, match="the IR finds other objects than the trained one, so it was not written"
    ) as error:
        check_instance_parity(parity, "FP32", "IR")
    assert "\n" not in str(error.value)


def build_boxes(*rows):
    return np.array(rows, np.float32).reshape(-1, 5)


def test_compare_boxes__ranks_and_ties_do_not_count():
    first, second, twin = [0, 0, 10, 10, 0.8], [20, 20, 30, 30, 0.8], [24, 20, 34, 30, 0.8]
    certain, possible = build_boxes(first), build_boxes(first, second, twin)
    rest, weak = [3, 3, 9, 9, 0], build_boxes([50, 50, 60, 60, 0.04])
    for found in ([first, second], [twin, first], [second, first, twin]):
        assert _compare_boxes(certain, possible, build_boxes(*found, rest), 1e-3) == (0.0, 0.0, len(found))
    both = build_boxes(first, second)
    assert _compare_boxes(both, possible, build_boxes(first, rest), 1e-3) == (20.0, 0.0, 2)
    assert _compare_boxes(both, possible, build_boxes(first), 1e-3) == (0.0, 0.0, 1)  # no more were to be given
    assert _compare_boxes(certain, possible, build_boxes(rest), 1e-3)[0] == np.inf
    assert _compare_boxes(weak, weak, build_boxes(rest), 1e-3) == (0.0, 0.0, 0)


@pytest.mark.parametrize(
    ("change", "precision", "passes"),
    [
        ({"boxes_px": 0.4}, "FP32", True),
        ({"boxes_px": 0.6}, "FP32", False),
        ({"boxes_px": 0.6}, "FP16", True),
        ({"scores": 2e-3}, "FP32", False),
        ({"probabilities": 2e-3}, "FP32", False),
        ({"scores": float("nan")}, "FP16", False),
    ],
)
def test_check_instance_parity__limits(change, precision, passes):
    parity = replace(InstanceParity(0.0, 0.0, 0.0, 3), **change)
    if passes:
        check_instance_parity(parity, precision, "model")
        return
    with pytest.raises(ExportError):
        check_instance_parity(parity, precision, "model")


# ---------------------------------------------------------------- INT8


def test_add_prompter__finds_the_same_objects_at_a_third_of_the_size(
    instance_ir, int8, debug_instances, reference, drawn
):
    assert find_exported(int8.folder) == int8
    assert int8.is_quantized
    assert int8.classifier.read_bytes() == instance_ir.classifier.read_bytes()
    before, after = (model.prompter.with_suffix(".bin").stat().st_size for model in (instance_ir, int8))
    assert after < 0.4 * before
    assert 'precision value="INT8"' in int8.prompter.read_text()
    assert read_metadata(int8).instances == read_metadata(instance_ir).instances
    predictor = load_predictor(int8, threads=1)
    image_HW3, prompts = drawn[0].image_HW3, drawn[0].boxes
    parity = measure_instance_parity(
        debug_instances.prompter, reference, predictor, image_HW3, prompts=prompts, precision="FP16"
    )
    assert parity.boxes_px < 4
    assert parity.scores < 0.2


def test_add_prompter__peaks_and_boxes_are_not_rounded(int8):
    graph = get_core().read_model(int8.prompter)
    rounded = [node for node in graph.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]
    targets = {one.get_node().get_type_name() for node in rounded for one in node.output(0).get_target_inputs()}
    assert "Convolution" in targets
    assert not targets & {"SoftPlus", "Sigmoid", "MaxPool", "TopK", "Equal", "GatherElements", "Subtract"}
    assert len([one for one in graph.get_ordered_ops() if one.get_type_name() == "Convolution"]) > len(rounded) / 4


def test_gain_table__has_the_prompter(instance_ir, int8, calibrate):
    predictors = load_predictor(instance_ir, threads=1), load_predictor(int8, threads=1)
    before, after = measure_costs((instance_ir, int8), predictors, calibrate(64, 1).images[0])
    assert before.total_mb == pytest.approx(instance_ir.size_mb)
    assert after.total_mb == pytest.approx(int8.size_mb)
    table = build_gain_table(before, after, ("FP32", "INT8"), prompts=3)
    assert [str(cell) for cell in table.columns[0].cells][:4] == ["image encoder", "decoder", "prompter", "all"]
