"""What sam_micro learns from: photographs and drawn scenes, mixed and changed as cameras and people change them.

Everything is drawn from the generator that is handed in, so that a step's images depend on the seed and on its number alone.

Legend: H W size of a source image, h w size of a view (longest side S, the model's input), K objects.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from vpexp.config.schema import DataConfig
from vpexp.data.annotations import AnnotatedImage
from vpexp.data.dataset import load_dataset
from vpexp.data.images import read_image
from vpexp.data.masks import decode_rle, find_region
from vpexp.synthetic import SCENES

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Rng = np.random.Generator

DRAWN_SIZE = 256
DRAWN_SCENES = 2000
"""Different drawings; each is made when it is first asked for."""
MIN_AREA = 12
"""Pixels of the model's input that an object must have to be asked for, at 256 px."""
OWNER_STRIDE = 4
PASTE_SHARE = 0.35
COMMON_SHARE = 0.05
"""Images that have a class rarer than this are taken more often (Gupta et al. 2019 "LVIS", repeat factor sampling)."""


@dataclass(slots=True)
class Source:
    """An image with objects that are decoded when they are needed.

    Attributes:
        image_HW3: RGB.
        boxes_K4: bounds of the objects, xyxy.
        classes_K: their classes, counted from 0; -1: no class that is learnt.
        decode: gives the mask of an object, [H, W].
    """

    image_HW3: Pixels
    boxes_K4: NDArray[np.float32]
    classes_K: NDArray[np.int64]
    decode: Callable[[int], Mask]


@dataclass(frozen=True, slots=True)
class View:
    """An image as the model sees it, not yet padded, and some of its objects.

    Attributes:
        image_hw3: RGB.
        covers_Khw: how much of each pixel belongs to an object, 0 to 255.
        owners_qq: int32, of each square of ``OWNER_STRIDE`` pixels the object that it shows, of all objects, counted from 1; 0: none.
        classes: of the objects by these numbers, the first that of 0; -1: none.
    """

    image_hw3: Pixels
    covers_Khw: Pixels
    owners_qq: NDArray[np.int32]
    classes: NDArray[np.int64]


class Photos:
    """The training split of a data set in any format, images of rare classes more often."""

    def __init__(self, root: Path) -> None:
        dataset = load_dataset(DataConfig(format="auto", root=str(root)), splits=("train",))
        self.categories = dataset.categories
        self.images: Sequence[AnnotatedImage] = dataset.splits["train"].images
        classes = [set(image.labels_N.tolist()) for image in self.images]
        shares = {k: sum(k in found for found in classes) / len(classes) for k in set().union(*classes)}
        weights = [max(math.sqrt(COMMON_SHARE / shares[k]) for k in found) for found in classes]
        self.shares = np.maximum(1.0, weights) / np.maximum(1.0, weights).sum()
        self._read = lru_cache(maxsize=4000)(self._read_source)

    def draw(self, rng: Rng) -> Source:
        """Take an image."""
        return self._read(int(rng.choice(len(self.images), p=self.shares)))

    def _read_source(self, index: int) -> Source:
        image = self.images[index]
        return Source(
            read_image(image.path, image.exif_transpose),
            image.boxes_N4,
            image.labels_N,
            lambda k: decode_rle(image.masks[k]),
        )


