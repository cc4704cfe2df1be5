"""The official packages as references: they import torchvision and timm, of which they need a few helpers only.

The stand-ins below satisfy those imports, nothing else of the two libraries exists.
"""

import sys
import types

import torch
from torch import nn


def import_segment_anything():
    """Import the PyPI package segment-anything."""
    _stub_torchvision()
    import segment_anything

    return segment_anything


def import_mobile_sam():
    """Import the PyPI package mobilesam-mirror."""
    _stub_torchvision()
    _stub_timm()
    import mobile_sam

    return mobile_sam


def _stub_torchvision():
    if "torchvision" in sys.modules:
        return
    _add_module("torchvision")
    _add_module("torchvision.ops")
    _add_module("torchvision.ops.boxes", batched_nms=None, box_area=None)
    _add_module("torchvision.transforms")
    _add_module("torchvision.transforms.functional", resize=None, to_pil_image=None)


def _stub_timm():
    if "timm" in sys.modules:
        return
    _add_module("timm")
    _add_module("timm.models")
    _add_module(
        "timm.models.layers",
        DropPath=nn.Identity,
        to_2tuple=lambda value: (value, value),
        trunc_normal_=nn.init.trunc_normal_,
    )
    _add_module("timm.models.registry", register_model=lambda function: function)


def _add_module(name, **members):
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


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
