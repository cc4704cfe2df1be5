"""The torch form of the predictor.

Legend as in ``predictor.py``.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vpexp.data.prompts import Prompts
from vpexp.inference.predictor import ImageEmbedding, Predictor
from vpexp.models.layers import widen
from vpexp.models.mask_decoder import ALL_MASKS
from vpexp.models.sam import Sam


class TorchPredictor(Predictor):
    """Runs a ``Sam`` module where it lies, in the mode it is in, without gradients.

    Args:
        sam: the module.
        multimask: as in ``Predictor``.
    """

    def __init__(self, sam: Sam, multimask: str = "auto") -> None:
        super().__init__(sam.image_size, multimask, sam.interface)
        self.sam = sam

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.sam.parameters()).device

    @torch.no_grad()
    def _encode(self, input_3SS: NDArray[np.float32]) -> Tensor:
        with self.sam.encoding():
            return widen(self.sam.encode_image(torch.from_numpy(input_3SS)[None].to(self.device)))

    @torch.no_grad()
    def _adopt(self, embedding_CHW: NDArray[Any]) -> Tensor:
        parameter = next(self.sam.mask_decoder.parameters())
        kept_1CHW = torch.from_numpy(np.array(embedding_CHW))[None].to(parameter.device).to(parameter.dtype)
        return self.sam.complete(kept_1CHW)

    def read_map(self, embedding: ImageEmbedding) -> NDArray[np.float32]:
        """As of ``Predictor``."""
        map_CEE: NDArray[np.float32] = embedding.features[0, : self.sam.map_channels].float().cpu().numpy()
        return map_CEE

    @torch.no_grad()
    def _run_decoder(self, embedding: ImageEmbedding, prompts: Prompts) -> tuple[NDArray[Any], NDArray[Any]]:
        earlier = None if prompts.mask_input_Nhw is None else torch.from_numpy(prompts.mask_input_Nhw[:, None])
        decoded = self.sam.decode(
            embedding.features,
            torch.zeros(len(prompts), dtype=torch.int64, device=self.device),
            torch.from_numpy(prompts.coords_NP2).to(self.device),
            torch.from_numpy(prompts.labels_NP).to(self.device),
            None if earlier is None else earlier.to(embedding.features.device, embedding.features.dtype),
            masks=ALL_MASKS,
        )
        return decoded.low_res_logits_NKHW.float().cpu().numpy(), decoded.iou_NK.float().cpu().numpy()
