"""Fill the store of embeddings with what a run needs, side by side with other processes that do the same.

Which of two runtimes encodes is measured: torch is there at once, another one costs seconds to build and may then be faster.

Legend: B images, C channels, H W rows and columns of the embedding, h w size of an image inside the model's square, S model
input size.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from vpexp.console import build_progress
from vpexp.data.annotations import AnnotatedImage
from vpexp.data.geometry import normalize_and_pad, resize_image
from vpexp.data.images import read_image
from vpexp.embeddings.plan import EmbeddingPlan
from vpexp.embeddings.store import Claim, EmbeddingStore, compute_image_key
from vpexp.errors import ConfigError, DataError
from vpexp.signals import leave_stops_to_parent

PATIENCE_SECONDS = 300.0  # without news of what other processes encode
PAUSE_SECONDS = 0.1
IMAGES_A_WORKER = 4  # fewer are read sooner than a process starts
# Measured on CPUs: converting and compiling TinyViT and ViT-B at 1024 px for OpenVINO takes 12 to 16 s, and then saves
# 17 to 29 % of each float32 pass.
CONVERSION_SECONDS = 15.0
EXPECTED_SAVING = 0.2
TRIALS = 3  # passes of each runtime, the first of which warms it up and does not count

log = logging.getLogger(__name__)


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


class EncoderChoice:
    """Encodes by the runtime that a configuration names, or by the one that proves faster.

    No image is encoded twice for it: torch encodes the first images and is timed; where enough of them remain for a
    conversion to pay, the other runtime encodes the next ones, and the faster of the two the rest.

    Args:
        torch_encoder: is there from the start.
        build_openvino: converts the encoder; None where torch is known to be faster (on a GPU).
        backend: auto, torch or openvino.
    """

    def __init__(
        self, torch_encoder: ImageEncoder, build_openvino: Callable[[], ImageEncoder] | None, *, backend: str = "auto"
    ) -> None:
        self.passes: dict[str, int] = {}
        self._build = build_openvino
        self._on_trial = backend == "auto" and build_openvino is not None
        self._seconds: dict[str, list[float]] = {}
        self._torch = self._current = torch_encoder
        self._build_first = backend == "openvino"

    @property
    def batch_size(self) -> int:
        """Images that are encoded at once."""
        return self._current.batch_size

    def encode(self, images_B3SS: NDArray[np.float32], *, remaining: int) -> NDArray[np.float32]:
        """Encode some images; ``remaining`` says how many come after them."""
        if self._build_first:
            self._build_first, self._current = False, self._build_openvino()
        encoder = self._current
        started = time.perf_counter()
        embeddings_BCHW = encoder.encode(images_B3SS)
        self._seconds.setdefault(encoder.name, []).append((time.perf_counter() - started) / len(images_B3SS))
        self.passes[encoder.name] = self.passes.get(encoder.name, 0) + len(images_B3SS)
        if self._on_trial and len(self._seconds[encoder.name]) == TRIALS:
            self._decide(remaining)
        return embeddings_BCHW

    def describe(self) -> str:
        """Describe what encoded: ``torch``, or ``openvino (0.52 s an image, torch 0.71 s)``."""
        times = {name: _measure(seconds) for name, seconds in self._seconds.items() if len(seconds) >= TRIALS}
        name = self._current.name
        if len(times) < 2:
            return name
        others = ", ".join(f"{other} {seconds:.2f} s" for other, seconds in times.items() if other != name)
        return f"{name} ({times[name]:.2f} s an image, {others})"

    def _decide(self, remaining: int) -> None:
        by_torch = _measure(self._seconds[self._torch.name])
        if self._current is not self._torch:
            self._on_trial = False
            if _measure(self._seconds[self._current.name]) >= by_torch:
                self._current = self._torch
        elif EXPECTED_SAVING * by_torch * remaining > CONVERSION_SECONDS:
            try:
                self._current = self._build_openvino()
            except ConfigError as error:
                log.warning("%s", error)
                self._on_trial = False
        else:
            self._on_trial = False

    def _build_openvino(self) -> ImageEncoder:
        if self._build is None:
            return self._torch
        try:
            return self._build()
        except Exception as error:  # an encoder of the user's own may hold what OpenVINO does not know
            line = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"cache.backend=openvino: this encoder cannot be converted ({type(error).__name__}: {line}); "
                "set cache.backend=torch"
            ) from error


def _measure(seconds: list[float]) -> float:
    return min(seconds[1:TRIALS])


@dataclass(slots=True)
class FillReport:
    """What a filling did.

    Attributes:
        encoded: images encoded and written here.
        shared: images that another process wrote meanwhile.
        unreadable: images that cannot be decoded.
        left: images without an entry in the end, though they can be read.
        encoders: images that each runtime encoded.
        encoder: what encoded, for people.
        trouble: why entries could not be written.
    """

    encoded: int = 0
    shared: int = 0
    unreadable: int = 0
    left: int = 0
    encoders: dict[str, int] = field(default_factory=dict)
    encoder: str = ""
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


class MissingImages(Dataset[PreparedImage]):
    """Reads, decodes and resizes images whose embedding is missing."""

    def __init__(self, images: Sequence[AnnotatedImage], store: EmbeddingStore, image_size: int) -> None:
        self.images = images
        self.store = store
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> PreparedImage:
        """Prepare an image."""
        image = self.images[index]
        try:
            content = image.path.read_bytes()
            # Of what is decoded here, whatever the file held when it was looked up.
            key = compute_image_key(content, exif_transpose=image.exif_transpose)
            if self.store.has(key):
                return PreparedImage(index, key)
            image_HW3 = read_image(image.path, image.exif_transpose, content=content)
        except (OSError, DataError):
            return PreparedImage(index, None)  # whoever trains or tests on it says so
        return PreparedImage(index, key, resize_image(image_HW3, self.image_size))


def fill_embeddings(
    store: EmbeddingStore, plan: EmbeddingPlan, encoders: EncoderChoice, *, image_size: int, num_workers: int
) -> FillReport:
    """Encode the images whose embedding is missing, but for those that another process encodes.

    An interrupt leaves whole entries only, and the next call goes on. A folder that cannot be written ends the filling,
    not the run: the report says why.

    Args:
        store: of the encoder.
        plan: what is missing.
        encoders: encode.
        image_size: S.
        num_workers: processes that read images.
    """
    report = FillReport()
    images = MissingImages(plan.missing, store, image_size)
    workers = min(num_workers, len(images) // IMAGES_A_WORKER)
    with build_progress() as progress:
        task = progress.add_task("encoding images", total=len(images))
        filler = _Filler(images, encoders, report, lambda: progress.advance(task))
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
    report.encoders, report.encoder = dict(encoders.passes), encoders.describe()
    return report


class _Filler:
    """Encodes what no other process does, in batches; images of a batch are claimed until it is written."""

    def __init__(
        self, images: MissingImages, encoders: EncoderChoice, report: FillReport, advance: Callable[[], None]
    ) -> None:
        self.images = images
        self.store = images.store
        self.encoders = encoders
        self.report = report
        self.remaining = len(images)
        self.advance = advance
        self._claimed: list[tuple[Claim, str, NDArray[np.uint8]]] = []

    def fill(self, images: Iterable[PreparedImage]) -> list[PreparedImage]:
        """Encode images that were read; return those that another process has claimed."""
        others = []
        for image in images:
            if image.key is None:
                self._finish("unreadable")
            elif not self._take(image):
                others.append(PreparedImage(image.index, image.key))
            if len(self._claimed) >= self.encoders.batch_size:
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
                    claim.release()
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
            claim.release()
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
        embeddings_BCHW = self.encoders.encode(images_B3SS, remaining=self.remaining - len(self._claimed))
        for embedding_CHW in embeddings_BCHW:
            claim, key, _ = self._claimed[0]
            rounded_CHW = self.store.round(embedding_CHW)
            del self._claimed[0]  # whatever comes of it, publish ends the claim
            self.store.publish(claim, key, rounded_CHW)
            self._finish("encoded")

    def _finish(self, how: str) -> None:
        setattr(self.report, how, getattr(self.report, how) + 1)
        self.remaining -= 1
        self.advance()


def _keep(item: Any) -> Any:
    return item
