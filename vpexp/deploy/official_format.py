"""A model as one file of weights in the official layout, for the original packages."""

from pathlib import Path

from vpexp.errors import ExportError
from vpexp.models.sam import Sam
from vpexp.models.weights import compute_state_hash, load_weights, save_weights

FILE_NAME = "exported_model.pth"


def write_official(sam: Sam, folder: Path, *, halve: bool) -> Path:
    """Write a model's weights as ``segment-anything`` or MobileSAM take them.

    Args:
        sam: the model; it is left as it is.
        folder: where ``exported_model.pth`` goes.
        halve: store float16 instead of float32.

    Raises:
        ExportError: what was written does not read back as the same weights.
    """
    import torch

    path = save_weights(sam, folder / FILE_NAME, torch.float16 if halve else None)
    written = {name: tensor.clone() for name, tensor in sam.state_dict().items()}
    before = compute_state_hash(sam)
    try:
        load_weights(sam, path)
        if not halve and compute_state_hash(sam) != before:
            raise ExportError(f"{path} does not read back as the weights that were written")
    finally:
        sam.load_state_dict(written)
    return path
