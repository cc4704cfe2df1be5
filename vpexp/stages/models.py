"""``stage=models``: the models that vpexp knows, with what they cost, counted on torch's meta device."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vpexp.console import PlainTable, console
from vpexp.models.registry import get_model_info, list_models
from vpexp.models.sam import Sam
from vpexp.stages.shared.context import StageResult


def run() -> StageResult:
    """Print the table of models; no run is opened for it."""
    table = PlainTable(title="models")
    for name in ("name", "recipe", "input", "parameters", "GFLOPs", "size"):
        table.add_column(name, justify="left" if name in ("name", "recipe") else "right")
    metrics: dict[str, float] = {}
    for name in list_models():
        info = get_model_info(name)
        cost = compute_complexity(name)
        table.add_row(
            name,
            info.recipe,
            f"{info.image_size} px",
            f"{cost.parameters / 1e6:.2f} M",
            f"{cost.gflops:.2f}",
            f"{cost.megabytes:.1f} MB",
        )
        metrics |= {f"{name}/gflops": cost.gflops, f"{name}/parameters": float(cost.parameters)}
    console.print(table)
    console.print("GFLOPs: one image encoded and one box decoded, a multiply-add counted as two; size: float32 weights")
    return StageResult(metrics)


@dataclass(frozen=True, slots=True)
class Complexity:
    """Size and cost of a model for one image with one box."""

    name: str
    image_size: int
    """Side of the square model input, in pixels."""
    parameters_by_part: dict[str, int]
    """Parameters of image_encoder, prompt_encoder and mask_decoder."""
    gflops_by_part: dict[str, float]
    """10^9 operations of image_encoder and mask_decoder."""
    megabytes: float
    """10^6 bytes of all weights in float32."""

    @property
    def parameters(self) -> int:
        """Number of parameters of the whole model."""
        return sum(self.parameters_by_part.values())

    @property
    def gflops(self) -> float:
        """10^9 operations for one image and one box."""
        return sum(self.gflops_by_part.values())

    @property
    def gmacs(self) -> float:
        """10^9 multiply-adds for one image and one box: half of ``gflops``, and what many tables call GFLOPs."""
        return self.gflops / 2


def compute_complexity(name: str, image_size: int | None = None) -> Complexity:
    """Compute the size and cost of a model.

    Counted are convolutions, linear layers and the products within attention (relative positions included), each
    multiply-add as two operations; windows count with the zeros that fill them up. Norms, activations and other
    element-wise work are not counted. Published tables often call multiply-adds FLOPs: their 38.6 for MobileSAM and
    455 for SAM ViT-B stand beside ``gmacs``, here 40.6 and 487.8 (of them the encoder 38.8 and 486.0).

    Raises:
        ConfigError: The name is unknown or the image size does not fit.
    """
    info = get_model_info(name)
    size = info.image_size if image_size is None else image_size
    # The meta device takes attention apart into plain products, which the counter sees; the fused CPU kernel hides them.
    with torch.device("meta"), torch.no_grad():
        sam = info.build(size)
        encoder_counter = FlopCounterMode(display=False)
        with encoder_counter:
            embeddings_1CHW = sam.encode_image(torch.empty(1, 3, size, size))
        decoder_counter = FlopCounterMode(display=False)
        with decoder_counter:
            _decode_one_box(sam, embeddings_1CHW)
    return Complexity(
        name=name,
        image_size=size,
        parameters_by_part={part: _count_parameters(module) for part, module in sam.named_children()},
        gflops_by_part={
            "image_encoder": encoder_counter.get_total_flops() / 1e9,
            "mask_decoder": decoder_counter.get_total_flops() / 1e9,
        },
        megabytes=sum(tensor.numel() for tensor in sam.state_dict().values()) * 4 / 1e6,
    )


def _decode_one_box(sam: Sam, embeddings_1CHW: torch.Tensor) -> None:
    # Sam.decode looks at the labels, and on the meta device there are none.
    prompts_12C = sam.prompt_encoder.embed_points(torch.empty(1, 2, 2), torch.empty(1, 2))
    features_1CHW, detail = sam.split(embeddings_1CHW)
    image_1CHW = features_1CHW + sam.prompt_encoder.embed_masks(None)
    sam.mask_decoder(image_1CHW, sam.prompt_encoder.compute_image_positions(), prompts_12C, None, detail=detail)


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
