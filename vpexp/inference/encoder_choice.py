"""Which of two runtimes encodes: torch is there at once, another one costs seconds to build and may then be faster.

Legend: B images, S model input size, C channels, H W rows and columns of the embedding.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpexp.errors import ConfigError

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
        """Say what encoded: ``torch``, or ``openvino (0.52 s an image, torch 0.71 s)``."""
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
