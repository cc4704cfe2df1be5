"""What everything around a model has to know of its family, whatever runs it; neither torch nor numpy is imported here.

An embedding is one array [C, S/16, S/16], so that it is stored, batched and handed on as one. The map that prompts attend to
comes first in it. A finer map follows as its cells lie in those of the first: space to depth, halved row and column by row and
column, (row, column, channel) each time. SAM has one map, SAM 2 three.

Legend: B images, C channels, H W rows and columns, S model input size.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIT, STRETCH = "fit", "stretch"
"""Ways to make an image the square input: by its longest side, then padded; by both sides."""
STRIDE = 16
"""Pixels of the model input to one cell of an embedding."""
RESIZE_TYPES = {FIT: "fit_to_window", STRETCH: "standard"}
"""Model API's names of the ways to resize."""


@dataclass(frozen=True, slots=True)
class EmbeddingMap:
    """One map of an embedding.

    Attributes:
        name: of its port in exported graphs.
        channels: its own, not those that it takes in the embedding.
        stride: pixels of the model's input to one of its cells: 16, 8 or 4.
    """

    name: str
    channels: int
    stride: int = STRIDE

    @property
    def parts(self) -> int:
        """Cells of this map in one of the embedding's."""
        return (STRIDE // self.stride) ** 2

    def get_shape(self, image_size: int) -> tuple[int, int, int]:
        """Compute (channels, rows, columns)."""
        return self.channels, image_size // self.stride, image_size // self.stride


@dataclass(frozen=True, slots=True)
class Interface:
    """How a family of models takes images, and what it gives.

    Attributes:
        maps: of an embedding, in order.
        resize: how an image of any shape becomes the square input: ``fit`` (longest side, padded with zeros) or ``stretch``.
        dynamic_multimask: whether the mask of token 0 gives way to the best of the other three where it is unstable.
        logit_limit: the largest logit of masks that are handed out to be refined; None: there is none.
    """

    maps: tuple[EmbeddingMap, ...]
    resize: str = FIT
    dynamic_multimask: bool = False
    logit_limit: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the ports of an embedding."""
        return tuple(one.name for one in self.maps)

    @property
    def channels(self) -> int:
        """Channels C of a whole embedding."""
        return sum(one.channels * one.parts for one in self.maps)

    def pack(self, maps: "Sequence[NDArray[Any]]") -> "NDArray[Any]":
        """Put maps [B, channels, H, W] together to embeddings [B, C, S/16, S/16]."""
        import numpy as np

        return np.concatenate([to_depth(one, array) for one, array in zip(self.maps, maps, strict=True)], axis=1)

    def unpack(self, embedding_BCHW: "NDArray[Any]") -> "dict[str, NDArray[Any]]":
        """Take embeddings apart: maps [B, channels, H, W] by name."""
        import numpy as np

        ends = np.cumsum([one.channels * one.parts for one in self.maps])[:-1]
        parts = np.split(embedding_BCHW, ends, axis=1)
        return {one.name: to_space(one, part) for one, part in zip(self.maps, parts, strict=True)}

    def describe(self) -> dict[str, str]:
        """Build the entries of an exported model's metadata; what is as in SAM is left out, but for the way to resize."""
        info = {"resize_type": RESIZE_TYPES[self.resize]}
        if self.maps != SAM.maps:
            info["embedding"] = json.dumps([[one.name, one.channels, one.stride] for one in self.maps])
        if self.dynamic_multimask:
            info["dynamic_multimask"] = "True"
        if self.logit_limit is not None:
            info["logit_limit"] = str(self.logit_limit)
        return info

    @classmethod
    def parse(cls, info: Mapping[str, str]) -> "Interface":
        """Read the entries of an exported model's metadata.

        Raises:
            KeyError, TypeError, ValueError: they are not as ``describe`` builds them.
        """
        resize = {value: key for key, value in RESIZE_TYPES.items()}[info.get("resize_type", RESIZE_TYPES[FIT])]
        maps = SAM.maps
        if "embedding" in info:
            maps = tuple(
                EmbeddingMap(str(name), int(size), int(to)) for name, size, to in json.loads(info["embedding"])
            )
            if not maps or maps[0].stride != STRIDE or any(one.stride not in (4, 8, 16) for one in maps):
                raise ValueError(f"embedding={info['embedding']}")
        limit = float(info["logit_limit"]) if "logit_limit" in info else None
        return cls(maps, resize, info.get("dynamic_multimask") == "True", limit)


SAM = Interface((EmbeddingMap("image_embeddings", 256),))
"""Segment Anything, MobileSAM and what is built like them."""


def to_depth(one: EmbeddingMap, array: Any) -> Any:
    """Bring a map [B, channels, H, W] to the embedding's cells: [B, channels * parts, S/16, S/16]; numpy's or torch's."""
    for _ in range((STRIDE // one.stride).bit_length() - 1):
        _, channels, height, width = array.shape
        halves = array.reshape(-1, channels, height // 2, 2, width // 2, 2)
        array = _permute(halves, (0, 3, 5, 1, 2, 4)).reshape(-1, 4 * channels, height // 2, width // 2)
    return array


def to_space(one: EmbeddingMap, array: Any) -> Any:
    """Undo ``to_depth``."""
    for _ in range((STRIDE // one.stride).bit_length() - 1):
        _, channels, height, width = array.shape
        halves = array.reshape(-1, 2, 2, channels // 4, height, width)
        array = _permute(halves, (0, 3, 4, 1, 5, 2)).reshape(-1, channels // 4, 2 * height, 2 * width)
    return array


def _permute(array: Any, axes: tuple[int, ...]) -> Any:
    return array.permute(axes) if hasattr(array, "permute") else array.transpose(axes)
