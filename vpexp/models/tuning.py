"""Which weights learn: whole parts, the last blocks of the image encoder, or low-rank changes of their linear layers.

Where only the last blocks learn, the encoder is cut before them: what comes before stays as it is, runs once an image, and what it
gives is kept in place of the embedding.

Shapes: R rank, C channels that come in.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpexp.errors import ConfigError
from vpexp.models.layers import BlockEncoder, EncoderCut
from vpexp.models.sam import Sam

ENCODER = "image_encoder"
NONE, NECK, FULL = "none", "neck", "full"
TARGETS = {"attention": "attn", "mlp": "mlp"}
"""Linear layers that LoRA may change, and what the modules are called that they lie in."""
DOWN, UP, SCALE = "lora_down", "lora_up", "lora_scale"


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adaptation, Hu et al. 2021: a linear layer W x becomes W x + alpha / rank * up down x.

    Attributes:
        rank: R.
        alpha: what the change is multiplied with, times R.
        targets: which linear layers of a block, of ``TARGETS``.
    """

    rank: int
    alpha: float
    targets: Sequence[str]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What of a model learns.

    Attributes:
        frozen: parts of which nothing learns.
        first_block: of the image encoder's blocks the first that learns; 0: all of the encoder that ``lora`` leaves free; None: the
            encoder is in ``frozen``.
        lora: None: what learns, learns as it is.
        whole: whether the whole encoder learns, what is before its blocks included.
    """

    frozen: tuple[str, ...]
    first_block: int | None = None
    lora: Lora | None = None
    whole: bool = False


class LoraLinear(nn.Linear):
    """A linear layer whose weight is fixed, and a change of low rank that learns; it starts as no change.

    Source: Hu et al. 2021 "LoRA", equation 3. Names and values of the layer it replaces stay.
    """

    lora_scale: Tensor

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.lora_down = nn.Parameter(torch.empty(rank, layer.in_features, dtype=layer.weight.dtype))
        self.lora_up = nn.Parameter(torch.zeros(layer.out_features, rank, dtype=layer.weight.dtype))
        self.register_buffer(SCALE, torch.tensor(scale, dtype=layer.weight.dtype))
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        change = F.linear(F.linear(tokens, self.lora_down), self.lora_up * self.lora_scale)
        return F.linear(tokens, self.weight, self.bias) + change

    def merge(self) -> nn.Linear:
        """Build the plain layer that computes the same."""
        has_bias = self.bias is not None
        merged = nn.Linear(self.in_features, self.out_features, bias=has_bias, device="meta", dtype=self.weight.dtype)
        with torch.no_grad():
            change = self.lora_scale * (self.lora_up @ self.lora_down)
            merged.weight = nn.Parameter(self.weight + change)
        if has_bias:
            merged.bias = nn.Parameter(self.bias.detach().clone())
        return merged


def plan_tuning(sam: Sam, freeze: Sequence[str], tune: str, lora: Lora | None) -> Tuning:
    """Work out what learns.

    Args:
        sam: the model.
        freeze: parts that do not learn.
        tune: ``none``, ``neck``, ``last:<k>`` or ``full``, of the image encoder; ``none`` leaves it to ``freeze``.
        lora: how the blocks learn; None: as they are.

    Raises:
        ConfigError: the encoder has not so many blocks, or cannot be cut; there is no such part.
    """
    whole = tune == FULL or (tune == NONE and ENCODER not in freeze)
    known = [name for name, _ in sam.named_children()]
    for name in freeze:
        if name not in known:
            raise ConfigError(f"model.freeze: '{name}' is no part of the model; the parts are {', '.join(known)}")
    frozen = tuple(part for part in freeze if part != ENCODER)
    if tune == NONE and ENCODER in freeze and lora is None:
        return Tuning(tuple(freeze))
    if whole and lora is None:
        return Tuning(frozen, 0, whole=True)
    encoder = sam.image_encoder
    if not isinstance(encoder, BlockEncoder):
        raise ConfigError(
            f"model.tune={tune}: {type(encoder).__name__} cannot be cut before a block, as it is no "
            "vpexp.models.layers.BlockEncoder: set model.tune=full"
        )
    depth = len(encoder.list_blocks())
    blocks = depth if whole or tune == NONE else 0 if tune == NECK else int(tune.partition(":")[2])
    if blocks > depth:
        raise ConfigError(
            f"model.tune={tune}: the image encoder has {depth} blocks; set model.tune=last:{depth} or full"
        )
    return Tuning(frozen, depth - blocks, lora)


def apply_tuning(sam: Sam, tuning: Tuning, *, seed: int = 0) -> None:
    """Freeze what does not learn, put LoRA in where it is asked for, and cut the encoder before what learns.

    ``seed`` is where LoRA's random numbers start.
    """
    for name, part in sam.named_children():
        part.requires_grad_(name not in tuning.frozen)
    sam.cut = None
    if tuning.first_block is None or tuning.whole:
        return
    encoder = sam.image_encoder
    assert isinstance(encoder, BlockEncoder)
    encoder.requires_grad_(False)
    if tuning.lora is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _insert_lora(encoder, tuning.first_block, tuning.lora)
    else:
        for module in encoder.list_late(tuning.first_block):
            module.requires_grad_(True)
    if tuning.first_block > 0:
        sam.cut = EncoderCut(encoder, sam.image_size, tuning.first_block)


def _insert_lora(encoder: BlockEncoder, first_block: int, lora: Lora) -> None:
    kinds = {TARGETS[target] for target in lora.targets}
    for block in encoder.list_blocks()[first_block:]:
        for name, layer in list(block.named_modules()):
            if type(layer) is nn.Linear and kinds & set(name.split(".")):
                _replace(block, name, LoraLinear(layer, lora.rank, lora.alpha / lora.rank))


def find_trained(sam: Sam, tuning: Tuning) -> frozenset[str]:
    """Find the entries of the image encoder's state that a checkpoint holds where not the whole of it learns, by their names in it."""
    if tuning.first_block is None or tuning.whole:
        return frozenset()
    learning = {name for name, parameter in sam.image_encoder.named_parameters() if parameter.requires_grad}
    # What lies beside weights that learn goes with them: the scale of LoRA, the statistics of a normalisation.
    modules = {name.rpartition(".")[0] for name in learning}
    fixed = {name for name, _ in sam.image_encoder.named_parameters()} - learning
    names = sam.image_encoder.state_dict().keys()
    return frozenset(name for name in names if name.rpartition(".")[0] in modules and name not in fixed)


