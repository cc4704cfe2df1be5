"""SAM 2.1 for images: a Hiera encoder that gives three maps, and a decoder that adds the finer two while it enlarges masks.

Source: Ravi et al. 2024 "SAM 2: Segment Anything in Images and Videos". Of the official model this is what one image passes
through, as ``SAM2ImagePredictor`` runs it: the embedding gets the learnt "no memory" vector; memory attention, memory encoder and
object pointers, which videos need, are left out, and kept to be written back.

Two 1 x 1 convolutions that the official code counts to the decoder, and applies when it encodes, are parts of the encoder
here: what is kept of an image is what comes after them.

Shapes: B images, N prompts, S model input size, C channels, T tokens of a prompt.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vpexp.data.interface import STRETCH, STRIDE, EmbeddingMap, Interface
from vpexp.models.hiera import FpnNeck, Hiera
from vpexp.models.layers import MLP, BlockEncoder
from vpexp.models.mask_decoder import MASK_TOKENS, MaskDecoder
from vpexp.models.prompt_encoder import PromptEncoder
from vpexp.models.registry import WeightsFile, check_image_size, register
from vpexp.models.sam import Sam

CHANNELS = 256
COARSEST = 32
"""Pixels of the model's input to a cell of the encoder's last stage."""
INTERFACE = Interface(
    maps=(
        EmbeddingMap("image_embed", CHANNELS, STRIDE),
        EmbeddingMap("high_res_feats_1", CHANNELS // 4, STRIDE // 2),
        EmbeddingMap("high_res_feats_0", CHANNELS // 8, STRIDE // 4),
    ),
    resize=STRETCH,
    dynamic_multimask=True,
    logit_limit=32.0,
)
"""The ports are called as tools that run SAM 2 call them."""
VIDEO_PARTS = (
    "memory_attention",
    "memory_encoder",
    "maskmem_tpos_enc",
    "mask_downsample",
    "no_mem_pos_enc",
    "no_obj_embed_spatial",
    "no_obj_ptr",
    "obj_ptr_proj",
    "obj_ptr_tpos_proj",
)
"""What the names of entries begin with that images need not."""
_TO_OWN = (
    (r"^no_mem_embed$", "image_encoder.no_mem_embed"),
    (r"^sam_mask_decoder\.(conv_s[01])\.", r"image_encoder.\1."),
    (r"^sam_(mask_decoder|prompt_encoder)\.", r"\1."),
    (r"(\.(?:blocks|transformer\.layers)\.\d+\.mlp)\.layers\.0\.", r"\1.lin1."),
    (r"(\.(?:blocks|transformer\.layers)\.\d+\.mlp)\.layers\.1\.", r"\1.lin2."),
)
_TO_OFFICIAL = (
    (r"^image_encoder\.no_mem_embed$", "no_mem_embed"),
    (r"^image_encoder\.(conv_s[01])\.", r"sam_mask_decoder.\1."),
    (r"^(mask_decoder|prompt_encoder)\.", r"sam_\1."),
    (r"\.mlp\.lin1\.", ".mlp.layers.0."),
    (r"\.mlp\.lin2\.", ".mlp.layers.1."),
)
_BASE_URL = "https://dl.fbaipublicfiles.com/segment_anything_2/092824/"


class Sam2ImageEncoder(BlockEncoder):
    """Images [B, 3, S, S], normalised, to the maps of ``INTERFACE``, S a multiple of 32.

    Args:
        trunk: the backbone.
    """

    def __init__(self, trunk: Hiera) -> None:
        super().__init__()
        self.trunk = trunk
        self.neck = FpnNeck(trunk.channels, CHANNELS)
        self.conv_s0 = nn.Conv2d(CHANNELS, CHANNELS // 8, kernel_size=1)
        self.conv_s1 = nn.Conv2d(CHANNELS, CHANNELS // 4, kernel_size=1)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, CHANNELS))
        nn.init.trunc_normal_(self.no_mem_embed, std=0.02)

    def list_blocks(self) -> list[nn.Module]:
        """As of ``BlockEncoder``."""
        return list(self.trunk.blocks)

    def run_until(self, images_B3SS: Tensor, block: int) -> tuple[Tensor, ...]:
        """Encode images up to a block: its tokens [B, H, W, C], then of the stages before their maps, of the third its tokens."""
        return self._run((self.trunk.embed(images_B3SS),), 0, block)

    def run_from(self, activations: Sequence[Tensor], block: int) -> tuple[Tensor, ...]:
        """As of ``BlockEncoder``."""
        last_BHWC, finest_BCHW, fine_BCHW, earlier_BHWC = self._run(activations, block, len(self.trunk.blocks))
        embedding_BCHW = self.neck(earlier_BHWC, last_BHWC) + self.no_mem_embed.reshape(1, CHANNELS, 1, 1)
        return embedding_BCHW, fine_BCHW, finest_BCHW

    def list_late(self, block: int) -> list[nn.Module]:
        """As of ``BlockEncoder``: of the neck, what makes the map that prompts attend to, and the maps of stages that end later."""
        late = [*self.trunk.blocks[block:], *self.neck.convs[:2]]
        for stage in range(self.trunk.count_ended(block), len(self._fine)):
            late += [self.neck.find_lateral(stage), self._fine[stage]]
        return late

    @property
    def _fine(self) -> tuple[nn.Conv2d, nn.Conv2d]:
        """The convolutions that give the maps of the first two stages."""
        return self.conv_s0, self.conv_s1

    def _run(self, activations: Sequence[Tensor], start: int, stop: int) -> tuple[Tensor, ...]:
        tokens_BHWC, *kept = activations
        for place in range(start, stop):
            tokens_BHWC = self._run_block(self.trunk.blocks[place], tokens_BHWC)
            if place not in self.trunk.ends[:-1]:
                continue
            stage = self.trunk.ends.index(place)
            is_fine = stage < len(self._fine)
            kept.append(self.neck.project(tokens_BHWC, stage, self._fine[stage]) if is_fine else tokens_BHWC)
        return (tokens_BHWC, *kept)


class Sam2MaskDecoder(MaskDecoder):
    """SAM's mask decoder with one token more, whose score says whether there is an object at all, and which images need not."""

    unused_parts = ("pred_obj_score_head",)

    def __init__(self, *, mlp_channels: int = 2048) -> None:
        super().__init__(channels=CHANNELS, mlp_channels=mlp_channels)
        self.obj_score_token = nn.Embedding(1, CHANNELS)
        self.pred_obj_score_head = MLP(CHANNELS, CHANNELS, 1, depth=3)

    def score_objects(self, tokens_NTC: Tensor) -> Tensor:
        """Compute the logits [N, 1] of there being an object from the tokens that ``attend`` gives."""
        score_N1: Tensor = self.pred_obj_score_head(tokens_NTC[:, 1 + MASK_TOKENS])
        return score_N1

    def _list_output_tokens(self) -> Tensor:
        # The official decoder's first token is here the last of the learnt ones: attention knows no order.
        return torch.cat([super()._list_output_tokens(), self.obj_score_token.weight])

    def _predict_iou(self, token_NC: Tensor) -> Tensor:
        return super()._predict_iou(token_NC).sigmoid()


