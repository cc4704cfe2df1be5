import math

import pytest

from vpexp.config import compose_config
from vpexp.reporting.report import (
    describe_control,
    describe_differences,
    describe_steps,
    describe_training,
    describe_verdict,
    read_control,
    read_times_in_turns,
)

CONTROL = {"test/f1-score": 0.82, "test/wrong_image/f1-score": 0.5, "test/box_filled/f1-score": 0.66}


def test_describe_control__says_that_masks_depend_on_the_image():
    section = describe_control(read_control(CONTROL, "test"), 0.05)

    assert section is not None
    assert section.lines == (
        "masks depend on the image: wrong-image drop 0.32 (f1-score 0.8200, and 0.5000 with the embedding of another image)",
        "box filled: f1-score 0.6600; the model is 0.1600 above it",
    )


def test_describe_control__says_that_they_hardly_do():
    control = read_control(CONTROL | {"test/wrong_image/f1-score": 0.8, "test/box_filled/f1-score": 0.9}, "test")
    section = describe_control(control, 0.05)

    assert section is not None
    assert section.lines[0].startswith("masks hardly depend on the image: wrong-image drop 0.02 ")
    assert section.lines[1].endswith("the model is 0.0800 below it")


def test_describe_control__of_a_single_image_has_no_wrong_one():
    section = describe_control(read_control(CONTROL | {"test/wrong_image/f1-score": None}, "test"), 0.05)

    assert section is not None
    assert len(section.lines) == 1


def test_describe_control__not_measured_says_nothing():
    assert read_control({"test/f1-score": 0.8}, "test") == {}
    assert describe_control({}, 0.05) is None
    assert describe_control({"f1-score": 0.5, "wrong_image_drop": math.nan}, 0.05) is None


def test_describe_training__says_what_was_trained_on():
    cfg = compose_config(["model=sam_micro", "data.batch_size=4", "optimizer.lr=1e-4"])
    counts = {"images": 38, "objects": 1032}
    records = {
        "train": {
            "data": {"format": "coco", "root": "/my/coco"},
            "splits": {
                "train": {**counts, "source": "train", "skipped": {"crowd region": 3, "box only": 2}},
                "val": {**counts, "source": "valid", "skipped": {}},
            },
            "best_checkpoint": "checkpoints/epoch_004.ckpt",
            "best_epoch": 5,
            "epochs": 8,
            "kept": "epoch 5",
        },
        "test_before": {"splits": {"test": {"images": 17, "objects": 444, "source": "test", "skipped": {}}}},
    }

    lines = describe_training(cfg, records).lines

    assert lines[0] == (
        "data: /my/coco (coco): train 38 images, 1032 objects, 5 skipped; val (valid) 38 images, 1032 objects; "
        "test 17 images, 444 objects"
    )
    assert lines[1] == "model: sam_micro at 256 px, from model.weights=auto; learns: mask_decoder"
    assert lines[3] == "training: Adam, lr 0.0001, batch size 4, seed 0"
    assert lines[4] == "best epoch: 5 of 8; kept: epoch 5, train/checkpoints/epoch_004.ckpt"


def test_describe_verdict__is_that_of_the_training():
    section = describe_verdict({"verdict": "fine-tuning did not help: ..."})

    assert section is not None
    assert (section.lines, section.finding) == (("fine-tuning did not help: ...",), True)
    assert describe_verdict({}) is None


def test_describe_training__says_when_val_was_tested():
    split = {"images": 2, "objects": 9, "source": "val", "skipped": {}}
    records = {"train": {"data": {"format": "voc", "root": "/my/voc"}, "splits": {"val": split, "test": split}}}

    lines = describe_training(compose_config(), records).lines

    assert lines[0].endswith("val 2 images, 9 objects; test (val) 2 images, 9 objects")
    assert lines[1].startswith("there is no test split: val was tested")


def test_describe_training__names_the_checkpoint_it_started_from():
    cfg = compose_config(["checkpoint=a.ckpt", "model.freeze=[]"])

    lines = describe_training(cfg, {}).lines

    assert lines[0] == "model: sam_micro at 256 px, from a.ckpt; learns: image_encoder, prompt_encoder, mask_decoder"


def test_describe_steps__times_are_readable():
    steps = {"train": {"status": "FINISHED", "seconds": 125.4}, "ptq": {"status": "FAILED", "seconds": 0.64}}

    assert describe_steps(steps).lines == ("train: finished, 2 min 5 s", "ptq: failed, 0.6 s")


def test_describe_differences__flips_where_the_export_measured_them():
    columns = {"torch": {"f1-score": 0.5, "map": 0.25}, "ir": {"f1-score": 0.49999, "map": 0.25}}

    section = describe_differences(columns, {"ir": {"export/flipped_per_10000": 0.25}, "onnx": {}})

    assert section is not None
    assert section.lines == (
        "ir - torch: f1-score +0.0000, map +0.0000",  # of a change of -0.00001 too
        "ir against torch on a trial image: of 10,000 mask pixels 0.25 flip",
    )


def test_describe_differences__gain_of_int8_is_what_was_timed_in_turns():
    columns = {name: {"f1-score": 0.5, "map": 0.25} for name in ("ir", "int8")}
    quantization = {"fp32/size_mb": 20.0, "int8/size_mb": 5.0, "fp32/encoder_ms": 30.0, "int8/encoder_ms": 20.0}

    section = describe_differences(columns, {}, quantization | {"fp32/decoder_ms": None, "ptq/seconds": 3.0})

    assert section is not None
    assert section.lines == (
        "int8 - ir: f1-score +0.0000, map +0.0000",
        "int8 against ir, timed in turns: 0.25 of the size, encoder 1.50 times as fast (30.0 ms, 20.0 ms)",
    )


def test_read_times_in_turns__in_seconds_of_both_models_or_not_at_all():
    quantization = {"fp32/encoder_ms": 30.0, "int8/encoder_ms": 20.0, "fp32/decoder_ms": 4.0, "int8/decoder_ms": 3.0}

    times = read_times_in_turns(quantization)

    assert times["ir"] == pytest.approx({"encoder_time": 0.030, "decoder_time": 0.004, "iter_time": 0.034})
    assert times["int8"] == pytest.approx({"encoder_time": 0.020, "decoder_time": 0.003, "iter_time": 0.023})
    assert read_times_in_turns(quantization | {"int8/decoder_ms": None}) == {}


def test_describe_differences__single_column_has_none():
    assert describe_differences({"before": {"f1-score": 0.5}}, {}) is None
