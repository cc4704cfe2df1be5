"""Files of trained weights: finding, reading, writing and naming them.

Files hold a state dict under the names of the official packages (segment_anything, MobileSAM, sam2), flat or under ``model``, as
``.pth`` or ``.pt`` (a pickle of tensors only) or ``.safetensors``, in any floating-point type.
"""

import hashlib
import logging
import os
import pickle
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vpexp.errors import ExportError, WeightsError
from vpexp.files import replacing
from vpexp.models.download import download_file, get_cache_dir
from vpexp.models.registry import get_model_info, list_models
from vpexp.models.sam import Sam
from vpexp.models.tiny_vit import TinyViT
from vpexp.models.vit import ImageEncoderViT

UNUSED_KEYS = frozenset(
    f"image_encoder.{name}" for name in ("norm_head.weight", "norm_head.bias", "head.weight", "head.bias")
)
"""Entries of ``mobile_sam.pt`` that SAM never uses: TinyViT's classification head."""

PACKAGED_DIR = Path(__file__).parent / "packaged"
"""Folder of the weights that come with the package."""

_SHOWN_KEYS = 3
_SUFFIXES = (".pth", ".pt", ".safetensors")
# Entries that tell layouts apart which no model here reads.
_FOREIGN_LAYOUTS = {
    "image_encoder.blocks.23.attn.qkv.weight": "SAM ViT-L or ViT-H",
    "vision_encoder.pos_embed": "a transformers SamModel",
    "sam_mask_decoder.iou_token.weight": "SAM 2",
    "image_encoder.trunk.pos_embed": "SAM 2",
}
FILE_NAME = "exported_model.pth"

_logger = logging.getLogger(__name__)


def resolve_weights(
    name: str, weights: str | os.PathLike[str] = "auto", cache_dir: str | os.PathLike[str] | None = None
) -> Path | None:
    """Find the weights file of a model; None stands for random weights.

    ``auto`` is the official file, downloaded once, or the file that comes with the package; ``random`` is no file;
    anything else is a path.

    Raises:
        WeightsError: The file does not exist and cannot be fetched.
        ConfigError: No model has this name.
    """
    info = get_model_info(name)
    if weights == "random":
        return None
    if weights != "auto":
        path = Path(weights).expanduser()
        if not path.is_file():
            raise WeightsError(f"weights file {path} does not exist: model.weights takes auto, random or a file's path")
        return path
    if info.weights is None:
        return None
    if info.weights.url is None or info.weights.sha256 is None:
        path = PACKAGED_DIR / info.weights.filename
        if not path.is_file():
            raise WeightsError(
                f"{path.name}, the weights of {name}, are missing from this installation ({path}): "
                "install vpexp again, or give model.weights=<path> or model.weights=random"
            )
        return path
    return download_file(info.weights.url, get_cache_dir(cache_dir) / info.weights.filename, info.weights.sha256)


def load_weights(sam: Sam, path: str | os.PathLike[str]) -> None:
    """Load a weights file into a model: every entry must fit, none may be missing or left over.

    Three things are bridged: position embeddings made for another image size are interpolated, the classification
    head in ``mobile_sam.pt`` is left out, and so are the parts of SAM 2 that only videos need (``Sam.left_out``).

    Raises:
        WeightsError: The file cannot be read, or does not fit the model; the message names the entries and the
            model that the file looks like.
    """
    path = Path(path)
    state = sam.adopt_official(_read_state(path))
    if sam.left_out:
        parts = sorted({name.split(".")[0] for name in sam.left_out})
        _logger.info("%s: left out %s: an image needs them not", path.name, ", ".join(parts))
    if isinstance(sam.image_encoder, TinyViT):
        left_out = sorted(UNUSED_KEYS & state.keys())
        if left_out:
            _logger.info("%s: left out %s", path.name, ", ".join(left_out))
        state = {key: tensor for key, tensor in state.items() if key not in UNUSED_KEYS}
    if isinstance(sam.image_encoder, ImageEncoderViT):
        sam.image_encoder.fit_positions(state, prefix="image_encoder.")
    complaints = _compare(sam.state_dict(), state)
    if complaints:
        found = identify_model(state)
        hint = f" (it looks like {found})" if found else ""
        raise WeightsError(f"{path} does not fit the model{hint}: {'; '.join(complaints)}")
    sam.load_state_dict(state)
    check_finite(sam.state_dict(), path)


def find_unusable(state: Mapping[str, Tensor]) -> str | None:
    """Name the first entry that is no plain tensor of real numbers in memory, and what it is; None if all are."""
    for name, tensor in state.items():
        kinds = {
            "meta": tensor.is_meta,
            "sparse": tensor.layout != torch.strided,
            "quantized": tensor.is_quantized,
            "complex": tensor.is_complex(),
        }
        for kind, holds in kinds.items():
            if holds:
                return f"{name} is a {kind} tensor"
    return None


def check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Check that weights are numbers.

    Raises:
        WeightsError: an entry holds NaN or infinity.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise WeightsError(
                f"{path}: {name} holds values that are no numbers: damaged, or of a training that diverged"
            )


