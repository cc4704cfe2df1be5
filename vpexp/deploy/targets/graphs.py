"""The torch modules that are exported for other tools: what vpexp computes, behind the ports that each tool feeds and reads.

Most tools run what segment-anything's ``scripts/export_onnx_model.py`` writes: one image, one prompt, masks of the original size.
Two things differ. A prompt without a box needs the learnt "not a point" token: the official decoder leaves that to its client,
some clients append it to boxes too, and one never does; ``Sam.decode_points`` completes prompts, whatever came. And some tools take
every model to have 1024 pixels: a model of another size is framed, see ``ToolDecoder``.

Shapes: N prompts, P points of a prompt, M masks given (1 or N), K masks of a prompt, C channels, S model input size, T the size
that a tool takes the model to have (S or 1024), h w = T/4, H W rows and columns of an image, an embedding or a mask.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vpexp.data.geometry import MEAN, STD, normalize_and_pad, resize_image
from vpexp.data.prompts import find_ambiguous
from vpexp.deploy.graph import ExportableDecoder, ExportableEncoder, _compute_resized_size, add_mask
from vpexp.deploy.onnx_format import Axes, Shapes, list_decoder_axes
from vpexp.models.mask_decoder import ALL_MASKS, MASK_TOKENS
from vpexp.models.prompt_encoder import FOREGROUND_POINT, NOT_A_POINT
from vpexp.models.sam import LOW_RES_STRIDE, DecodedMasks, Sam, choose_tokens, upscale_logits

EMBEDDING_STRIDE = 16
SINGLE_MASK_POINTS = 2.5
"""A prompt of fewer points, which is one and its padding, is ambiguous to the official decoder."""


class SquareEncoder(ExportableEncoder):
    """``input_image`` [1, 3, S, S], normalised and padded, to ``image_embeddings`` [1, C, S/16, S/16]."""

    def __init__(self, sam: Sam) -> None:
        super().__init__(sam)
        self.inputs: Axes = {"input_image": {}}
        self.outputs: Shapes = {"image_embeddings": (1, sam.embedding_channels, *[sam.embedding_size] * 2)}

    def prepare(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Make an RGB image the input."""
        size = self.sam.image_size
        return normalize_and_pad(resize_image(image_HW3, size, self.sam.interface.resize), size)[None]


class MapsEncoder(SquareEncoder):
    """``image`` [1, 3, S, S] to the maps of SAM 2, finest first, as samexporter writes it: its clients go by the order."""

    def __init__(self, sam: Sam) -> None:
        super().__init__(sam)
        self.inputs = {"image": {}}
        self.outputs = {one.name: (1, *one.get_shape(sam.image_size)) for one in reversed(sam.interface.maps)}

    def forward(self, images_13SS: Tensor) -> tuple[Tensor, ...]:
        """Encode an image."""
        return self.sam.encode_maps(images_13SS)[::-1]