def list_left_out(sam: Sam, tuning: Tuning, frozen: Collection[str]) -> frozenset[str]:
    """List the entries of the model's state that a checkpoint leaves out.

    Args:
        sam: the model, after ``apply_tuning``.
        tuning: what learns of it.
        frozen: the parts that are not in the checkpoint, or not whole.
    """
    trained = {f"{ENCODER}.{name}" for name in find_trained(sam, tuning)}
    prefixes = tuple(f"{part}." for part in frozen)
    return frozenset(name for name in sam.state_dict() if name.startswith(prefixes) and name not in trained)


def add_lora(part: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put LoRA into a part of a model where a checkpoint's state has it and the part has not; it is no change at first."""
    for name, down_RC in state.items():
        path, _, last = name.rpartition(".")
        if last != DOWN:
            continue
        layer = part.get_submodule(path)
        if type(layer) is nn.Linear:
            _replace(part, path, LoraLinear(layer, len(down_RC), 1.0))


def merge_lora(sam: Sam) -> None:
    """Replace layers with LoRA by plain ones that compute the same."""
    for name, layer in list(sam.named_modules()):
        if isinstance(layer, LoraLinear):
            _replace(sam, name, layer.merge())


def _replace(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def group_parameters(sam: Sam, *, lr: float, lr_encoder: float | None, layer_decay: float) -> list[dict[str, object]]:
    """Group what learns by its learning rate, for an optimizer.

    Args:
        sam: the model, after ``apply_tuning``.
        lr: of all that is not the image encoder.
        lr_encoder: of the image encoder's neck; None: ``lr``.
        layer_decay: what each block's rate is multiplied with, counted from the neck back (Clark et al. 2020, ELECTRA).

    Returns:
        ``params`` and ``lr``, in the order of the model's parameters; first the group with ``lr`` itself.
    """
    depths = _measure_depths(sam.image_encoder)
    rates: dict[float, list[nn.Parameter]] = {lr: []}
    for name, parameter in sam.named_parameters():
        if not parameter.requires_grad:
            continue
        in_encoder = name.startswith(f"{ENCODER}.")
        rate = (
            (lr if lr_encoder is None else lr_encoder) * layer_decay ** depths.get(id(parameter), 0)
            if in_encoder
            else lr
        )
        rates.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in rates.items() if parameters]


def _measure_depths(encoder: nn.Module) -> dict[int, int]:
    """Count the blocks from each parameter (by its id) to the neck, its own counted: 0 for the neck's."""
    if not isinstance(encoder, BlockEncoder):
        return {}
    count = len(encoder.list_blocks())
    depths = {id(parameter): count + 1 for parameter in encoder.parameters()}
    for block in range(count + 1):  # the last cut that does not leave a weight behind is before its own block
        for module in encoder.list_late(block):
            depths |= {id(parameter): count - block for parameter in module.parameters()}
    return depths
