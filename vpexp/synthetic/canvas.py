"""The canvas: colours of an image being drawn, which object each pixel shows, and what a drawer of scenes returns.

Shapes: H W size of the canvas, h w size of a patch painted on it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_AREA = 25
MIN_VISIBLE_SHARE = 0.25
NO_OBJECT = -1
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


def draw_enough(
    draw: Callable[[np.random.Generator, int, int], Scene],
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    least: int,
) -> Scene:
    """Draw a scene, and again at most eight times while it has fewer than ``least`` objects: those hardly seen are dropped."""
    scene = draw(rng, height, width)
    for _ in range(8):
        if len(scene.masks) >= least:
            break
        scene = draw(rng, height, width)
    return scene


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


class Canvas:
    """Colours in 0..1 and the topmost object of each pixel.

    Patches are painted back to front; a patch that belongs to an object takes over the pixels that it covers by at
    least half, so what stays of an object at the end is its visible part.

    Attributes:
        color_HW3: float32, RGB in 0..1.
        owner_HW: int32, index of the object that a pixel shows, or -1.
    """

    def __init__(self, color_HW3: Field) -> None:
        self.color_HW3 = color_HW3
        self.owner_HW: NDArray[np.int32] = np.full(color_HW3.shape[:2], NO_OBJECT, np.int32)
        self._labels: list[int] = []
        self._areas: list[int] = []

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.owner_HW.shape
        return height, width

    @property
    def labels(self) -> list[int]:
        """Label of each object begun so far."""
        return self._labels

    def begin_object(self, label: int) -> int:
        """Open a new object and give its index; patches painted with it are parts of that object."""
        self._labels.append(label)
        self._areas.append(0)
        return len(self._labels) - 1

    def window(self, top: int, left: int, height: int, width: int) -> tuple[slice, slice, slice, slice] | None:
        """Cut a patch to the canvas: rows and columns of the canvas, rows and columns of the patch, None if outside."""
        canvas_height, canvas_width = self.size
        y0, y1 = max(top, 0), min(top + height, canvas_height)
        x0, x1 = max(left, 0), min(left + width, canvas_width)
        if y0 >= y1 or x0 >= x1:
            return None
        return slice(y0, y1), slice(x0, x1), slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)

    def paint(
        self,
        alpha_hw: Field,
        color_hw3: Field,
        top: int,
        left: int,
        *,
        owner: int | None = None,
        cover_hw: Mask | None = None,
    ) -> None:
        """Blend a patch over the canvas.

        Args:
            alpha_hw: opacity in 0..1.
            color_hw3: colours in 0..1, [h, w, 3] or anything that broadcasts to it from three numbers.
            top: row of the patch's first row; the patch may stand out of the canvas.
            left: the same, for columns.
            owner: the object that the covered pixels show from now on; -1 hides what is below without being an
                object; None leaves the objects as they are (shadows, light).
            cover_hw: the covered pixels, where they are not ``alpha >= 0.5``.
        """
        cut = self.window(top, left, *alpha_hw.shape)
        if cut is None:
            return
        rows, columns, patch_rows, patch_columns = cut
        alpha = alpha_hw[patch_rows, patch_columns]
        below = self.color_HW3[rows, columns]
        color = color_hw3[patch_rows, patch_columns] if color_hw3.ndim > 1 else color_hw3
        below += alpha[..., None] * (color - below)
        if owner is None:
            return
        cover = alpha >= 0.5 if cover_hw is None else cover_hw[patch_rows, patch_columns]
        owners = self.owner_HW[rows, columns]
        if owner >= 0:
            self._areas[owner] += int(np.count_nonzero(cover & (owners != owner)))
        owners[cover] = owner

    def darken(self, alpha_hw: Field, top: int, left: int) -> None:
        """Multiply the colours by ``1 - alpha``: a shadow."""
        cut = self.window(top, left, *alpha_hw.shape)
        if cut is None:
            return
        rows, columns, patch_rows, patch_columns = cut
        self.color_HW3[rows, columns] *= 1 - alpha_hw[patch_rows, patch_columns, None]

    def finish(self, color_HW3: Field | None = None) -> Scene:
        """Round the colours and cut out the visible parts; objects with too little of them left are dropped.

        Args:
            color_HW3: the colours after photometric changes; those of the canvas by default.
        """
        color = self.color_HW3 if color_HW3 is None else color_HW3
        image = np.clip(color * 255 + 0.5, 0, 255).astype(np.uint8)
        # one pass for all objects: the counts say whom to keep before any mask is made
        counts = np.bincount((self.owner_HW + 1).ravel(), minlength=len(self._labels) + 1)[1:]
        keep = [
            index
            for index, count in enumerate(counts)
            if count >= MIN_AREA and count >= MIN_VISIBLE_SHARE * self._areas[index]
        ]
        return Scene(image, [self.owner_HW == index for index in keep], [self._labels[index] for index in keep])