class HwcEncoder(nn.Module):
    """``input_image`` float32 [H, W, 3], RGB 0..255, to ``image_embeddings`` [1, C, T/16, T/16].

    Args:
        sam: the model.
        image_side: of the square that the image lies in: its longest side.
        side: T. The embedding of a smaller model lies in the first rows and columns.
    """

    mean: Tensor
    std: Tensor
    resize: Tensor

    def __init__(self, sam: Sam, *, image_side: int, side: int) -> None:
        super().__init__()
        self.sam = sam
        self.image_side = image_side
        cells = side // EMBEDDING_STRIDE
        self.missing = cells - sam.embedding_size
        self.inputs: Axes = {"input_image": {0: "height", 1: "width"}}
        self.outputs: Shapes = {"image_embeddings": (1, sam.embedding_channels, cells, cells)}
        self.register_buffer("mean", torch.tensor(MEAN))
        self.register_buffer("std", torch.tensor(STD))
        # The smoothing filter of one axis as a matrix [S, side]: an exported graph has no such interpolation.
        identity = torch.eye(image_side)[None, None]
        shrunk = F.interpolate(identity, (sam.image_size, image_side), mode="bilinear", antialias=True)
        self.register_buffer("resize", shrunk[0, 0])

    def prepare(self, image_HW3: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Make an RGB image the input."""
        return resize_image(image_HW3, self.image_side).astype(np.float32)

    def forward(self, image_HW3: Tensor) -> Tensor:
        """Normalise, pad and encode an image."""
        normalized_3HW = ((image_HW3 - self.mean) / self.std).permute(2, 0, 1)
        height, width = normalized_3HW.shape[1:]
        square = F.pad(normalized_3HW, (0, self.image_side - width, 0, self.image_side - height))
        if self.image_side != self.sam.image_size:
            square = self.resize @ square @ self.resize.T
        return F.pad(self.sam.encode_image(square[None]), (0, self.missing, 0, self.missing))

    def build_example(self) -> tuple[Tensor, ...]:
        """Build inputs to trace with: an image that is not square."""
        return (torch.zeros(self.image_side - self.image_side // 4, self.image_side, 3),)


class ToolDecoder(nn.Module):
    """The official ports, with one mask by vpexp's rule.

    Args:
        sam: the model.
        multimask: which prompts are answered by the best of three masks; see ``find_ambiguous``.
        side: T. Where it is not S, points are scaled from T to S pixels, embeddings lie in the first rows and columns, and
            low-resolution masks are resized.
        masks: K.
    """

    def __init__(self, sam: Sam, multimask: str, *, side: int, masks: int = 1) -> None:
        super().__init__()
        self.sam = sam
        self.multimask = multimask
        self.side = side
        low = side // LOW_RES_STRIDE
        self.inputs: Axes = {
            "image_embeddings": {},
            "point_coords": {1: "num_points"},
            "point_labels": {1: "num_points"},
            "mask_input": {},
            "has_mask_input": {},
            "orig_im_size": {},
        }
        self.outputs: Shapes = {
            "masks": (1, masks, "height", "width"),
            "iou_predictions": (1, masks),
            "low_res_masks": (1, masks, low, low),
        }

    def forward(  # noqa: PLR0917 (the graph has six inputs, in this order)
        self,
        image_embeddings_1CHW: Tensor,
        point_coords_1P2: Tensor,
        point_labels_1P: Tensor,
        mask_input_11hw: Tensor,
        has_mask_input_1: Tensor,
        orig_im_size_2: Tensor,
    ) -> tuple[Tensor, ...]:
        """Decode a prompt.

        ``point_coords`` float32 are pixels of the image whose longest side is T, ``point_labels`` float32 are 1 inside, 0
        outside, 2 and 3 box corners, -1 no point; ``mask_input`` are logits of an earlier mask, counted where
        ``has_mask_input`` is 1; ``orig_im_size`` float32 is height and width of the original image. Returns logits [1, K, H,
        W], the predicted IoU [1, K], and logits [1, K, h, w] in the padded square.
        """
        image_1CHW, mask_input, coords_1P2 = image_embeddings_1CHW, mask_input_11hw, point_coords_1P2
        if self.side != self.sam.image_size:
            cells, low = self.sam.embedding_size, self.sam.image_size // LOW_RES_STRIDE
            image_1CHW = image_1CHW[:, :, :cells, :cells]
            coords_1P2 = coords_1P2 * (self.sam.image_size / self.side)
            mask_input = resize_logits(mask_input, low)
        image_1CHW = add_mask(self.sam, image_1CHW, mask_input, has_mask_input_1[:, None, None, None])
        decoded = self.decode(image_1CHW, coords_1P2, point_labels_1P, has_mask_input_1)
        masks = upscale_masks(self.sam, decoded.low_res_logits_NKHW, orig_im_size_2.to(torch.int64)[None])
        low_res = decoded.low_res_logits_NKHW
        if self.side != self.sam.image_size:
            low_res = resize_logits(low_res, self.side // LOW_RES_STRIDE)
        return masks, decoded.iou_NK, low_res

    def decode(self, image_1CHW: Tensor, coords_1P2: Tensor, labels_1P: Tensor, has_mask_1: Tensor) -> DecodedMasks:
        """Decode a prompt on an embedding to which the mask was added, and choose masks."""
        decoded = self.sam.decode_points(image_1CHW, coords_1P2, labels_1P, masks=ALL_MASKS)
        is_ambiguous_1 = find_ambiguous(labels_1P, has_mask_1, self.multimask)
        return take_mask(decoded, choose_tokens(decoded.iou_NK, is_ambiguous_1))

    def build_example(self) -> tuple[Tensor, ...]:
        """Build inputs to trace with: a point and its padding on an image that is not square."""
        cells, low = self.side // EMBEDDING_STRIDE, self.side // LOW_RES_STRIDE
        return (
            torch.zeros(1, self.sam.embedding_channels, cells, cells),
            torch.tensor([[[self.side / 2, self.side / 2], [0.0, 0.0]]]),
            torch.tensor([[FOREGROUND_POINT, NOT_A_POINT]], dtype=torch.float32),
            torch.zeros(1, 1, low, low),
            torch.zeros(1),
            torch.tensor([self.side - self.side // 4, self.side], dtype=torch.float32),
        )


class OfficialDecoder(ToolDecoder):
    """The decoder of segment-anything's own export: prompts as they come, masks chosen by their number of points.

    Args:
        sam: the model.
        single_mask: one mask; False: all four.
    """

    def __init__(self, sam: Sam, *, single_mask: bool) -> None:
        super().__init__(sam, "", side=sam.image_size, masks=1 if single_mask else MASK_TOKENS)
        self.single_mask = single_mask

    def decode(self, image_1CHW: Tensor, coords_1P2: Tensor, labels_1P: Tensor, _: Tensor) -> DecodedMasks:
        """Decode a prompt to which no token is added."""
        prompts = self.sam.prompt_encoder.embed_points(coords_1P2, labels_1P)
        positions = self.sam.prompt_encoder.compute_image_positions()
        decoded = DecodedMasks(*self.sam.mask_decoder(image_1CHW, positions, prompts, None, masks=ALL_MASKS))
        if not self.single_mask:
            return decoded
        is_ambiguous_1 = torch.ones_like(labels_1P).sum(dim=1) < SINGLE_MASK_POINTS
        return take_mask(decoded, choose_tokens(decoded.iou_NK, is_ambiguous_1))


class CvatDecoder(ToolDecoder):
    """What CVAT's page reads: the mask as uint8 and cut to its bounds, which are further outputs."""

    def __init__(self, sam: Sam, multimask: str, *, side: int) -> None:
        super().__init__(sam, multimask, side=side)
        self.outputs = {**self.outputs, "xtl": (1,), "ytl": (1,), "xbr": (1,), "ybr": (1,)}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Decode a prompt; after the three outputs come the first and the last column and row of the mask, int32 [1] each.

        ``masks`` uint8 [1, 1, rows, columns] is 1 inside, 0 outside; an empty mask has one pixel.
        """
        logits_11HW, iou_11, low_res = super().forward(*inputs)
        inside_HW = (logits_11HW[0, 0] > 0).to(torch.int32)
        height, width = inputs[-1].to(torch.int64)  # of the tensor itself the exporter takes the example's
        xtl, xbr = find_bounds(inside_HW.amax(dim=0), width)
        ytl, ybr = find_bounds(inside_HW.amax(dim=1), height)
        cut = inside_HW[ytl : ybr + 1, xtl : xbr + 1].to(torch.uint8)[None, None]
        return cut, iou_11, low_res, *(bound.to(torch.int32)[None] for bound in (xtl, ytl, xbr, ybr))


class MapsDecoder(ExportableDecoder):
    """The ports of SAM 2 as samexporter writes it: no size of an image, and masks that the client resizes to it."""

    def __init__(self, sam: Sam, multimask: str) -> None:
        super().__init__(sam, multimask)
        self.side = sam.image_size
        coarse, *finer = sam.interface.names
        prompts: Axes = {
            "point_coords": {0: "num_labels", 1: "num_points"},
            "point_labels": {0: "num_labels", 1: "num_points"},
            "mask_input": {0: "num_labels"},
            "has_mask_input": {},
        }
        self.inputs: Axes = {**{name: {} for name in (coarse, *finer[::-1])}, **prompts}
        low = self.side // LOW_RES_STRIDE
        self.outputs: Shapes = {"masks": ("num_labels", 1, low, low), "iou_predictions": ("num_labels", 1)}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Decode prompts: the coarse map, the finer ones from the finest on, points in pixels of the S x S image, earlier masks.

        Returns logits [N, 1, S/4, S/4], not limited, and the predicted IoU [N, 1].
        """
        coarse, *finer, coords_NP2, labels_NP, mask_input_N1hw, has_mask_1 = inputs
        low_res_N1hw, iou_N1, _, _ = self.decode(
            coarse, *finer[::-1], coords_NP2, labels_NP, mask_input_N1hw, has_mask_1[:, None]
        )
        return low_res_N1hw, iou_N1

    def build_example(self) -> tuple[Tensor, ...]:
        """Build inputs to trace with: three boxes."""
        coarse, *others = super().build_example()
        finer = others[: len(self.sam.interface.maps) - 1]
        coords, labels, mask_input, *_ = others[len(finer) :]
        return coarse, *finer[::-1], coords, labels, mask_input.expand(len(coords), -1, -1, -1), torch.zeros(1)


class ModelApiDecoder(ExportableDecoder):
    """The ports of ``ExportableDecoder`` with four masks a prompt, for Model API, which takes the best of masks 1 to 3.

    These are the decoder's own three where a prompt is ambiguous by vpexp's rule, else three times token 0.
    """

    def __init__(self, sam: Sam, multimask: str) -> None:
        super().__init__(sam, multimask)
        self.side = sam.image_size
        low = self.side // LOW_RES_STRIDE
        self.inputs: Axes = {**list_decoder_axes(sam.interface), "mask_input": {0: "M", 2: "h", 3: "w"}}
        self.outputs: Shapes = {
            "upscaled_masks": ("N", MASK_TOKENS, "H", "W"),
            "iou_predictions": ("N", MASK_TOKENS),
            "low_res_masks": ("N", MASK_TOKENS, low, low),
        }

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Decode prompts as ``ExportableDecoder`` does; ``mask_input`` may have any size."""
        image_embeddings_1CHW, point_coords_NP2, point_labels_NP, mask_input_M1HW, has_mask_input_M1, orig_size_12 = (
            inputs
        )
        mask_input = resize_logits(mask_input_M1HW, self.sam.image_size // LOW_RES_STRIDE)
        image_MCHW = add_mask(self.sam, image_embeddings_1CHW, mask_input, has_mask_input_M1[:, :, None, None])
        decoded = self.sam.decode_points(image_MCHW, point_coords_NP2, point_labels_NP, masks=ALL_MASKS)
        is_ambiguous_N = find_ambiguous(point_labels_NP, has_mask_input_M1[:, 0], self.multimask)
        index_NK = torch.arange(MASK_TOKENS) * is_ambiguous_N[:, None].to(torch.int64)
        low_res_NKhw = take_along(decoded.low_res_logits_NKHW, index_NK)
        masks = upscale_masks(self.sam, low_res_NKhw, orig_size_12)
        return masks, take_along(decoded.iou_NK, index_NK), low_res_NKhw


def resize_logits(logits_NKhw: Tensor, side: int) -> Tensor:
    """Resize low-resolution logits of any size to [N, K, side, side]."""
    return F.interpolate(logits_NKhw, (side, side), mode="bilinear", align_corners=False)


def upscale_masks(sam: Sam, low_res_NKhw: Tensor, orig_size_12: Tensor) -> Tensor:
    """Bring logits to the original image, height and width int64: [N, K, H, W]."""
    upscaled = upscale_logits(
        low_res_NKhw.flatten(0, 1)[:, None],
        image_size=sam.image_size,
        resized_hw=_compute_resized_size(orig_size_12, sam.image_size),
        original_hw=(orig_size_12[0, 0], orig_size_12[0, 1]),  # type: ignore[arg-type]  # traced: sizes are tensors
    )
    return torch.unflatten(upscaled, 0, (-1, low_res_NKhw.shape[1]))


def take_mask(decoded: DecodedMasks, index_N: Tensor) -> DecodedMasks:
    """Take one mask of each prompt."""
    index_N1 = index_N[:, None]
    return DecodedMasks(take_along(decoded.low_res_logits_NKHW, index_N1), take_along(decoded.iou_NK, index_N1))


def take_along(values_NK: Tensor, index_NK: Tensor) -> Tensor:
    """Take entries of the second axis for each of the first."""
    # Of the values the exporter takes the example's N.
    return values_NK[torch.arange(index_NK.shape[0])[:, None], index_NK]


def find_bounds(inside_L: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Find the first and the last place that is 1, int64; of none 0 and 0."""
    places_L = torch.arange(length)  # type: ignore[call-overload]  # a number of the graph
    return inside_L.argmax(dim=0), (places_L * inside_L).amax(dim=0)
