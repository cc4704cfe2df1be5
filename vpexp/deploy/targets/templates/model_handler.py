"""Runs an exported Segment Anything model by onnxruntime: an image is encoded once, then prompts are decoded.

Written by vpexp; needs numpy, Pillow and onnxruntime.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

FOLDER = Path(__file__).parent
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class ModelHandler:
    """Both graphs, of the folder that this file lies in; the decoder is opened when it is asked."""

    def __init__(self) -> None:
        self.encoder = open_session("encoder.onnx")
        self.decoder: Any = None
        described = self.encoder.get_modelmeta().custom_metadata_map
        self.image_size = int(described["model_info image_size"])
        self.version = f"{described['model_info model_name']}-{described['model_info source_hash'][:8]}"

    def embed(self, image: Image.Image) -> NDArray[np.float32]:
        """Encode an image: float32 [1, C, rows, columns]."""
        resized = image.convert("RGB").resize(self.fit(*image.size), Image.Resampling.BILINEAR)
        (embedding,) = self.encoder.run(None, {"input_image": np.asarray(resized, np.float32)})
        found: NDArray[np.float32] = embedding
        return found

    def segment(
        self, embedding: NDArray[np.float32], size: tuple[int, int], points: list[list[float]], labels: list[int]
    ) -> tuple[NDArray[np.bool_], float]:
        """Decode one prompt.

        Args:
            embedding: from ``embed``.
            size: width and height of the image.
            points: x and y each, pixels of the image.
            labels: of each point 1 inside, 0 outside, 2 and 3 the top left and bottom right corner of a box.

        Returns:
            The mask [height, width] and its predicted IoU.
        """
        if self.decoder is None:
            self.decoder = open_session("decoder.onnx")
        low = 4 * embedding.shape[-1]
        scale = np.divide(self.fit(*size), size)
        masks, scores, _ = self.decoder.run(
            None,
            {
                "image_embeddings": embedding,
                "point_coords": (np.array([points]) * scale).astype(np.float32),
                "point_labels": np.array([labels], np.float32),
                "mask_input": np.zeros((1, 1, low, low), np.float32),
                "has_mask_input": np.zeros(1, np.float32),
                "orig_im_size": np.array(size[::-1], np.float32),
            },
        )
        return masks[0, 0] > 0, float(scores[0, 0])

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """Compute the size of an image whose longest side is the model's."""
        longest = max(width, height)
        fitted = [max((2 * self.image_size * side + longest) // (2 * longest), 1) for side in (width, height)]
        return fitted[0], fitted[1]


def open_session(name: str) -> Any:
    """Open a graph that lies beside this file."""
    available = [provider for provider in PROVIDERS if provider in onnxruntime.get_available_providers()]
    return onnxruntime.InferenceSession(str(FOLDER / name), providers=available)
