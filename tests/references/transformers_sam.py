"""The SamModel of transformers as a reference, with weights under the official names."""

import re

import torch

# From the names of transformers to the official ones; the first pattern that matches a whole prefix is applied.
_RENAMES = (
    (r"^vision_encoder\.", "image_encoder."),
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"^image_encoder\.layers\.", "image_encoder.blocks."),
    (r"(blocks\.\d+)\.layer_norm", r"\1.norm"),
    (r"neck\.conv1", "neck.0"),
    (r"neck\.layer_norm1", "neck.1"),
    (r"neck\.conv2", "neck.2"),
    (r"neck\.layer_norm2", "neck.3"),
    (r"shared_embedding\.positional_embedding", "pe_layer.positional_encoding_gaussian_matrix"),
    (r"mask_embed\.conv1", "mask_downscaling.0"),
    (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
    (r"mask_embed\.conv2", "mask_downscaling.3"),
    (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
    (r"mask_embed\.conv3", "mask_downscaling.6"),
    (r"prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"layer_norm_final_attn", "norm_final_attn"),
    (r"(layers\.\d+)\.layer_norm", r"\1.norm"),
    (r"upscale_conv1", "output_upscaling.0"),
    (r"upscale_layer_norm", "output_upscaling.1"),
    (r"upscale_conv2", "output_upscaling.3"),
    (r"(mlps\.\d+|iou_prediction_head)\.layers\.0", r"\1.layers.1"),
    (r"(mlps\.\d+|iou_prediction_head)\.proj_in", r"\1.layers.0"),
    (r"(mlps\.\d+|iou_prediction_head)\.proj_out", r"\1.layers.2"),
)


def build_transformers_sam(*, image_size, channels, depth, heads, window_size, global_attention_blocks):
    """Build a SamModel with random weights."""
    from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

    vision = SamVisionConfig(
        image_size=image_size,
        hidden_size=channels,
        mlp_dim=4 * channels,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        window_size=window_size,
        global_attn_indexes=list(global_attention_blocks),
    )
    config = SamConfig(
        vision_config=vision,
        prompt_encoder_config=SamPromptEncoderConfig(image_size=image_size),
        # The official decoder's layer norms have torch's default epsilon.
        mask_decoder_config=SamMaskDecoderConfig(layer_norm_eps=1e-5),
    )
    return SamModel(config).eval()


def share_frequencies(model):
    """Give both copies of the positional encoding's frequencies the same values, as the official model has one."""
    with torch.no_grad():
        frequencies = model.prompt_encoder.shared_embedding.positional_embedding
        model.shared_image_embedding.positional_embedding.copy_(frequencies)


def get_official_state(model, renames=_RENAMES):
    """Return the state dict under the official names."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("shared_image_embedding."):
            continue
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901
        state[name] = tensor
    return state