class Sam2(Sam):
    """SAM 2 for images; under ``to_official`` its parameters have the names of the official checkpoints."""

    completes_boxes = True

    @property
    def interface(self) -> Interface:
        """What everything around the model has to know."""
        return INTERFACE

    def adopt_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take what images need, under the names used here; the rest is kept in ``left_out``."""
        self.left_out = {name: tensor for name, tensor in state.items() if name.startswith(VIDEO_PARTS)}
        return {_rename(name, _TO_OWN): tensor for name, tensor in state.items() if name not in self.left_out}

    def to_official(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Build what an official file holds: all entries, also those that were left out, under ``model``."""
        return {"model": {_rename(name, _TO_OFFICIAL): tensor for name, tensor in state.items()} | self.left_out}


def _rename(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _build(trunk: Hiera, image_size: int, *, mlp_channels: int = 2048) -> Sam2:
    check_image_size(image_size, COARSEST)
    prompt_encoder = PromptEncoder(image_size=image_size, embedding_size=image_size // STRIDE)
    return Sam2(Sam2ImageEncoder(trunk), prompt_encoder, Sam2MaskDecoder(mlp_channels=mlp_channels)).eval()


def _official(size: str, sha256: str) -> WeightsFile:
    """Name an official file. The hashes stand alike in many public projects, among them torch-em and micro-sam."""
    filename = f"sam2.1_hiera_{size}.pt"
    return WeightsFile(filename, f"{_BASE_URL}{filename}", sha256)


@register(
    "SAM 2.1: Hiera-T encoder, decoder with high-resolution maps",
    _official("tiny", "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69"),
)
def build_sam2_tiny(image_size: int = 1024) -> Sam2:
    """Build SAM 2.1 with the tiny Hiera encoder."""
    trunk = Hiera(channels=96, heads=1, depths=(1, 2, 7, 2), window_sizes=(8, 4, 14, 7), global_blocks=(5, 7, 9))
    return _build(trunk, image_size)


@register(
    "SAM 2.1: Hiera-S encoder",
    _official("small", "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38"),
)
def build_sam2_small(image_size: int = 1024) -> Sam2:
    """Build SAM 2.1 with the small Hiera encoder."""
    trunk = Hiera(channels=96, heads=1, depths=(1, 2, 11, 2), window_sizes=(8, 4, 14, 7), global_blocks=(7, 10, 13))
    return _build(trunk, image_size)


@register(
    "SAM 2.1: Hiera-B+ encoder",
    _official("base_plus", "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5"),
)
def build_sam2_base_plus(image_size: int = 1024) -> Sam2:
    """Build SAM 2.1 with the Hiera-B+ encoder."""
    trunk = Hiera(
        channels=112,
        heads=2,
        depths=(2, 3, 16, 3),
        window_sizes=(8, 4, 14, 7),
        global_blocks=(12, 16, 20),
        positions=14,
    )
    return _build(trunk, image_size)


@register(
    "SAM 2.1: Hiera-L encoder",
    _official("large", "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318"),
)
def build_sam2_large(image_size: int = 1024) -> Sam2:
    """Build SAM 2.1 with the large Hiera encoder."""
    trunk = Hiera(channels=144, heads=2, depths=(2, 6, 36, 4), window_sizes=(8, 4, 16, 8), global_blocks=(23, 33, 43))
    return _build(trunk, image_size)


@register("random SAM 2 of a few thin layers for tests", None)
def build_sam2_debug(image_size: int = 64) -> Sam2:
    """Build a SAM 2 of a few thin layers that runs in milliseconds: windows, a global block, pooling, SAM 2's interface."""
    trunk = Hiera(channels=8, heads=1, depths=(1, 1, 2, 1), window_sizes=(8, 4, 4, 2), global_blocks=(3,))
    return _build(trunk, image_size, mlp_channels=128)
