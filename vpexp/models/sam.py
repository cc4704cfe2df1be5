"""SAM: an image encoder, a prompt encoder and a mask decoder.

Shapes: B images, N prompts of the whole batch, P points of a prompt, C channels of the embedding, S model input size,
h w rows and columns of the low-resolution masks (S/4), H W rows and columns (of the embedding: S/16; of a mask: the
original image's), M masks given (1 or N).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpexp.data.interface import FIT, SAM, STRETCH, EmbeddingMap, Interface, to_depth
from vpexp.models.cross_attention import is_exporting
from vpexp.models.layers import EncoderCut
from vpexp.models.mask_decoder import ONE_MASK, Detail, MaskDecoder
from vpexp.models.prompt_encoder import NOT_A_POINT, TOP_LEFT_CORNER, PromptEncoder

LOW_RES_STRIDE = 4
"""Pixels of the model's input to a side of one of the decoder's low-resolution logits."""


@dataclass(frozen=True, slots=True)
class DecodedMasks:
    """The masks of N prompts, K each."""

    low_res_logits_NKHW: Tensor
    """Logits [N, K, S/4, S/4] in the frame of the padded model input; above 0 is inside."""
    iou_NK: Tensor
    """Predicted IoU of each mask, about 0 to 1."""

    def pick(self, place_N: Tensor) -> "DecodedMasks":
        """Take one of the K masks of each prompt: int64 [N], 0 to K - 1; K is 1 then."""
        prompts_N = torch.arange(len(place_N), device=place_N.device)
        return DecodedMasks(
            self.low_res_logits_NKHW[prompts_N, place_N][:, None], self.iou_NK[prompts_N, place_N][:, None]
        )


def choose_tokens(iou_N4: Tensor, ambiguous_N: Tensor) -> Tensor:
    """Choose the mask token that answers each prompt: of an ambiguous one that of 1 to 3 with the best predicted IoU, else 0.

    Args:
        iou_N4: predicted IoU of all mask tokens.
        ambiguous_N: bool, see ``find_ambiguous``.

    Returns:
        int64 [N].
    """
    return torch.where(ambiguous_N, 1 + iou_N4[:, 1:].argmax(dim=1), 0)


class Sam(nn.Module):
    """Segment Anything; the names of its parameters are those of the official checkpoints.

    Attributes:
        completes_boxes: whether a prompt with a box gets the learnt "not a point" token too, which SAM gives to others only.
        left_out: entries of the official file that images need not, kept to be written back.
        cut: where the encoder is left, to keep of images what comes before, see ``vpexp.models.tuning``; None: at its end.
        encoder_dtype: what a frozen encoder computes in, see ``encoding``: float32, or bfloat16 as autocast does it.
    """

    completes_boxes = False

    def __init__(self, image_encoder: nn.Module, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.left_out: dict[str, Tensor] = {}
        self.cut: EncoderCut | None = None
        self.encoder_dtype = torch.float32

    def adopt_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take the entries of an official file, under the names used here; what is not needed is kept in ``left_out``."""
        return dict(state)

    def to_official(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Build what an official file holds from entries under the names used here, and from ``left_out``."""
        return dict(state)

    @property
    def interface(self) -> Interface:
        """What everything around the model has to know."""
        return Interface((EmbeddingMap(SAM.names[0], self.map_channels),))

    @property
    def image_size(self) -> int:
        """Side S of the square model input, in pixels."""
        return self.prompt_encoder.image_size

    @property
    def embedding_size(self) -> int:
        """Side of the image embedding, S/16."""
        return self.prompt_encoder.embedding_size

    @property
    def map_channels(self) -> int:
        """Channels of the map that prompts attend to, the first of the image embedding."""
        return self.prompt_encoder.no_mask_embed.embedding_dim

    @property
    def embedding_channels(self) -> int:
        """Channels C of the image embedding, that of all maps together."""
        return self.interface.channels

    def encode_maps(self, images_B3SS: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of ``interface`` of float images: resized, normalised, then padded with zeros where they are."""
        maps = self.image_encoder(images_B3SS)
        return maps if isinstance(maps, tuple) else (maps,)

    def encode_image(self, images_B3SS: Tensor) -> Tensor:
        """Compute image embeddings [B, C, S/16, S/16], which hold all maps, see ``vpexp.data.interface``."""
        return self.pack(self.encode_maps(images_B3SS))

    @property
    def kept_shape(self) -> tuple[int, int, int]:
        """Shape of what is kept of an image: that of its embedding, or (X, 1, 1) where the encoder is cut."""
        if self.cut is None:
            return self.embedding_channels, self.embedding_size, self.embedding_size
        return self.cut.size, 1, 1

    def encode_kept(self, images_B3SS: Tensor) -> Tensor:
        """Compute what is kept of images: [B, *kept_shape]."""
        return self.encode_image(images_B3SS) if self.cut is None else self.cut.encode(images_B3SS)

    def complete(self, kept: Tensor) -> Tensor:
        """Compute image embeddings [B, C, S/16, S/16] from what was kept of images."""
        return kept if self.cut is None else self.pack(self.cut.complete(kept))

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Hold what a frozen encoder computes in: ``encoder_dtype``, whatever mixed precision is around it.

        Float32 is float32 then, on GPUs too, which would take 10 of its 23 bits for convolutions (TF32).
        """
        mixed = self.encoder_dtype != torch.float32
        device, cudnn = next(self.parameters()).device.type, torch.backends.cudnn
        before, cudnn.allow_tf32 = cudnn.allow_tf32, mixed
        try:
            with torch.autocast(device, self.encoder_dtype if mixed else None, enabled=mixed):
                yield
        finally:
            cudnn.allow_tf32 = before

    def pack(self, maps: Sequence[Tensor]) -> Tensor:
        """Put the maps of images together to embeddings [B, C, S/16, S/16]."""
        if len(maps) == 1:
            return maps[0]
        return torch.cat([to_depth(one, array) for one, array in zip(self.interface.maps, maps, strict=True)], dim=1)

    def decode(  # noqa: PLR0917 (two of them are optional)
        self,
        embeddings_BCHW: Tensor,
        image_index_N: Tensor,
        point_coords_NP2: Tensor,
        point_labels_NP: Tensor,
        mask_input_M1HW: Tensor | None = None,
        has_mask_N: Tensor | None = None,
        *,
        masks: slice = ONE_MASK,
    ) -> DecodedMasks:
        """Decode the prompts of all images of a batch in one go.

        ``image_index_N`` int64 names each prompt's image. The labels, and ``has_mask_N``, may lie on the CPU: there they are looked
        at without waiting for a GPU. ``point_coords_NP2`` are pixels of the resized image;
        ``point_labels_NP`` are 1 inside, 0 outside, 2 and 3 the box's top left and bottom right corner, -1 no point
        (fills prompts of fewer points up, and changes nothing). As in the official code, a prompt without a box
        also gets the learnt "not a point" token, and one with a box where ``completes_boxes``. ``mask_input_M1HW`` are logits
        [M, 1, S/4, S/4] of an earlier mask, M = 1 or N; with ``has_mask_N`` (bool, M is N then) those of other prompts
        do not count. N may be 0. ``masks`` says which of the four mask tokens become masks.
        """
        dense_MCHW = self.prompt_encoder.embed_masks(mask_input_M1HW)
        if has_mask_N is not None:
            has_mask_N = has_mask_N.to(dense_MCHW.device, non_blocking=True)
            dense_MCHW = torch.where(has_mask_N[:, None, None, None], dense_MCHW, self.prompt_encoder.embed_masks(None))
        index = image_index_N if embeddings_BCHW.shape[0] > 1 else None
        features_BCHW, detail = self.split(embeddings_BCHW, index)
        if dense_MCHW.shape[0] == 1 and has_mask_N is None:
            image_MCHW = features_BCHW + dense_MCHW
            return self.decode_points(image_MCHW, point_coords_NP2, point_labels_NP, index, detail=detail, masks=masks)
        image_MCHW = features_BCHW[image_index_N] + dense_MCHW
        return self.decode_points(image_MCHW, point_coords_NP2, point_labels_NP, detail=detail, masks=masks)

    def split(self, embeddings_BCHW: Tensor, image_index_N: Tensor | None = None) -> tuple[Tensor, Detail | None]:
        """Take embeddings apart: the map that prompts attend to, and what is finer; ``image_index_N`` as in ``decode_points``."""
        if embeddings_BCHW.shape[1] == self.map_channels:
            return embeddings_BCHW, None
        features_BCHW, finer_BXHW = embeddings_BCHW[:, : self.map_channels], embeddings_BCHW[:, self.map_channels :]
        return features_BCHW, Detail(finer_BXHW, image_index_N)

    def decode_points(
        self,
        image_MCHW: Tensor,
        point_coords_NP2: Tensor,
        point_labels_NP: Tensor,
        image_index_N: Tensor | None = None,
        *,
        detail: Detail | None = None,
        masks: slice = ONE_MASK,
    ) -> DecodedMasks:
        """Decode points and boxes on embeddings to which the embedded mask was added.

        Without ``image_index_N`` there is one image that all prompts share, or one for each prompt. ``detail`` is what is finer than
        these embeddings. The other arguments and the result are those of ``decode``.
        """
        pad, use_mask = self._plan_padding(point_labels_NP)
        if point_labels_NP.device != image_MCHW.device:  # in an exported graph they never lie elsewhere
            point_labels_NP = point_labels_NP.to(image_MCHW.device, non_blocking=True)
        if pad:
            # The token joins every prompt, and is masked out where it must not count.
            has_box_N = _find_boxes(point_labels_NP)
            takes_token_N = torch.ones_like(has_box_N) if self.completes_boxes else ~has_box_N
            attended_NP = torch.cat([point_labels_NP != NOT_A_POINT, takes_token_N[:, None]], dim=1)
            point_coords_NP2 = F.pad(point_coords_NP2, (0, 0, 0, 1))
            point_labels_NP = F.pad(point_labels_NP, (0, 1), value=NOT_A_POINT)
        else:
            attended_NP = point_labels_NP != NOT_A_POINT
        prompts_NPC = self.prompt_encoder.embed_points(point_coords_NP2, point_labels_NP)
        logits_NKHW, iou_NK = self.mask_decoder(
            image_MCHW,
            self.prompt_encoder.compute_image_positions(),
            prompts_NPC,
            attended_NP if use_mask else None,
            image_index_N,
            detail=detail,
            masks=masks,
        )
        return DecodedMasks(logits_NKHW, iou_NK)

    def _plan_padding(self, point_labels_NP: Tensor) -> tuple[bool, bool]:
        """Return whether the padding token is needed at all, and whether any token must be masked.

        Attention without a mask is faster, so batches of boxes only, or of points only, take the short way. A graph that
        is being exported must serve both, and may not look at the labels.
        """
        if is_exporting():
            return True, True
        labels_NP = point_labels_NP.cpu().numpy()  # which waits for a GPU where they lie there, once
        has_filling = bool((labels_NP == NOT_A_POINT).any())
        if self.completes_boxes:
            return True, has_filling
        has_box_N = _find_boxes(labels_NP)
        all_boxes, some_boxes = bool(has_box_N.all()), bool(has_box_N.any())
        return not all_boxes, has_filling or (some_boxes and not all_boxes)


def _find_boxes(point_labels_NP: Any) -> Any:
    """Find the prompts that have a box: bool [N]; a tensor, or an array of numpy's."""
    return (point_labels_NP >= TOP_LEFT_CORNER).any(1)


def upscale_logits(
    low_res_N1hw: Tensor,
    *,
    image_size: int,
    resized_hw: tuple[int, int],
    original_hw: tuple[int, int],
    resize: str = FIT,
) -> Tensor:
    """Bring logits of the model's input to the original image, as the official post-processing does.

    Bilinear to the model's input size, padding cut off, bilinear to the original size; where the image was stretched, at once.
    Returns logits [N, H, W].
    """
    if is_exporting():
        cut_hw: tuple[int | None, ...] = (None, None) if resize == STRETCH else resized_hw
        rows_Hh, columns_Ww = (
            _interpolate_identity(low_res_N1hw, image_size, cut, original)
            for cut, original in zip(cut_hw, original_hw, strict=True)
        )
        return rows_Hh @ low_res_N1hw[:, 0] @ columns_Ww.transpose(0, 1)
    logits = low_res_N1hw if resize == STRETCH else enlarge_to_input(low_res_N1hw, resized_hw)
    logits = F.interpolate(logits, original_hw, mode="bilinear", align_corners=False)
    return logits[:, 0]


def _interpolate_identity(low_res_N1hw: Tensor, image_size: int, resized: int | None, original: int) -> Tensor:
    """Write both interpolations of one axis, and the cut between them, as one matrix [original, S/4]; None: there is but one.

    Interpolation is linear and treats the axes one after the other, so it is a product with a matrix for each axis: that of
    the identity. In an exported graph two products take a fifth of the time of two interpolations of large masks.
    """
    side = image_size // LOW_RES_STRIDE
    identity_11hh = torch.eye(side, dtype=low_res_N1hw.dtype)[None, None]
    cut = identity_11hh
    if resized is not None:
        enlarged = F.interpolate(identity_11hh, (image_size, side), mode="bilinear", align_corners=False)
        cut = enlarged[:, :, :resized]
    return F.interpolate(cut, (original, side), mode="bilinear", align_corners=False)[0, 0]


def enlarge_to_input(low_res_N1hw: Tensor, resized_hw: tuple[int, int]) -> Tensor:
    """Bring logits bilinearly to the size of the model's input, padding cut off: [N, 1, resized height, resized width].

    Only the cells that the image lies in, and their neighbours, are looked at.
    """
    rows, columns = (-(-side // LOW_RES_STRIDE) + 1 for side in resized_hw)
    logits = low_res_N1hw[..., :rows, :columns]
    size = (LOW_RES_STRIDE * logits.shape[-2], LOW_RES_STRIDE * logits.shape[-1])
    logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    return logits[..., : resized_hw[0], : resized_hw[1]]