class Drawings:
    """Drawn scenes, the same for the same seed."""

    def __init__(self, seed: int, shares: dict[str, float]) -> None:
        self.seed = seed
        self.names = list(shares)
        self.shares = np.array(list(shares.values())) / sum(shares.values())
        self._draw = lru_cache(maxsize=DRAWN_SCENES)(self._draw_source)

    def draw(self, rng: Rng) -> Source:
        """Take a scene."""
        return self._draw(int(rng.integers(DRAWN_SCENES)))

    def _draw_source(self, index: int) -> Source:
        rng = np.random.default_rng([self.seed, 7, index])
        while True:
            scene = SCENES[str(rng.choice(self.names, p=self.shares))].draw(rng, DRAWN_SIZE, DRAWN_SIZE)
            if scene.masks:
                break
        owner_HW = np.zeros((DRAWN_SIZE, DRAWN_SIZE), np.uint16)  # no pixel is in two masks
        for k, mask_HW in enumerate(scene.masks, start=1):
            owner_HW[mask_HW] = k
        boxes = [find_region(mask_HW) for mask_HW in scene.masks]
        boxes_K4 = np.array([[b.left, b.top, b.right, b.bottom] for b in boxes], np.float32)
        return Source(scene.image_HW3, boxes_K4, np.full(len(boxes), -1), lambda k: owner_HW == k + 1)