def save_weights(sam: Sam, path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Path:
    """Write a model's weights as the official packages lay them out; the suffix chooses the format.

    At the model's default image size the file loads strictly in the official package. ``dtype`` converts the
    floating-point entries (e.g. ``torch.float16``). The file is written aside and renamed when whole.

    Raises:
        WeightsError: The suffix is none of .pth, .pt, .safetensors.
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise WeightsError(f"{path}: weights are written as one of {', '.join(_SUFFIXES)}")
    state = {key: tensor.detach().cpu() for key, tensor in sam.state_dict().items()}
    if isinstance(sam.image_encoder, TinyViT):
        state |= {f"image_encoder.{key}": tensor for key, tensor in sam.image_encoder.build_unused_head().items()}
    content = sam.to_official(state)
    state = content.get("model", content)
    if dtype is not None:
        for key, tensor in state.items():
            state[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        if path.suffix == ".safetensors":
            contiguous = {key: tensor.contiguous() for key, tensor in state.items()}
            safetensors.torch.save_file(contiguous, draft, metadata={"format": "pt"})
        else:
            with draft.open("wb") as file:  # one that torch opens stays open after an error, and a full disk full
                torch.save(content, file)
    return path


def compute_state_hash(module: nn.Module, without: Collection[str] = ()) -> str:
    """Compute the sha256 (hex) of a module's parameters and buffers: names, types, shapes and bytes; some may be left out."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if name in without:
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy())
    return digest.hexdigest()


def identify_model(state: Mapping[str, Tensor]) -> str | None:
    """Return which model a state dict looks like, by its entries' names and widths; None if like none that is known."""
    keys = state.keys() - UNUSED_KEYS
    for name in list_models():
        info = get_model_info(name)
        with torch.device("meta"):
            sam = info.build(info.image_size)
        expected, own = sam.state_dict(), sam.adopt_official({key: state[key] for key in keys})
        # Numbers of positions depend on the image size, so the last axis decides.
        if own.keys() == expected.keys() and all(own[key].shape[-1:] == expected[key].shape[-1:] for key in own):
            return name
    return next((layout for key, layout in _FOREIGN_LAYOUTS.items() if key in state), None)


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"weights file {path} does not exist") from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
        # The libraries' own messages are long, and torch's tells how to load unsafely.
        message = f"{path} cannot be read ({type(error).__name__}): damaged, or not a file of tensors only"
        raise WeightsError(message) from error
    if isinstance(content, dict) and content.keys() == {"model"} and isinstance(content["model"], dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        entries = _shorten(content) if isinstance(content, dict) else type(content).__name__
        raise WeightsError(f"{path} holds no flat state dict of weights but {entries}: a checkpoint of a training run?")
    if not all(isinstance(name, str) for name in content):
        raise WeightsError(f"{path} holds weights without names")
    if unusable := find_unusable(content):
        raise WeightsError(f"{path}: {unusable}: save plain tensors")
    return content


def _compare(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    missing = expected.keys() - state.keys()
    unexpected = state.keys() - expected.keys()
    misshaped = [
        f"{key} {list(state[key].shape)} instead of {list(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    mistyped = [
        f"{key} {str(state[key].dtype).removeprefix('torch.')}"
        for key, tensor in expected.items()
        if key in state and tensor.is_floating_point() and not state[key].is_floating_point()
    ]
    complaints = []
    if mistyped:
        complaints.append(f"of another type: {len(mistyped)} ({_shorten(mistyped)})")
    if missing:
        complaints.append(f"missing: {len(missing)} ({_shorten(sorted(missing))})")
    if unexpected:
        complaints.append(f"unknown: {len(unexpected)} ({_shorten(sorted(unexpected))})")
    if misshaped:
        complaints.append(f"of another shape: {len(misshaped)} ({_shorten(misshaped)})")
    return complaints


def _shorten(items: Iterable[object]) -> str:
    texts = [str(item) for item in items]
    return ", ".join(texts[:_SHOWN_KEYS]) + (", …" if len(texts) > _SHOWN_KEYS else "")


def write_official(sam: Sam, folder: Path, *, halve: bool) -> Path:
    """Write a model's weights as ``segment-anything``, MobileSAM or ``sam2`` take them.

    Args:
        sam: the model; it is left as it is.
        folder: where ``exported_model.pth`` goes.
        halve: store float16 instead of float32.

    Raises:
        ExportError: what was written does not read back as the same weights.
    """
    import torch

    path = save_weights(sam, folder / FILE_NAME, torch.float16 if halve else None)
    written, left_out = {name: tensor.clone() for name, tensor in sam.state_dict().items()}, sam.left_out
    before = compute_state_hash(sam)
    try:
        load_weights(sam, path)
        if not halve and compute_state_hash(sam) != before:
            raise ExportError(f"{path} does not read back as the weights that were written")
    finally:
        sam.load_state_dict(written)
        sam.left_out = left_out
    return path
