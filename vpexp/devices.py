"""What ``trainer.accelerator``, ``trainer.devices`` and ``trainer.precision`` come to on this machine: all that runs on a device asks here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import ListConfig

from vpexp.errors import CheckpointError, ConfigError

CPU, CUDA, MPS = "cpu", "cuda", "mps"
AUTO = "auto"
ALL = (AUTO, "-1")
SINGLE, MIXED = "32-true", "bf16-mixed"
"""Precisions of Lightning's that ``auto`` chooses between."""
NATIVE = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}
"""Instructions of x86 processors that multiply bfloat16, by torch's names; what others do was not measured."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What there is to compute on beside the CPU: NVIDIA or AMD GPUs that torch can use, and Apple's."""

    cuda: int = 0
    mps: bool = False


@dataclass(frozen=True, slots=True)
class Precision:
    """What a training computes in: Lightning's name, and why."""

    name: str
    reason: str

    @property
    def is_bfloat16(self) -> bool:
        """Whether products are of bfloat16."""
        return self.name.startswith("bf16")


def find_hardware() -> Hardware:
    """Ask torch what there is."""
    return Hardware(torch.cuda.device_count() if torch.cuda.is_available() else 0, torch.backends.mps.is_available())


def list_devices(accelerator: str, devices: Any, hardware: Hardware | None = None) -> list[torch.device]:
    """List the devices that a run computes on, the first one's first; of a CPU as often as processes are asked for.

    Args:
        accelerator: auto (a GPU where there is one), cpu, gpu, cuda or mps.
        devices: how many (2, "2"), which ([1], "0,1", "1,"), or auto (all GPUs; one process on a CPU).
        hardware: None: that of this machine.

    Raises:
        ConfigError: there are no such devices here.
    """
    hardware = hardware or find_hardware()
    kind = _choose_kind(accelerator, hardware)
    there = {CUDA: hardware.cuda, MPS: 1, CPU: 1}[kind]
    chosen = _read_devices(devices, there)
    if kind == CPU and isinstance(chosen, int):
        return [torch.device(CPU)] * chosen
    places = list(range(chosen)) if isinstance(chosen, int) else chosen
    if kind == CPU:
        raise ConfigError(
            f"trainer.devices={devices}: names GPUs, and this runs on the CPU: say how many processes, as 1"
        )
    if missing := [place for place in places if not 0 <= place < there]:
        first = ", ".join(str(place) for place in range(there))
        raise ConfigError(f"trainer.devices={devices}: there is no GPU {missing[0]} here; there is {first}")
    return [torch.device(kind, place) for place in places]


def choose_device(trainer: Any, hardware: Hardware | None = None) -> torch.device:
    """Choose where everything but the other processes of a training runs: the first device of the section ``trainer``.

    Raises:
        ConfigError: see ``list_devices``.
    """
    return list_devices(str(trainer.accelerator), trainer.devices, hardware)[0]


def _choose_kind(accelerator: str, hardware: Hardware) -> str:
    if accelerator == CPU:
        return CPU
    if hardware.cuda and accelerator != MPS:
        return CUDA
    if hardware.mps and accelerator != CUDA:
        return MPS
    if accelerator == AUTO:
        return CPU
    raise ConfigError(
        f"trainer.accelerator={accelerator}: no GPU is found here; trainer.accelerator=auto takes one where there is one"
    )


def _read_devices(devices: Any, there: int) -> int | list[int]:
    """Read how many devices are asked for, or which."""
    wrong = ConfigError(f"trainer.devices={devices}: give how many (1, 2), which ([1], or '0,1'), or auto")
    listed = isinstance(devices, list | tuple | ListConfig)
    text = ",".join(map(str, devices)) if listed else str(devices).strip()
    if text in ALL and not listed:
        return there
    try:
        numbers = [int(part) for part in text.strip("[]").split(",") if part.strip()]
    except ValueError:
        raise wrong from None
    if isinstance(devices, bool) or not numbers or len(set(numbers)) < len(numbers):
        raise wrong
    if listed or "," in text or "[" in text:
        return numbers
    if numbers[0] < 1:
        raise wrong
    return numbers[0]


def find_native_bfloat16(device: torch.device, capabilities: Mapping[str, Any] | None = None) -> str | None:
    """Name what multiplies bfloat16 on a device; None where torch would imitate it, which is slower than float32.

    Args:
        device: of this machine.
        capabilities: of its CPU, by torch's names; None asks it.
    """
    if device.type == CUDA:
        with torch.cuda.device(device):
            return "the GPU" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type == CPU:
        capabilities = _ask_cpu() if capabilities is None else capabilities
        return next((name for key, name in NATIVE.items() if capabilities.get(key)), None)
    return None


def _ask_cpu() -> Mapping[str, Any]:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # what uses the instructions
        return {}
    if hasattr(torch.cpu, "get_capabilities"):
        found: Mapping[str, Any] = torch.cpu.get_capabilities()
        return found
    amx, avx = torch.cpu._is_amx_tile_supported(), torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001 (of older versions)
    return {"amx_bf16": amx, "avx512_bf16": avx}


def choose_precision(asked: str, device: torch.device, native: str | None) -> Precision:
    """Choose what a training computes in: by itself bfloat16 on a GPU that computes it, else float32.

    On a CPU bfloat16 has to be asked for: that F1 stays within 0.002 of float32's was seen on one data set alone (docs/speed.md).

    Args:
        asked: ``trainer.precision``: auto, or Lightning's own name.
        device: where it trains.
        native: from ``find_native_bfloat16``.
    """
    if asked != AUTO:
        return Precision(asked, f"trainer.precision={asked}")
    if native is None:
        return Precision(SINGLE, f"{device} does not compute bfloat16 itself")
    if device.type == CPU:
        return Precision(SINGLE, f"trainer.precision={MIXED} takes the {native} that this CPU has (docs/speed.md)")
    return Precision(MIXED, f"{native} computes it")


def read_device(name: str, hardware: Hardware | None = None) -> torch.device:
    """Read torch's name of a device that models run on: cpu, cuda, cuda:1, mps.

    Raises:
        CheckpointError: there is no such device here.
    """
    kind, _, place = name.partition(":")
    if kind not in (CPU, CUDA, MPS) or not (place.isdecimal() or not place):
        raise CheckpointError(f"device={name}: must be cpu, cuda, cuda:1 or the like, or mps")
    try:
        return list_devices(kind, 1 if kind == CPU else [int(place or 0)], hardware)[0]
    except ConfigError as error:
        raise CheckpointError(f"device={name}: there is no such device here") from error
