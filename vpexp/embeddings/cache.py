"""The embedding cache as a run uses it: what is stored is read, what is not is encoded and stored.

Legend: B images of a step, K of them stored, M of them not, C channels, H W rows and columns of the embedding, S model
input size.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vpexp.console import log_line
from vpexp.data.annotations import AnnotatedImage, ImagePlace
from vpexp.data.batch import Batch, EvaluationSample
from vpexp.embeddings.store import StoredEmbeddings
from vpexp.inference.predictor import ImageEmbedding
from vpexp.models.layers import widen
from vpexp.models.sam import Sam

Encode = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class EncoderPasses:
    """Counts the images that go through a model's encoder."""

    def __init__(self, sam: Sam) -> None:
        self.images = 0
        sam.image_encoder.register_forward_pre_hook(self._add)
        if sam.cut is not None:
            sam.cut.trunk.register_forward_pre_hook(self._add)

    def count(self, encode: Encode) -> Encode:
        """Count what another runtime of the encoder does as well."""

        def encode_counted(images_B3SS: NDArray[np.float32]) -> NDArray[np.float32]:
            self.images += len(images_B3SS)
            return encode(images_B3SS)

        return encode_counted

    def _add(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        del module
        if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # a conversion, not an image
            self.images += len(inputs[0])


@torch.no_grad()
def encode_images(sam: Sam, images_M3SS: Tensor) -> Tensor:
    """Compute what is kept of images in ``sam.encoder_dtype``, whatever mixed precision the training uses: [M, C, H, W].

    On a CPU one by one, as the store is filled, and laid out as what is read from it: so the same image gives the same
    bits, and so does what is computed from them.
    """
    with sam.encoding():
        if images_M3SS.device.type == "cpu":
            encoded = [sam.encode_kept(image_3SS[None]) for image_3SS in images_M3SS]
            return widen(torch.cat(encoded)).contiguous()
        return widen(_encode_together(sam, images_M3SS)).contiguous()


def _encode_together(sam: Sam, images_M3SS: Tensor) -> Tensor:
    """Encode images in one pass, or in as many as the device's memory takes."""
    try:
        return sam.encode_kept(images_M3SS)
    except torch.OutOfMemoryError:
        if len(images_M3SS) == 1:
            raise
    halves = images_M3SS.tensor_split(2)
    return torch.cat([_encode_together(sam, half_M3SS) for half_M3SS in halves])


class EmbeddingCache:
    """Stored embeddings, and the encoder for those that are missing or turn out to be damaged.

    Args:
        sam: the model whose encoder made them.
        stored: what is kept.
        writable: whether what had to be encoded is put into the store.

    Attributes:
        encoded: images that had to be encoded while the run was under way.
    """

    def __init__(self, sam: Sam, stored: StoredEmbeddings, *, writable: bool = True) -> None:
        self.sam = sam
        self.stored = stored
        self.writable = writable
        self.encoded = 0

    def gather(self, batch: Batch) -> Tensor:
        """Get what is kept of a step's images, [B, C, H, W] as ``Sam.kept_shape`` has it, on the batch's device.

        All of them have the precision of the store, so that it makes no difference which were stored.
        """
        count = len(batch.image_ids)
        if not len(batch.images_B3SS):
            assert batch.embeddings_KCHW is not None
            return batch.embeddings_KCHW.float()
        encoded_MCHW = encode_images(self.sam, batch.images_B3SS)
        self.encoded += len(encoded_MCHW)
        missing = [place for place in range(count) if place not in batch.stored_places]
        rounded_MCHW = torch.stack(
            [
                self._put(batch.embedding_keys[place], embedding_CHW)
                for place, embedding_CHW in zip(missing, encoded_MCHW, strict=True)
            ]
        )
        if batch.embeddings_KCHW is None:
            return rounded_MCHW.float()
        gathered_BCHW = rounded_MCHW.new_empty((count, *rounded_MCHW.shape[1:]))
        gathered_BCHW[missing] = rounded_MCHW
        gathered_BCHW[batch.stored_places] = batch.embeddings_KCHW
        return gathered_BCHW.float()

    def remember(self, sample: EvaluationSample, embedding: ImageEmbedding) -> ImageEmbedding:
        """Take the embedding of an image that had none stored; see ``keep``."""
        return self.keep(sample.annotations, embedding)

    def keep(self, image: AnnotatedImage | ImagePlace, embedding: ImageEmbedding) -> ImageEmbedding:
        """Round what had to be encoded as stored embeddings are, and store it; of a cut encoder the embedding is not what is stored."""
        if self.sam.cut is not None:
            self.encoded += 1
            return embedding
        self.encoded += 1
        encoded_CHW = embedding.features[0]
        rounded_CHW = self._put(self.stored.find_key(image), encoded_CHW)
        return replace(embedding, features=rounded_CHW[None].to(embedding.features.dtype))

    def _put(self, key: str | None, embedding_CHW: Tensor) -> Tensor:
        """Store an embedding where it has a key; return it as it is read then, on its device."""
        store = self.stored.store
        array_CHW = embedding_CHW.float().cpu().numpy()
        rounded_CHW = torch.from_numpy(store.round(array_CHW)).to(embedding_CHW.device)
        if key is None or not self.writable:
            return rounded_CHW
        try:
            store.write(key, array_CHW)
        except OSError as error:
            self.writable = False
            log_line(describe_trouble(self.stored, error), style="yellow")
        return rounded_CHW


def describe_trouble(stored: StoredEmbeddings, error: OSError) -> str:
    """Report that the store cannot be written, and that the run goes on."""
    reason = error.strerror or str(error)
    return f"embeddings: {stored.store.root} cannot be written ({reason}); going on, what is not stored is encoded each time"