@dataclass(frozen=True, slots=True)
class ViewMaker:
    """Makes the views of a step.

    Attributes:
        drawings: drawn scenes.
        photos: photographs; None: drawn scenes alone.
        photo_share: of the views, that show a photograph.
        whole_share: of the views, that show all of an image; the others are cut around an object.
        objects: of a view, at most.
    """

    drawings: Drawings
    photos: Photos | None
    photo_share: float
    whole_share: float
    objects: int

    def make(self, rng: Rng, size: int) -> View:
        """Make a view with at least one object, of longest side ``size``."""
        while True:
            is_photo = self.photos is not None and rng.random() < self.photo_share
            source = self._draw(rng, is_photo=is_photo)
            if rng.random() < PASTE_SHARE:
                source = paste(source, self._draw(rng, is_photo=rng.random() < self.photo_share), rng)
            view = self._cut(source, rng, size)
            if len(view.covers_Khw):
                return replace(view, image_hw3=change_colors(view.image_hw3, rng))

    def _draw(self, rng: Rng, *, is_photo: bool) -> Source:
        return self.photos.draw(rng) if is_photo and self.photos is not None else self.drawings.draw(rng)

    def _cut(self, source: Source, rng: Rng, size: int) -> View:
        """Choose a window and objects in it, turn, mirror and resize."""
        left, top, right, bottom = choose_window(source, self.whole_share, rng)
        inner_K4 = np.clip(source.boxes_K4, [left, top, left, top], [right, bottom, right, bottom])
        seen_K = np.prod(inner_K4[:, 2:] - inner_K4[:, :2], axis=1)
        whole_K = np.prod(source.boxes_K4[:, 2:] - source.boxes_K4[:, :2], axis=1)
        scale = size / max(right - left, bottom - top)
        visible = np.flatnonzero((seen_K > 0.4 * whole_K) & (seen_K * scale**2 >= MIN_AREA))
        chosen = set(rng.permutation(visible)[: self.objects].tolist())
        window = (slice(top, bottom), slice(left, right))
        owners_HW = np.zeros((bottom - top, right - left), np.int32)
        layers = [Image.fromarray(source.image_HW3[window])]
        for k in sorted(np.flatnonzero(seen_K > 0).tolist(), key=lambda k: -whole_K[k]):  # small ones lie on large ones
            mask_HW = source.decode(k)[window]
            owners_HW[mask_HW] = k + 1
            if k in chosen:
                layers.append(Image.fromarray(mask_HW.view(np.uint8) * 255))
        layers.insert(1, Image.fromarray(owners_HW))
        if rng.random() < 0.25:
            layers = tilt(layers, rng.uniform(-30, 30), rng)
        shape = (max(1, round(layers[0].width * scale)), max(1, round(layers[0].height * scale)))
        coarse = (-(-shape[0] // OWNER_STRIDE), -(-shape[1] // OWNER_STRIDE))
        layers[1] = layers[1].resize(coarse, Image.Resampling.NEAREST)
        smooth = [layer.resize(shape, Image.Resampling.BILINEAR) for layer in (layers[0], *layers[2:])]
        arrays = [np.asarray(layer) for layer in (layers[1], *smooth)]
        if rng.random() < 0.5:
            arrays = [array[:, ::-1] for array in arrays]
        turns = int(rng.choice(4, p=(0.7, 0.1, 0.1, 0.1)))
        owners_qq, image_hw3, *covers = (np.ascontiguousarray(np.rot90(array, turns)) for array in arrays)
        least = MIN_AREA * (size / 256) ** 2
        covers = [cover_hw for cover_hw in covers if (cover_hw >= 128).sum() >= least]
        covers_Khw = np.stack(covers) if covers else np.zeros((0, *image_hw3.shape[:2]), np.uint8)
        return View(image_hw3, covers_Khw, owners_qq, np.concatenate([[-1], source.classes_K]))


def choose_window(source: Source, whole_share: float, rng: Rng) -> tuple[int, int, int, int]:
    """Choose what a view shows: the whole image, or a window around an object, from a close-up to many times its size."""
    height, width = source.image_HW3.shape[:2]
    if rng.random() < whole_share:
        return 0, 0, width, height
    left, top, right, bottom = source.boxes_K4[int(rng.integers(len(source.boxes_K4)))].tolist()
    side = max(right - left, bottom - top, 16) * math.exp(rng.uniform(math.log(1.1), math.log(8)))
    aspect = math.exp(rng.uniform(-0.4, 0.4))
    sides = min(width, side * aspect), min(height, side / aspect)
    window = []
    for low, high, length, limit in ((left, right, sides[0], width), (top, bottom, sides[1], height)):
        first, last = sorted((high - length, low))  # where the window may begin so that it holds the object
        begin = min(max(0.0, rng.uniform(first, last)), limit - length)
        window.append((int(begin), max(int(begin) + 8, math.ceil(begin + length))))
    return window[0][0], window[1][0], min(width, window[0][1]), min(height, window[1][1])


def paste(source: Source, donor: Source, rng: Rng) -> Source:
    """Put one to three objects of another image onto an image (Ghiasi et al. 2021 "Simple copy-paste"); they hide what is below."""
    height, width = source.image_HW3.shape[:2]
    image_HW3 = source.image_HW3.copy()
    hidden_HW = np.zeros((height, width), bool)
    added: list[Mask] = []
    for k in rng.permutation(len(donor.boxes_K4))[: int(rng.integers(1, 4))]:
        left, top, right, bottom = donor.boxes_K4[k].astype(int).tolist()
        longest = rng.uniform(0.08, 0.6) * min(height, width)
        scale = min(longest / max(right - left, bottom - top, 1), 3.0)
        shape = (max(2, round((right - left) * scale)), max(2, round((bottom - top) * scale)))
        part = Image.fromarray(donor.image_HW3[top:bottom, left:right]).resize(shape, Image.Resampling.BILINEAR)
        cover = Image.fromarray(donor.decode(int(k))[top:bottom, left:right].view(np.uint8) * 255)
        cover_hw1 = np.asarray(cover.resize(shape, Image.Resampling.BILINEAR))[:, :, None] / np.float32(255)
        part_hw3 = np.asarray(part)
        if rng.random() < 0.5:
            part_hw3, cover_hw1 = part_hw3[:, ::-1], cover_hw1[:, ::-1]
        x, y = int(rng.integers(max(1, width - shape[0]))), int(rng.integers(max(1, height - shape[1])))
        part_hw3, cover_hw1 = part_hw3[: height - y, : width - x], cover_hw1[: height - y, : width - x]
        place = (slice(y, y + part_hw3.shape[0]), slice(x, x + part_hw3.shape[1]))
        image_HW3[place] = image_HW3[place] * (1 - cover_hw1) + part_hw3 * cover_hw1
        mask_HW = np.zeros((height, width), bool)
        mask_HW[place] = cover_hw1[:, :, 0] >= 0.5
        added = [other_HW & ~mask_HW for other_HW in added]
        hidden_HW |= mask_HW
        added.append(mask_HW)
    added = [mask_HW for mask_HW in added if mask_HW.any()]
    regions = [find_region(mask_HW) for mask_HW in added]
    boxes = [[r.left, r.top, r.right, r.bottom] for r in regions]
    boxes_K4 = np.concatenate([source.boxes_K4, np.array(boxes, np.float32).reshape(-1, 4)])
    count = len(source.boxes_K4)
    classes_K = np.concatenate([source.classes_K, np.full(len(boxes), -1)])
    return Source(
        image_HW3, boxes_K4, classes_K, lambda k: added[k - count] if k >= count else source.decode(k) & ~hidden_HW
    )


def tilt(layers: list[Image.Image], angle: float, rng: Rng) -> list[Image.Image]:
    """Turn an image, its map of owners and its masks by some degrees; the corners get a colour of their own."""
    fill = tuple(int(value) for value in rng.integers(0, 256, 3))
    tilted = [layers[0].rotate(angle, Image.Resampling.BILINEAR, fillcolor=fill)]
    tilted.append(layers[1].rotate(angle, Image.Resampling.NEAREST))
    return tilted + [layer.rotate(angle, Image.Resampling.BILINEAR) for layer in layers[2:]]


def change_colors(image_hw3: Pixels, rng: Rng) -> Pixels:
    """Change an image as light, lenses, sensors and files do: colour, shade, blur, noise, JPEG."""
    pixels_hw3 = image_hw3.astype(np.float32)
    grey_hw1 = pixels_hw3.mean(axis=2, keepdims=True)
    saturation = 0.0 if rng.random() < 0.1 else rng.uniform(0.5, 1.5)
    pixels_hw3 = grey_hw1 + saturation * (pixels_hw3 - grey_hw1)
    mean = float(pixels_hw3.mean())
    pixels_hw3 = mean + rng.uniform(0.6, 1.35) * (pixels_hw3 - mean) + rng.uniform(-35, 35)
    pixels_hw3 *= rng.uniform(0.85, 1.15, 3).astype(np.float32)
    if rng.random() < 0.25:
        pixels_hw3 *= shade(pixels_hw3.shape[0], pixels_hw3.shape[1], rng)
    if rng.random() < 0.3:
        pixels_hw3 = 255 * (pixels_hw3.clip(0, 255) / 255) ** np.float32(math.exp(rng.uniform(-0.4, 0.4)))
    if rng.random() < 0.1:
        pixels_hw3 = pixels_hw3[:, :, rng.permutation(3)]
    if rng.random() < 0.05:
        pixels_hw3 = 255 - pixels_hw3
    image = Image.fromarray(pixels_hw3.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.6)))
    if rng.random() < 0.25:
        noise_hw3 = rng.normal(0, rng.uniform(2, 18), pixels_hw3.shape)
        image = Image.fromarray((np.asarray(image) + noise_hw3).clip(0, 255).astype(np.uint8))
    if rng.random() < 0.25:
        content = io.BytesIO()
        image.save(content, "JPEG", quality=int(rng.integers(20, 90)))
        image = Image.open(content, formats=("JPEG",))
    return np.asarray(image)


def shade(height: int, width: int, rng: Rng) -> NDArray[np.float32]:
    """Draw uneven light: a plane of brightness, or a soft-edged shadow; [h, w, 1] around 1."""
    angle = rng.uniform(0, 2 * math.pi)
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * math.sin(angle)
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :] * math.cos(angle)
    slope_hw = rows + columns
    if rng.random() < 0.5:
        slope_hw = np.tanh((slope_hw - rng.uniform(-0.7, 0.7)) * rng.uniform(3, 25))
    light_hw1: NDArray[np.float32] = (1 + rng.uniform(0.1, 0.5) * slope_hw)[:, :, None].astype(np.float32)
    return light_hw1
