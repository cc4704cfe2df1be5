"""Fill the store of embeddings with what a run needs, side by side with other processes that do the same.

Legend: B images, C channels, H W rows and columns of the embedding, h w size of an image inside the model's square, S model
input size.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import BaseFileLock
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from vpexp.console import build_progress
from vpexp.data.annotations import AnnotatedImage, ImagePlace, Region
from vpexp.data.geometry import normalize_and_pad, resize_image
from vpexp.data.images import read_image
from vpexp.data.interface import FIT
from vpexp.data.variants import turn_pixels
from vpexp.embeddings.plan import EmbeddingPlan
from vpexp.embeddings.store import EmbeddingStore, compute_image_key, compute_place_key, release
from vpexp.errors import DataError
from vpexp.signals import leave_stops_to_parent

PATIENCE_SECONDS = 300.0  # without news of what other processes encode
PAUSE_SECONDS = 0.1
IMAGES_A_WORKER = 4  # fewer are read sooner than a process starts


@dataclass(frozen=True, slots=True)
class ImageEncoder:
    """A runtime of the image encoder.

    Attributes:
        name: torch or openvino.
        encode: float32 images [B, 3, S, S], normalised and padded, to float32 embeddings [B, C, H, W].
        batch_size: images it takes at once.
    """

    name: str
    encode: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    batch_size: int = 1


@dataclass(slots=True)
class FillReport:
    """What a filling did.

    Attributes:
        encoder: name of what encoded.
        encoded: images encoded and written here.
        shared: images that another process wrote meanwhile.
        unreadable: images that cannot be decoded.
        left: images without an entry in the end, though they can be read.
        trouble: why entries could not be written.
    """

    encoder: str
    encoded: int = 0
    shared: int = 0
    unreadable: int = 0
    left: int = 0
    trouble: OSError | None = None


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image as the encoder takes it, but for normalising.

    Attributes:
        index: its place among the missing images.
        key: of the bytes that were decoded; None where the file cannot be read or decoded.
        image_hw3: RGB uint8; None where it cannot be decoded, or where its entry is there by now.
    """

    index: int
    key: str | None
    image_hw3: NDArray[np.uint8] | None = None


class _ImageContent:
    """The bytes of an image file, decoded where that is asked for, once for all of its windows."""

    def __init__(self, path: Path, exif_transpose: bool) -> None:
        content = path.read_bytes()
        self.place = path, exif_transpose
        # Of what is decoded here, whatever the file held when it was looked up.
        self.key = compute_image_key(content, exif_transpose=exif_transpose)
        self._content: bytes | None = content
        self._image_HW3: NDArray[np.uint8] | None = None

    def read(self, window: Region | None) -> NDArray[np.uint8]:
        """Read the image or a window of it: uint8 [H, W, 3]; DataError where it cannot be decoded."""
        if self._image_HW3 is None:
            self._image_HW3, self._content = read_image(*self.place, content=self._content), None
        return self._image_HW3 if window is None else self._image_HW3[window.slices]


class MissingImages(Dataset[PreparedImage]):
    """Reads, decodes and resizes images whose embedding is missing; one of several windows or variants is decoded once."""

    def __init__(
        self,
        images: Sequence[AnnotatedImage | ImagePlace],
        store: EmbeddingStore,
        image_size: int,
        resize: str = FIT,
    ) -> None:
        self.images = images
        self.store = store
        self.image_size = image_size
        self.resize = resize
        self._last: _ImageContent | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> PreparedImage:
        """Prepare an image."""
        image = self.images[index]
        try:
            content = self._open(image)
            key = compute_place_key(content.key, image.window, image.variant)
            if self.store.has(key):
                return PreparedImage(index, key)
            image_HW3 = turn_pixels(content.read(image.window), image.variant)
        except (OSError, DataError):
            return PreparedImage(index, None)  # whoever trains or tests on it says so
        return PreparedImage(index, key, resize_image(image_HW3, self.image_size, self.resize))

    def _open(self, image: AnnotatedImage | ImagePlace) -> _ImageContent:
        place = image.path, image.exif_transpose
        shares = image.window is not None or image.variant != 0  # the next one may be of the same file
        if self._last is not None and self._last.place == place and shares:
            return self._last
        self._last = None  # before the next one takes memory
        content = _ImageContent(*place)
        self._last = content if shares else None
        return content


