"""Where a run computes: by what is asked for and what is there, both given here as plain values."""

import pytest
import torch
from omegaconf import OmegaConf

from vpexp.devices import (
    Hardware,
    choose_device,
    choose_precision,
    find_hardware,
    find_native_bfloat16,
    list_devices,
    read_device,
)
from vpexp.errors import CheckpointError, ConfigError

NONE, ONE, FOUR, APPLE = Hardware(), Hardware(cuda=1), Hardware(cuda=4), Hardware(mps=True)


@pytest.mark.parametrize(
    ("hardware", "accelerator", "devices", "expected"),
    [
        (NONE, "auto", 1, ["cpu"]),
        (NONE, "auto", "auto", ["cpu"]),
        (NONE, "cpu", 2, ["cpu", "cpu"]),
        (NONE, "auto", "2", ["cpu", "cpu"]),
        (ONE, "auto", 1, ["cuda:0"]),
        (ONE, "cpu", 1, ["cpu"]),
        (ONE, "gpu", "auto", ["cuda:0"]),
        (FOUR, "auto", 1, ["cuda:0"]),
        (FOUR, "gpu", 2, ["cuda:0", "cuda:1"]),
        (FOUR, "cuda", "auto", ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        (FOUR, "auto", -1, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        (FOUR, "auto", [1], ["cuda:1"]),
        (FOUR, "auto", "[1]", ["cuda:1"]),
        (FOUR, "auto", "1,", ["cuda:1"]),
        (FOUR, "auto", "3, 0", ["cuda:3", "cuda:0"]),
        (FOUR, "auto", OmegaConf.create([2, 3]), ["cuda:2", "cuda:3"]),
        (APPLE, "auto", 1, ["mps:0"]),
        (APPLE, "gpu", "auto", ["mps:0"]),
        (APPLE, "mps", 1, ["mps:0"]),
        (APPLE, "cpu", 1, ["cpu"]),
    ],
)
def test_list_devices__as_asked(hardware, accelerator, devices, expected):
    assert [str(device) for device in list_devices(accelerator, devices, hardware)] == expected


@pytest.mark.parametrize(
    ("hardware", "accelerator", "devices", "words"),
    [
        (NONE, "gpu", 1, r"trainer\.accelerator=gpu: no GPU is found here"),
        (APPLE, "cuda", 1, r"trainer\.accelerator=cuda: no GPU is found here"),
        (FOUR, "mps", 1, r"trainer\.accelerator=mps: no GPU is found here"),
        (ONE, "auto", [1], r"trainer\.devices=\[1\]: there is no GPU 1 here; there is 0"),
        (FOUR, "auto", 5, r"trainer\.devices=5: there is no GPU 4 here; there is 0, 1, 2, 3"),
        (NONE, "auto", [1], r"trainer\.devices=\[1\]: names GPUs, and this runs on the CPU"),
        (NONE, "auto", 0, r"trainer\.devices=0: give how many"),
        (NONE, "auto", -5, r"trainer\.devices=-5: give how many"),
        (FOUR, "auto", "1,1", r"trainer\.devices=1,1: give how many"),
        (FOUR, "auto", "some", r"trainer\.devices=some: give how many"),
        (FOUR, "auto", [], r"trainer\.devices=\[\]: give how many"),
        (FOUR, "auto", True, r"trainer\.devices=True: give how many"),
    ],
)
def test_list_devices__what_is_not_there_is_one_line(hardware, accelerator, devices, words):
    with pytest.raises(ConfigError, match=words) as caught:
        list_devices(accelerator, devices, hardware)
    assert "\n" not in str(caught.value)


def test_choose_device__is_the_first_of_them():
    trainer = OmegaConf.create({"accelerator": "gpu", "devices": [2, 0]})
    assert choose_device(trainer, FOUR) == torch.device("cuda", 2)


def test_find_hardware__is_what_torch_has():
    assert (find_hardware().cuda > 0) == torch.cuda.is_available()


@pytest.mark.parametrize(
    ("name", "hardware", "expected"),
    [("cpu", NONE, "cpu"), ("cuda", FOUR, "cuda:0"), ("cuda:3", FOUR, "cuda:3"), ("mps", APPLE, "mps:0")],
)
def test_read_device__by_torch_s_name(name, hardware, expected):
    assert str(read_device(name, hardware)) == expected


@pytest.mark.parametrize(("name", "hardware"), [("cuda", NONE), ("cuda:4", FOUR), ("tpu", ONE), ("meta", ONE)])
def test_read_device__what_is_not_there_is_one_line(name, hardware):
    with pytest.raises(CheckpointError, match=f"^device={name}: "):
        read_device(name, hardware)


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [
        ({}, None),
        ({"avx2": True, "avx512_f": True, "amx_bf16": False}, None),
        ({"avx512_bf16": True}, "AVX512-BF16"),
        ({"avx512_bf16": True, "amx_bf16": True}, "AMX"),
        ({"bf16": True}, None),  # of ARM processors, where it was not measured
    ],
)
def test_find_native_bfloat16__asks_the_cpu(capabilities, native):
    assert find_native_bfloat16(torch.device("cpu"), capabilities) == native


def test_find_native_bfloat16__of_this_cpu_is_what_torch_says():
    supported = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert (find_native_bfloat16(torch.device("cpu")) is not None) == supported
    assert find_native_bfloat16(torch.device("mps")) is None


@pytest.mark.parametrize(
    ("asked", "device", "native", "chosen"),
    [
        ("auto", "cuda:0", "the GPU", "bf16-mixed"),
        ("auto", "cuda:0", None, "32-true"),
        ("auto", "mps", None, "32-true"),
        ("auto", "cpu", None, "32-true"),
        ("auto", "cpu", "AMX", "32-true"),
        ("bf16-mixed", "cpu", None, "bf16-mixed"),
        ("16-mixed", "cuda:0", "the GPU", "16-mixed"),
    ],
)
def test_choose_precision__is_what_was_asked_or_what_is_there(asked, device, native, chosen):
    assert choose_precision(asked, torch.device(device), native).name == chosen
