"""The image encoder run by OpenVINO straight from torch, without files, to fill the embedding cache."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpexp.deploy.openvino_format import convert_encoder
from vpexp.environment import find_thread_limit
from vpexp.inference.openvino_core import get_core
from vpexp.models.sam import Sam


def build_openvino_encoder(sam: Sam, *, threads: int | None = None) -> Callable[[NDArray[np.float32]], NDArray[Any]]:
    """Convert and compile the encoder for the CPU, in float32: takes some ten seconds.

    Args:
        sam: in eval mode, float32, on the CPU.
        threads: CPU threads; None: OMP_NUM_THREADS, else OpenVINO's own choice.

    Returns:
        From float32 images [1, 3, S, S] to float32 embeddings [1, C, S/16, S/16].
    """
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    threads = threads or find_thread_limit()
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = get_core().compile_model(convert_encoder(sam), "CPU", settings)

    def encode(images_13SS: NDArray[np.float32]) -> NDArray[Any]:
        return np.array(compiled({0: images_13SS})[0])  # OpenVINO uses its output's memory again

    return encode