def fill_embeddings(
    store: EmbeddingStore,
    plan: EmbeddingPlan,
    encoder: ImageEncoder,
    *,
    image_size: int,
    num_workers: int,
    resize: str = FIT,
) -> FillReport:
    """Encode the images whose embedding is missing, but for those that another process encodes.

    An interrupt leaves whole entries only, and the next call goes on. A folder that cannot be written ends the filling,
    not the run: the report says why.

    Args:
        store: of the encoder.
        plan: what is missing.
        encoder: encodes.
        image_size: S.
        num_workers: processes that read images.
        resize: how an image becomes the square, see ``compute_resized_size``.
    """
    report = FillReport(encoder.name)
    images = MissingImages(plan.missing, store, image_size, resize)
    workers = min(num_workers, len(images) // IMAGES_A_WORKER)
    with build_progress() as progress:
        task = progress.add_task("encoding images", total=len(images))
        filler = _Filler(images, encoder, report, lambda: progress.advance(task))
        try:
            loader = DataLoader(
                images, batch_size=None, num_workers=workers, collate_fn=_keep, worker_init_fn=leave_stops_to_parent
            )
            others = filler.fill(loader)
            progress.update(task, description="encoding images, with another process")
            filler.wait(others)
        except OSError as error:
            report.trouble = error
        finally:
            filler.close()
    report.left = len(images) - report.encoded - report.shared - report.unreadable
    return report


class _Filler:
    """Encodes what no other process does, in batches; images of a batch are claimed until it is written."""

    def __init__(
        self, images: MissingImages, encoder: ImageEncoder, report: FillReport, advance: Callable[[], None]
    ) -> None:
        self.images = images
        self.store = images.store
        self.encoder = encoder
        self.report = report
        self.advance = advance
        self._claimed: list[tuple[BaseFileLock, str, NDArray[np.uint8]]] = []

    def fill(self, images: Iterable[PreparedImage]) -> list[PreparedImage]:
        """Encode images that were read; return those that another process has claimed."""
        others = []
        for image in images:
            if image.key is None:
                self._finish("unreadable")
            elif not self._take(image):
                others.append(PreparedImage(image.index, image.key))
            if len(self._claimed) >= self.encoder.batch_size:
                self._encode()
        self._encode()
        return others

    def wait(self, others: list[PreparedImage]) -> None:
        """Wait until others have written what they claimed; take over what a process that ended has left."""
        news = time.monotonic()
        while others and time.monotonic() - news < PATIENCE_SECONDS:
            remaining = []
            for image in others:
                claim = None if self.store.has(str(image.key)) else self.store.claim(str(image.key))
                if claim is not None:
                    release(claim)
                    remaining += self.fill([self.images[image.index]])
                elif self.store.has(str(image.key)):
                    self._finish("shared")
                else:
                    remaining.append(image)
            if len(remaining) < len(others):
                news = time.monotonic()
            else:
                time.sleep(PAUSE_SECONDS)
            others = remaining

    def close(self) -> None:
        """Give up what was claimed and not written."""
        for claim, _, _ in self._claimed:
            release(claim)
        self._claimed.clear()

    def _take(self, image: PreparedImage) -> bool:
        """Claim an image; False where another process holds it."""
        key = str(image.key)
        claim = None if image.image_hw3 is None else self.store.claim(key)
        if claim is not None and image.image_hw3 is not None:
            self._claimed.append((claim, key, image.image_hw3))
            return True
        if self.store.has(key):
            self._finish("shared")
            return True
        return False

    def _encode(self) -> None:
        if not self._claimed:
            return
        size = self.images.image_size
        images_B3SS = np.stack([normalize_and_pad(image_hw3, size) for _, _, image_hw3 in self._claimed])
        embeddings_BCHW = self.encoder.encode(images_B3SS)
        for embedding_CHW in embeddings_BCHW:
            claim, key, _ = self._claimed.pop(0)  # whatever comes of it, publish ends the claim
            self.store.publish(claim, key, embedding_CHW)
            self._finish("encoded")

    def _finish(self, how: str) -> None:
        setattr(self.report, how, getattr(self.report, how) + 1)
        self.advance()


def _keep(item: Any) -> Any:
    return item
