"""The mask decoder of SAM: image embeddings and embedded prompts become masks and their predicted IoU.

Source: Kirillov et al. 2023 "Segment Anything", appendix A. Parameter names are those of the official checkpoints.
The four mask tokens all pass through the transformer, and those that are asked for are turned into masks: token 0, which
answers unambiguous prompts (the official ``multimask_output=False``), tokens 1 to 3, which answer a prompt that may mean several
things (``multimask_output=True``), or all. What is computed equals the official decoder up to rounding, in about half of its time: see
``cross_attention.py``, and ``MaskDecoder._upscale``.

Shapes: N prompts, M images, T tokens of an embedded prompt, K masks of a prompt (1, 3 or 4), C channels, H W = S/16 rows and columns
of the image embedding, L = H * W.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpexp.models.cross_attention import SharedImage
from vpexp.models.layers import MLP, LayerNorm2d
from vpexp.models.transformer import TwoWayTransformer

MASK_TOKENS = 4
ONE_MASK, THREE_MASKS, ALL_MASKS = slice(0, 1), slice(1, MASK_TOKENS), slice(0, MASK_TOKENS)
"""Which mask tokens become masks."""


class MaskDecoder(nn.Module):
    """Predict masks for each prompt.

    Random weights: PyTorch's defaults.
    """

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
            masks: which of the four mask tokens become masks.

        Returns:
            Logits [N, K, 4H, 4W] and the predicted IoU [N, K].
        """
        prompts = prompts_NTC.shape[0]
        height, width = (int(side) for side in image_MCHW.shape[2:])  # numbers, in an exported graph too
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens_NTC = torch.cat([output_tokens.expand(prompts, -1, -1), prompts_NTC], dim=1)
        token_mask = None
        if prompt_mask_NT is not None:
            always = prompt_mask_NT.new_ones((prompts, output_tokens.shape[0]))
            token_mask = torch.cat([always, prompt_mask_NT], dim=1)

        image_MLC = image_MCHW.flatten(2).transpose(1, 2).contiguous()
        positions_1LC = image_positions_1CHW.flatten(2).transpose(1, 2).contiguous()
        image = SharedImage(image_MLC, image_MLC + positions_1LC, image_index_N)
        tokens_NTC, image_NLC = self.transformer(image, positions_1LC, tokens_NTC, token_mask)

        mask_tokens_NKC = tokens_NTC[:, 1 : 1 + MASK_TOKENS][:, masks]
        networks = self.output_hypernetworks_mlps[masks]
        kernels_NKX = torch.stack(
            [network(token_NC) for network, token_NC in zip(networks, mask_tokens_NKC.unbind(1), strict=True)], dim=1
        )
        iou_NK = self.iou_prediction_head(tokens_NTC[:, 0])[:, masks]
        return self._upscale(image_NLC, kernels_NKX, height, width), iou_NK

    def _upscale(self, image_NLC: Tensor, kernels_NKX: Tensor, height: int, width: int) -> Tensor:
        """Upscale the image twice by 2 and multiply it with each prompt's kernels; returns [N, K, 4H, 4W].

        A transposed convolution whose stride is its kernel size is a product with a matrix at each cell: cells stay cells, each
        gets the channels of its 2 x 2 and at last 4 x 4 pixels, and pixels take their place once, when one channel is left.
        """
        first, norm, second = self.output_upscaling[0], self.output_upscaling[1], self.output_upscaling[3]
        assert isinstance(norm, LayerNorm2d)
        cells_NLX = F.linear(image_NLC, *_flatten_kernel(first))
        quarters_NQX = torch.unflatten(cells_NLX, -1, (4, -1)).flatten(1, 2)
        quarters_NQX = F.gelu(F.layer_norm(quarters_NQX, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        pixels_NQX = F.gelu(F.linear(quarters_NQX, *_flatten_kernel(second)))
        # A kernel in each of four blocks: one product, whose gradient is a product too and not an outer one.
        eye_441 = torch.eye(4, dtype=kernels_NKX.dtype, device=kernels_NKX.device)[:, :, None]
        blocks_N4X4K = eye_441[:, None] * kernels_NKX.transpose(1, 2)[:, None, :, None]
        logits_NQY = pixels_NQX @ blocks_N4X4K.flatten(3).flatten(1, 2)
        places = torch.unflatten(torch.unflatten(logits_NQY, 1, (height, width, 2, 2)), -1, (2, 2, -1))
        return places.permute(0, 7, 1, 3, 5, 2, 4, 6).flatten(5, 7).flatten(2, 4)


def _flatten_kernel(convolution: nn.Module) -> tuple[Tensor, Tensor]:
    """Turn a 2 x 2 transposed convolution into a linear map to (row, column, channel): its weight and bias."""
    assert isinstance(convolution, nn.ConvTranspose2d)
    assert convolution.bias is not None
    return convolution.weight.permute(2, 3, 1, 0).flatten(0, 2), convolution.bias.repeat(4)
