"""The official packages as references: they import torchvision, timm and iopath, of which they need a few helpers only.

Stand-ins satisfy those imports and go away again, so that no other library takes them for the real ones.
"""

import sys
import types
from contextlib import contextmanager
from importlib.resources import files

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

_STAND_INS = {
    "torchvision": {},
    "torchvision.ops": {},
    "torchvision.ops.boxes": {"batched_nms": None, "box_area": None},
    "torchvision.transforms": {},
    "torchvision.transforms.functional": {"resize": None, "to_pil_image": None},
    "iopath": {},
    "iopath.common": {},
    "iopath.common.file_io": {"g_pathmgr": None},
    "timm": {},
    "timm.models": {},
    "timm.models.layers": {
        "DropPath": nn.Identity,
        "to_2tuple": lambda value: (value, value),
        "trunc_normal_": nn.init.trunc_normal_,
    },
    "timm.models.registry": {"register_model": lambda function: function},
}


@contextmanager
def _stand_ins():
    hidden = {name: sys.modules.pop(name) for name in _STAND_INS if name in sys.modules}
    for name, members in _STAND_INS.items():
        module = types.ModuleType(name)
        module.__dict__.update(members)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in _STAND_INS:
            del sys.modules[name]
        sys.modules.update(hidden)


def import_segment_anything():
    """Import the PyPI package segment-anything."""
    with _stand_ins():
        import segment_anything

    return segment_anything


def import_onnx_model():
    """Import segment-anything's ``SamOnnxModel``, which its ``scripts/export_onnx_model.py`` exports."""
    import_segment_anything()
    with _stand_ins():
        from segment_anything.utils.onnx import SamOnnxModel

    return SamOnnxModel


def import_mobile_sam():
    """Import the PyPI package mobilesam-mirror."""
    with _stand_ins():
        import mobile_sam

    return mobile_sam


def build_official_sam2(config, image_size):
    """Build the PyPI package sam2's model by its own configuration, such as ``sam2.1_hiera_t``, as its ``build_sam2`` does."""
    started = GlobalHydra.instance().is_initialized()
    with _stand_ins():
        import sam2

        if not started:  # the import starts Hydra, which happens once a process
            GlobalHydra.instance().clear()
        model = OmegaConf.load(files(sam2) / "configs" / "sam2.1" / f"{config}.yaml").model
        model.image_size = image_size
        model.sam_mask_decoder_extra_args = {
            "dynamic_multimask_via_stability": True,
            "dynamic_multimask_stability_delta": 0.05,
            "dynamic_multimask_stability_thresh": 0.98,
        }
        return instantiate(model).eval()


def encode_official_sam2(model, images):
    """Encode images as ``SAM2ImagePredictor`` does: three maps [B, C, H, W], finest first."""
    maps = model.forward_image(images)["backbone_fpn"]
    return [*maps[:-1], maps[-1] + model.no_mem_embed.reshape(1, -1, 1, 1)]


def decode_official_sam2(model, maps, *, points=None, labels=None, boxes=None, masks=None, multimask):
    """Decode prompts of one image as ``SAM2ImagePredictor`` does: logits [N, K, h, w], IoU [N, K], object scores [N, 1]."""
    parts = [] if boxes is None else [(boxes.reshape(-1, 2, 2), torch.tensor([[2, 3]]).expand(len(boxes), -1))]
    parts += [] if points is None else [(points, labels.int().expand(len(points), -1))]
    coords, given = (torch.cat(values, dim=1) for values in zip(*parts, strict=True))
    sparse, dense = model.sam_prompt_encoder(points=(coords, given), boxes=None, masks=masks)
    logits, ious, _, scores = model.sam_mask_decoder(
        image_embeddings=maps[-1],
        image_pe=model.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
        repeat_image=len(coords) > 1,
        high_res_features=maps[:-1],
    )
    return logits, ious, scores


def randomize(module, seed=0):
    """Give every parameter and buffer random values, so that no term is hidden by a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            values = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(values.abs() * 0.5 + 0.5)
            elif "gaussian_matrix" in name:
                tensor.copy_(values)
            elif tensor.dim() == 1:  # norms and biases
                base = 1.0 if name.endswith("weight") else 0.0
                tensor.copy_(base + 0.2 * values)
            else:
                fan_in = max(tensor[0].numel(), 1)
                tensor.copy_(values * min(fan_in**-0.5, 0.5))
    return module.eval()


def build_official_sam(image_encoder, image_size):
    """Build segment_anything's Sam around an encoder, at any image size."""
    modeling = import_segment_anything().modeling
    embedding_size = image_size // 16
    transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    return modeling.Sam(
        image_encoder=image_encoder,
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=256,
            image_embedding_size=(embedding_size, embedding_size),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        ),
        mask_decoder=modeling.MaskDecoder(transformer_dim=256, transformer=transformer),
    ).eval()


def build_official_vit(*, image_size, channels, depth, heads, window_size, global_attention_blocks):
    """Build segment_anything's ImageEncoderViT."""
    modeling = import_segment_anything().modeling
    return modeling.ImageEncoderViT(
        img_size=image_size,
        embed_dim=channels,
        depth=depth,
        num_heads=heads,
        norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
        use_rel_pos=True,
        window_size=window_size,
        global_attn_indexes=tuple(global_attention_blocks),
    ).eval()


def build_official_tiny_vit(*, image_size, channels, depths, heads, window_sizes):
    """Build mobile_sam's TinyViT without a classification layer."""
    import_mobile_sam()
    from mobile_sam.modeling import TinyViT

    return TinyViT(
        img_size=image_size,
        num_classes=0,
        embed_dims=list(channels),
        depths=list(depths),
        num_heads=list(heads),
        window_sizes=list(window_sizes),
        drop_path_rate=0.0,
    ).eval()


def run_official_tiny_vit(encoder, images):
    """Run mobile_sam's TinyViT at any image size: its own forward is written for 1024 pixels only."""
    if images.shape[-1] == 1024:
        return encoder(images)
    features = encoder.patch_embed(images)
    for layer in encoder.layers:
        features = layer(features)
    side = images.shape[-1] // 16
    return encoder.neck(features.view(len(images), side, side, -1).permute(0, 3, 1, 2))


def decode_official(sam, embedding_1CHW, *, points=None, labels=None, boxes=None, masks=None, multimask=False):
    """Decode prompts of one image with the official modules: low-resolution logits [N, K, h, w] and IoU [N, K], K 1 or 3."""
    sparse, dense = sam.prompt_encoder(points=None if points is None else (points, labels), boxes=boxes, masks=masks)
    logits, iou = sam.mask_decoder(
        image_embeddings=embedding_1CHW,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
    )
    return logits, iou
