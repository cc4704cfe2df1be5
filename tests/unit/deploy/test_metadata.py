"""What an exported model says of itself."""

import json
from importlib.metadata import version

import pytest

from vpexp.data.geometry import MEAN, STD
from vpexp.deploy.graph import ExportInfo, build_model_info


def build(labels=("berry",), part="decoder", precision="FP32"):
    return build_model_info(ExportInfo("sam_micro", 256, labels, "abc", "auto"), part, precision)


@pytest.mark.parametrize(("part", "model_type"), [("image_encoder", "sam_image_encoder"), ("decoder", "sam_decoder")])
def test_build_model_info__every_key_is_text(part, model_type):
    info = build(part=part, precision="FP16")

    assert all(type(value) is str for value in info.values())
    assert info["model_type"] == model_type
    assert info["task_type"] == "visual_prompting"
    assert tuple(map(float, info["mean_values"].split())) == MEAN
    assert tuple(map(float, info["scale_values"].split())) == STD
    assert info["resize_type"] == "fit_to_window"
    assert info["pad_value"] == "0"
    assert info["reverse_input_channels"] == "False"
    assert (info["image_size"], info["model_name"], info["precision"]) == ("256", "sam_micro", "FP16")
    assert (info["source_hash"], info["vpexp_version"]) == ("abc", version("vpexp"))


def test_build_model_info__tiles_where_there_are_some():
    info = build_model_info(ExportInfo("sam_micro", 256, (), "abc", "auto", 512, 0.5), "decoder", "FP32")
    assert (info["tile"], info["tile_overlap"]) == ("512", "0.5")
    assert not build().keys() & {"tile", "tile_overlap"}


@pytest.mark.parametrize(
    "labels",
    [
        (),
        ("berry",),
        ("grape bunch", "leaf"),
        ("a \"b\" <c> & 'd'", "tab\there"),
        ("Größe", "葡萄", "🍇"),
        (" x ", "y"),
    ],
)
def test_build_model_info__labels(labels):
    info = build(labels)

    assert tuple(json.loads(info["label_names"])) == labels
    assert len(info["labels"].split()) == len(labels)  # as Model API takes the list apart
    assert info["label_names"].isascii()
