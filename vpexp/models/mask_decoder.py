"""The mask decoder of SAM: image embeddings and embedded prompts become masks and their predicted IoU.

Source: Kirillov et al. 2023 "Segment Anything", appendix A. Parameter names are those of the official checkpoints.
The four mask tokens all pass through the transformer, and those that are asked for are turned into masks: token 0, which
answers unambiguous prompts (the official ``multimask_output=False``), tokens 1 to 3, which answer a prompt that may mean several
things (``multimask_output=True``), or all. What is computed equals the official decoder up to rounding, in about half of its time: see
``cross_attention.py``, and ``MaskDecoder._upscale``.

Shapes: N prompts, M images, T tokens of an embedded prompt, K masks of a prompt (1, 3 or 4), C channels, H W = S/16 rows and columns
of the image embedding, L = H * W.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpexp.models.cross_attention import SharedImage, add_product, is_exporting
from vpexp.models.layers import MLP, LayerNorm2d
from vpexp.models.transformer import TwoWayTransformer

MASK_TOKENS = 4
ONE_MASK, THREE_MASKS, ALL_MASKS = slice(0, 1), slice(1, MASK_TOKENS), slice(0, MASK_TOKENS)
"""Which mask tokens become masks."""


@dataclass(frozen=True, slots=True)
class Detail:
    """What M images hold that is finer than the embedding, added while masks are enlarged.

    Attributes:
        cells_MXHW: channels of 2 x 2, then of 4 x 4 finer cells in each cell, see ``vpexp.data.interface``.
        index_N: int64, the image of each prompt; None: there is one image, or one for each prompt.
    """

    cells_MXHW: Tensor
    index_N: Tensor | None = None

    def hand_out(self, width: int) -> tuple[Tensor, Tensor]:
        """Give each prompt what its image holds, and once what all share: ``width`` channels of quarters [M, L, X], and pixels [M, 4 L, X]."""
        cells_MLX = self.cells_MXHW.flatten(2).transpose(1, 2)
        if self.index_N is not None:
            cells_MLX = cells_MLX[self.index_N]
        return cells_MLX[:, :, :width], torch.unflatten(cells_MLX[:, :, width:], 2, (4, -1)).flatten(1, 2)


class MaskDecoder(nn.Module):
    """Predict masks for each prompt.

    Random weights: PyTorch's defaults.
    """

    unused_parts: tuple[str, ...] = ()
    """Submodules that images need not; nothing trains them."""

    def __init__(
        self, *, channels: int = 256, transformer_depth: int = 2, transformer_heads: int = 8, mlp_channels: int = 2048
    ) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(
            depth=transformer_depth, channels=channels, heads=transformer_heads, mlp_channels=mlp_channels
        )
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(MASK_TOKENS, channels)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 4, kernel_size=2, stride=2),
            LayerNorm2d(channels // 4),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 4, channels // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(channels, channels, channels // 8, depth=3) for _ in range(MASK_TOKENS)
        )
        self.iou_prediction_head = MLP(channels, channels, MASK_TOKENS, depth=3)

    def forward(
        self,
        image_MCHW: Tensor,
        image_positions_1CHW: Tensor,
        prompts_NTC: Tensor,
        prompt_mask_NT: Tensor | None,
        image_index_N: Tensor | None = None,
        *,
        detail: Detail | None = None,
        masks: slice = ONE_MASK,
    ) -> tuple[Tensor, Tensor]:
        """Decode prompts.

        Args:
            image_MCHW: embeddings of the images with the embedded mask input added. Without ``image_index_N`` M is 1,
                an image that all prompts share, or N.
            image_positions_1CHW: the encoded position of each cell of the embedding.
            prompts_NTC: embedded points and boxes; N may be 0.
            prompt_mask_NT: bool, False where an entry of ``prompts_NTC`` must not be attended to; None: all may.
            image_index_N: int64, the image of each prompt, where there are several.
            detail: of the images, for a decoder that takes it.
            masks: which of the four mask tokens become masks.

        Returns:
            Logits [N, K, 4H, 4W] and the predicted IoU [N, K].
        """
        height, width = (int(side) for side in image_MCHW.shape[2:])  # numbers, in an exported graph too
        tokens_NTC, image_NLC = self.attend(
            image_MCHW, image_positions_1CHW, prompts_NTC, prompt_mask_NT, image_index_N
        )
        mask_tokens_NKC = tokens_NTC[:, 1 : 1 + MASK_TOKENS][:, masks]
        networks = self.output_hypernetworks_mlps[masks]
        kernels_NKX = torch.stack(
            [network(token_NC) for network, token_NC in zip(networks, mask_tokens_NKC.unbind(1), strict=True)], dim=1
        )
        iou_NK = self._predict_iou(tokens_NTC[:, 0])[:, masks]
        return self._upscale(image_NLC, kernels_NKX, height, width, detail), iou_NK

    def attend(
        self,
        image_MCHW: Tensor,
        image_positions_1CHW: Tensor,
        prompts_NTC: Tensor,
        prompt_mask_NT: Tensor | None,
        image_index_N: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Let tokens and image attend to each other; arguments as in ``forward``.

        Returns:
            The tokens [N, T, C], first that of the predicted IoU, then those of the masks; the image as each prompt sees it [N, L, C].
        """
        prompts = prompts_NTC.shape[0]
        output_tokens = self._list_output_tokens()
        tokens_NTC = torch.cat([output_tokens.expand(prompts, -1, -1), prompts_NTC], dim=1)
        token_mask = None
        if prompt_mask_NT is not None:
            always = prompt_mask_NT.new_ones((prompts, output_tokens.shape[0]))
            token_mask = torch.cat([always, prompt_mask_NT], dim=1)

        image_MLC = image_MCHW.flatten(2).transpose(1, 2).contiguous()
        positions_1LC = image_positions_1CHW.flatten(2).transpose(1, 2).contiguous()
        image = SharedImage(image_MLC, image_MLC + positions_1LC, image_index_N)
        attended: tuple[Tensor, Tensor] = self.transformer(image, positions_1LC, tokens_NTC, token_mask)
        return attended

    def _list_output_tokens(self) -> Tensor:
        """List the learnt tokens [T, C]: of the predicted IoU, of the masks, and others."""
        return torch.cat([self.iou_token.weight, self.mask_tokens.weight])

    def _predict_iou(self, token_NC: Tensor) -> Tensor:
        """Predict the IoU of all masks: [N, K]."""
        iou_NK: Tensor = self.iou_prediction_head(token_NC)
        return iou_NK

    def _upscale(
        self, image_NLC: Tensor, kernels_NKX: Tensor, height: int, width: int, detail: Detail | None
    ) -> Tensor:
        """Upscale the image twice by 2 and multiply it with each prompt's kernels; returns [N, K, 4H, 4W].

        A transposed convolution whose stride is its kernel size is a product with a matrix at each cell: cells stay cells, each
        gets the channels of its 2 x 2 and at last 4 x 4 pixels, and pixels take their place once, when one channel is left.
        """
        first, norm, second = self.output_upscaling[0], self.output_upscaling[1], self.output_upscaling[3]
        assert isinstance(norm, LayerNorm2d)
        kernels = _flatten_kernel(first), _flatten_kernel(second)
        finer = None if detail is None else detail.hand_out(len(kernels[0][1]))
        cells_NLX = _project(image_NLC, *kernels[0], finer and finer[0])
        quarters_NQX = torch.unflatten(cells_NLX, -1, (4, -1)).flatten(1, 2)
        quarters_NQX = F.gelu(F.layer_norm(quarters_NQX, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        pixels_NQX = F.gelu(_project(quarters_NQX, *kernels[1], finer and finer[1]))
        # A kernel in each of four blocks: one product, whose gradient is a product too and not an outer one.
        eye_441 = torch.eye(4, dtype=kernels_NKX.dtype, device=kernels_NKX.device)[:, :, None]
        blocks_N4X4K = eye_441[:, None] * kernels_NKX.transpose(1, 2)[:, None, :, None]
        logits_NQY = pixels_NQX @ blocks_N4X4K.flatten(3).flatten(1, 2)
        places = torch.unflatten(torch.unflatten(logits_NQY, 1, (height, width, 2, 2)), -1, (2, 2, -1))
        return places.permute(0, 7, 1, 3, 5, 2, 4, 6).flatten(5, 7).flatten(2, 4)


def _project(tokens_NLC: Tensor, weight_XC: Tensor, bias_X: Tensor, added_MLX: Tensor | None) -> Tensor:
    """Apply a linear map and add what an image holds, that of each prompt or of all."""
    if added_MLX is None or is_exporting():
        projected_NLX = F.linear(tokens_NLC, weight_XC, bias_X)
        return projected_NLX if added_MLX is None else projected_NLX + added_MLX
    return add_product(added_MLX + bias_X, tokens_NLC, weight_XC.T.expand(tokens_NLC.shape[0], -1, -1))


def _flatten_kernel(convolution: nn.Module) -> tuple[Tensor, Tensor]:
    """Turn a 2 x 2 transposed convolution into a linear map to (row, column, channel): its weight and bias."""
    assert isinstance(convolution, nn.ConvTranspose2d)
    assert convolution.bias is not None
    return convolution.weight.permute(2, 3, 1, 0).flatten(0, 2), convolution.bias.repeat(4)
