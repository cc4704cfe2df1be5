"""What a drawer of scenes gives back.

Shapes: H W size of the drawn image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
# numpy's stubs widen float32 times a Python float to float64, which at run time it is not
Field = NDArray[np.floating[Any]]
Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scene:
    """One drawn image with its objects.

    Attributes:
        image_HW3: RGB, uint8.
        masks: the visible part of each object, bool [H, W]; never empty, no pixel in two of them.
        labels: index of each object's category in ``SceneDrawer.categories``.
    """

    image_HW3: Image
    masks: list[Mask]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class SceneDrawer:
    """One kind of scene: the names of its categories and the function that draws it.

    Attributes:
        categories: names that the labels of a scene point into.
        draw: ``draw(rng, height, width)``; the same generator state and size give the same scene.
    """

    categories: tuple[str, ...]
    draw: Callable[[np.random.Generator, int, int], Scene]


@dataclass(frozen=True, slots=True)
class Sprite:
    """A drawn thing that can be painted many times.

    Attributes:
        alpha_hw: opacity in 0..1.
        color_hw3: RGB in 0..1.
    """

    alpha_hw: Field
    color_hw3: Field

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.alpha_hw.shape
        return height, width

    def mirrored(self) -> "Sprite":
        """Swap left and right; no pixel is copied."""
        return Sprite(self.alpha_hw[:, ::-1], self.color_hw3[:, ::-1])


@dataclass(frozen=True, slots=True)
class Light:
    """The sun of a scene.

    Attributes:
        direction: unit vector (x right, y down, z to the viewer) that points to the sun.
        color: RGB of what is lit.
        ambient: share of the light that reaches what is turned away.
    """

    direction: tuple[float, float, float]
    color: Field
    ambient: float
