"""The mask decoder of SAM: image embeddings and embedded prompts become one mask a prompt and its predicted IoU.

Source: Kirillov et al. 2023 "Segment Anything", appendix A. Parameter names are those of the official checkpoints.
The four mask tokens all pass through the transformer, but only token 0, the one that answers unambiguous prompts,
is turned into a mask: the official ``multimask_output=False``.

Shapes: N prompts, T tokens of an embedded prompt, C channels, H W = S/16 rows and columns of the image embedding.
"""

import torch
from torch import Tensor, nn

from vpexp.models.layers import MLP, LayerNorm2d
from vpexp.models.transformer import TwoWayTransformer

MASK_TOKENS = 4


class MaskDecoder(nn.Module):
    """Predict one mask for each prompt.

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
        self, image_NCHW: Tensor, image_positions_1CHW: Tensor, prompts_NTC: Tensor, prompt_mask_NT: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Decode prompts.

        ``image_NCHW`` is the embedding of each prompt's image with the embedded mask input added; ``prompt_mask_NT``
        is bool, False where an entry of ``prompts_NTC`` must not be attended to, None where all may.
        Returns logits [N, 1, 4H, 4W] and the predicted IoU [N].
        """
        prompts, channels, height, width = image_NCHW.shape
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(prompts, -1, -1), prompts_NTC], dim=1)
        token_mask = None
        if prompt_mask_NT is not None:
            always = prompt_mask_NT.new_ones((prompts, output_tokens.shape[0]))
            token_mask = torch.cat([always, prompt_mask_NT], dim=1)

        tokens, image_NLC = self.transformer(
            image_NCHW.flatten(2).transpose(1, 2), image_positions_1CHW.flatten(2).transpose(1, 2), tokens, token_mask
        )

        image_NCHW = image_NLC.transpose(1, 2).reshape(prompts, channels, height, width)
        upscaled = self.output_upscaling(image_NCHW)
        kernel_N1C = self.output_hypernetworks_mlps[0](tokens[:, 1])[:, None]
        logits_N1HW = (kernel_N1C @ upscaled.flatten(2)).reshape(prompts, 1, 4 * height, 4 * width)
        iou_N = self.iou_prediction_head(tokens[:, 0])[:, 0]
        return logits_N1HW, iou_N
