"""The Sam2Model of transformers as a reference, with weights under the official names."""

import torch

from tests.references import transformers_sam

# From the names of transformers to the official ones, applied one after the other.
_RENAMES = (
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^vision_encoder\.neck\.convs\.(\d)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"^no_memory_embedding$", "no_mem_embed"),
    (r"^(prompt_encoder|mask_decoder)\.", r"sam_\1."),
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"layer_norm_final_attn", "norm_final_attn"),
    (r"((?:blocks|layers)\.\d+)\.layer_norm", r"\1.norm"),
    (r"((?:blocks|layers)\.\d+\.mlp)\.proj_in", r"\1.layers.0"),
    (r"((?:blocks|layers)\.\d+\.mlp)\.proj_out", r"\1.layers.1"),
    (r"o_proj", "out_proj"),
    (r"shared_embedding\.positional_embedding", "pe_layer.positional_encoding_gaussian_matrix"),
    (r"mask_embed\.conv1", "mask_downscaling.0"),
    (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
    (r"mask_embed\.conv2", "mask_downscaling.3"),
    (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
    (r"mask_embed\.conv3", "mask_downscaling.6"),
    (r"upscale_conv1", "output_upscaling.0"),
    (r"upscale_layer_norm", "output_upscaling.1"),
    (r"upscale_conv2", "output_upscaling.3"),
    (r"(mlps\.\d+|_head)\.layers\.0", r"\1.layers.1"),
    (r"(mlps\.\d+|_head)\.proj_in", r"\1.layers.0"),
    (r"(mlps\.\d+|_head)\.proj_out", r"\1.layers.2"),
)
SIZES = {
    "sam2_tiny": (96, 1, (1, 2, 7, 2), (8, 4, 14, 7), (5, 7, 9), 7),
    "sam2_small": (96, 1, (1, 2, 11, 2), (8, 4, 14, 7), (7, 10, 13), 7),
    "sam2_base_plus": (112, 2, (2, 3, 16, 3), (8, 4, 14, 7), (12, 16, 20), 14),
    "sam2_large": (144, 2, (2, 6, 36, 4), (8, 4, 16, 8), (23, 33, 43), 7),
    "sam2_debug": (8, 1, (1, 1, 2, 1), (8, 4, 4, 2), (3,), 7),
}
"""Channels, heads, depths, window sizes, global blocks and positions, as ``facebook/sam2.1-hiera-*`` publish them."""


def build_transformers_sam2(name, image_size, mlp_channels=2048):
    """Build a Sam2Model with random weights of which none is zero."""
    from transformers import Sam2Config, Sam2MaskDecoderConfig, Sam2Model, Sam2PromptEncoderConfig, Sam2VisionConfig

    channels, heads, depths, windows, global_blocks, positions = SIZES[name]
    widths = [channels * 2**stage for stage in range(4)]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": channels,
        "num_attention_heads": heads,
        "image_size": [image_size, image_size],
        "blocks_per_stage": list(depths),
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [heads * 2**stage for stage in range(4)],
        "window_size_per_stage": list(windows),
        "global_attention_blocks": list(global_blocks),
        "window_positional_embedding_background_size": [positions, positions],
    }
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=widths[::-1],
        backbone_feature_sizes=[[image_size // stride] * 2 for stride in (4, 8, 16)],
    )
    config = Sam2Config(
        vision_config=vision,
        prompt_encoder_config=Sam2PromptEncoderConfig(image_size=image_size),
        mask_decoder_config=Sam2MaskDecoderConfig(mlp_dim=mlp_channels),
    )
    model = Sam2Model(config).eval()
    with torch.no_grad():
        for parameter in (
            model.vision_encoder.backbone.pos_embed,
            model.vision_encoder.backbone.pos_embed_window,
            model.no_memory_embedding,
        ):
            parameter.normal_(std=0.2)
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases start as ones and zeros
                parameter.add_(torch.randn_like(parameter) * 0.1)
    transformers_sam.share_frequencies(model)
    return model


def get_official_state(model):
    """Return the state dict under the official names."""
    state = transformers_sam.get_official_state(model, _RENAMES)
    points = state.pop("sam_prompt_encoder.point_embed.weight", None)
    rows = () if points is None else points
    return state | {f"sam_prompt_encoder.point_embeddings.{i}.weight": row[None] for i, row in enumerate(rows)}


def add_video_parts(state):
    """Add some of the entries that images need not, so that a file looks like an official one."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "maskmem_tpos_enc": (7, 1, 1, 64),
        "no_mem_pos_enc": (1, 1, 256),
        "no_obj_ptr": (1, 256),
        "no_obj_embed_spatial": (1, 64),
        "mask_downsample.weight": (1, 1, 4, 4),
        "memory_attention.layers.0.linear1.weight": (32, 256),
        "memory_encoder.out_proj.weight": (64, 256, 1, 1),
        "obj_ptr_proj.layers.0.weight": (256, 256),
        "obj_ptr_tpos_proj.weight": (64, 256),
    }
    return state | {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
