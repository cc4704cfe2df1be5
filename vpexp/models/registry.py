"""The models that vpexp knows by name, and how each is built.

Each builder takes the side of the square model input (a multiple of 16 pixels) and returns a ``Sam`` with random
weights in eval mode. Families of models with a file of their own are named in ``_FAMILIES``.
"""

import difflib
import fnmatch
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from vpexp.data.interface import STRIDE
from vpexp.errors import ConfigError
from vpexp.models.mask_decoder import MaskDecoder
from vpexp.models.prompt_encoder import PromptEncoder
from vpexp.models.sam import Sam
from vpexp.models.tiny_vit import TinyViT
from vpexp.models.vit import ImageEncoderViT


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A file of trained weights: one to download, or (``url`` None) one that comes with the package."""

    filename: str
    url: str | None = None
    sha256: str | None = None
    former: "FormerWeights | None" = None


@dataclass(frozen=True, slots=True)
class FormerWeights:
    """Weights that earlier versions had under the same name, of an encoder of another shape."""

    sha256: str
    """Of the file."""
    encoder_hash: str
    """Of the encoder, as checkpoints name it (``compute_state_hash``)."""
    until: str
    """The last version of vpexp that had them."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What vpexp knows of a model."""

    name: str
    recipe: str
    """One line on what it is."""
    build: Callable[[int], Sam]
    image_size: int
    """Default side of the model input, in pixels."""
    weights: WeightsFile | None
    """The file of ``weights=auto``; None: random weights from a fixed seed."""

    @property
    def target(self) -> str:
        """The builder's dotted name, as ``model._target_`` has it."""
        return f"{self.build.__module__}.{PREFIX}{self.name}"


_MODELS: dict[str, ModelInfo] = {}
_FAMILIES = ("vpexp.models.sam2",)
PREFIX = "build_"

_Build = TypeVar("_Build", bound=Callable[..., Sam])


def register(recipe: str, weights: WeightsFile | None) -> Callable[[_Build], _Build]:
    """Make a model known by the name of its builder, ``build_<name>``, with the default ``image_size`` of that."""

    def register(build: _Build) -> _Build:
        name = build.__name__.removeprefix(PREFIX)
        image_size = inspect.signature(build).parameters["image_size"].default
        _MODELS[name] = ModelInfo(name, recipe, build, image_size, weights)
        return build

    return register


@register(
    "MobileSAM: TinyViT-5M encoder, SAM mask decoder",
    WeightsFile(
        filename="mobile_sam.pt",
        url="https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
        sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
    ),
)
def build_sam_tiny_vit(image_size: int = 1024) -> Sam:
    """Build MobileSAM: the TinyViT encoder (5M) and SAM's decoder."""
    encoder = TinyViT(
        channels=(64, 128, 160, 320),
        depths=(2, 2, 6, 2),
        heads=(2, 4, 5, 10),
        window_sizes=(7, 7, 14, 7),
        unused_classes=1000,
    )
    return _build_sam(encoder, image_size, MaskDecoder())


@register(
    "Segment Anything: ViT-B encoder, SAM mask decoder",
    WeightsFile(
        filename="sam_vit_b_01ec64.pth",
        url="https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
)
def build_sam_vit_b(image_size: int = 1024) -> Sam:
    """Build SAM with the ViT-B encoder."""
    check_image_size(image_size)
    encoder = ImageEncoderViT(
        image_size=image_size, channels=768, depth=12, heads=12, window_size=14, global_attention_blocks=(2, 5, 8, 11)
    )
    return _build_sam(encoder, image_size, MaskDecoder())


@register(
    "small SAM for 256 px: narrow TinyViT encoder, SAM mask decoder, trained on 718 photographs and on drawn images",
    WeightsFile(
        filename="sam_micro.safetensors",
        former=FormerWeights(
            sha256="42717dcc04219637c4f5568e65b5481670cee2d6b6940ea5362e2a470fbd18f0",
            encoder_hash="56ce890f05e0e4686f196712990eeda567378914559ec14e4749dbb2796f1409",
            until="0.1",
        ),
    ),
)
def build_sam_micro(image_size: int = 256) -> Sam:
    """Build a small SAM for small images: a narrow TinyViT encoder and SAM's decoder.

    Windows of 8 and 16 divide the feature maps of 256 px; MobileSAM's 7 and 14 would fill a third of them with zeros.
    """
    encoder = TinyViT(
        channels=(32, 64, 96, 320),
        depths=(1, 1, 5, 1),
        heads=(1, 2, 3, 10),
        window_sizes=(8, 8, 16, 16),
        detail_channels=(16, 64),
    )
    return _build_sam(encoder, image_size, MaskDecoder())


@register("random SAM of a few thin layers for tests", None)
def build_sam_debug(image_size: int = 64) -> Sam:
    """Build a SAM of a few thin layers that runs in milliseconds: one windowed block, one global, SAM's interface."""
    check_image_size(image_size)
    encoder = ImageEncoderViT(
        image_size=image_size, channels=32, depth=2, heads=2, window_size=3, global_attention_blocks=(1,)
    )
    return _build_sam(encoder, image_size, MaskDecoder(mlp_channels=128))


def _build_sam(encoder: nn.Module, image_size: int, mask_decoder: MaskDecoder) -> Sam:
    check_image_size(image_size)
    prompt_encoder = PromptEncoder(image_size=image_size, embedding_size=image_size // STRIDE)
    return Sam(encoder, prompt_encoder, mask_decoder).eval()


def check_image_size(image_size: int, multiple: int = STRIDE) -> None:
    """Check the side of a model's input.

    Raises:
        ConfigError: it is no multiple of ``multiple``.
    """
    if image_size < multiple or image_size % multiple:
        lower = max(image_size // multiple * multiple, multiple)
        raise ConfigError(f"model.image_size={image_size}: must be a multiple of {multiple}, e.g. {lower}")


def _get_models() -> dict[str, ModelInfo]:
    for family in _FAMILIES:
        importlib.import_module(family)  # its builders register themselves
    return _MODELS


def list_models(pattern: str = "*") -> list[str]:
    """List the names of the models that match a shell pattern."""
    return [name for name in _get_models() if fnmatch.fnmatch(name, pattern)]


def get_model_info(name: str) -> ModelInfo:
    """Look a model up by its name.

    Raises:
        ConfigError: No model has this name; the message gives the closest ones.
    """
    models = _get_models()
    if name in models:
        return models[name]
    closest = difflib.get_close_matches(name, models, n=1, cutoff=0.3)
    hint = f"did you mean '{closest[0]}'? " if closest else ""
    raise ConfigError(f"unknown model '{name}': {hint}known: {', '.join(models)}")


def refuse_exported_model(image_size: int) -> Sam:
    """Stand in for a builder where a configuration names no torch model (``model=openvino_model``).

    Raises:
        ConfigError: always, as there is nothing to build.
    """
    del image_size
    raise ConfigError(
        "model=openvino_model is an exported model, with no torch weights: it takes stage=test, predict or ptq, and "
        "checkpoint=<its .xml or .onnx>"
    )
