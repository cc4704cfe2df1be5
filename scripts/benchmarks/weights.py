"""One file of weights that both sides load."""

from pathlib import Path

import torch

PRE_TRAINED = "sam_micro"


def write_weights(model: str, path: Path) -> Path:
    """Write weights in the official layout, so that nothing has to be downloaded.

    The encoder is random. Prompt encoder and decoder, which are the same in all models (SAM 2's has some parts more), are those of
    ``sam_micro``: masks of random weights are noise from edge to edge, and cost far more to encode than any that a model predicts.
    """
    from vpexp.inference.load import load_model

    torch.manual_seed(0)
    sam = load_model(model, weights="random")
    trained = load_model(PRE_TRAINED)
    sam.prompt_encoder.load_state_dict(trained.prompt_encoder.state_dict())
    sam.mask_decoder.load_state_dict(sam.mask_decoder.state_dict() | trained.mask_decoder.state_dict())
    torch.save(sam.to_official(sam.state_dict()), path)
    return path
