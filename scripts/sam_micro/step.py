"""What a step of the training learns: first prompts of every kind, then the same objects corrected by clicks.

Each object is asked for by an exact box, a loose box or one point, and learnt from; some are then corrected by one or more
clicks on the errors of the model's own mask, which is given back to it, and learnt from again after the last (Kirillov et al. 2023
"Segment Anything", appendix A; Sofiiuk et al. 2021, RITM). So each first prompt keeps its share, however much is corrected.

Legend: B images, N prompts of the step, n those that are corrected, P points, S model size, h w = S/4 the decoder's cells.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from scripts.sam_micro.scenes import OWNER_STRIDE, View
from vpexp.data.clicks import Click, draw_next_click, find_deepest_pixel, find_next_click
from vpexp.data.geometry import normalize_and_pad
from vpexp.data.prompts import (
    NO_POINT,
    POINT_IN,
    POINT_OUT,
    find_ambiguous,
    jitter_boxes,
    prompts_from_boxes,
)
from vpexp.models.mask_decoder import ALL_MASKS
from vpexp.models.registry import STRIDE
from vpexp.models.sam import LOW_RES_STRIDE, DecodedMasks, Sam, choose_tokens

KINDS = {"exact": 0.36, "loose": 0.14, "point": 0.5}
ASKED = 2
"""How often each object is asked for, by another prompt each time: a decoder costs less than the encoder."""
LOOSENESS = 0.4
CORRECTED_SHARE = 0.6
ROUNDS = {1: 0.4, 2: 0.25, 3: 0.2, 4: 0.15}
"""How many clicks an object is corrected by that is corrected at all."""
FED_SHARE = 0.9
"""Of the corrected objects, whose mask is given back with the clicks."""
LOSS_STRIDE = 2
"""Pixels of the model's input to a side of those that masks are compared on."""
CLASS_WEIGHT = 0.3
QUERIES, QUERY_CHANNELS = 24, 32


@dataclass(frozen=True, slots=True)
class Batch:
    """Images, and one prompt an object.

    Attributes:
        images_B3SS: normalised, padded.
        index_N: int64, the image of each prompt.
        coords_NP2: pixels of the model's input.
        labels_NP: SAM's labels of points.
        covers_N1SS: float, how much of each pixel belongs to the object, 0 to 1; 0 in the padding.
        inside_B1SS: float, 1 where there is an image and no padding.
        owners_B1qq: float, see ``View``; q is S / ``OWNER_STRIDE``.
        classes_Bqq: int64, the class of each of these squares; -1: none that is learnt.
        queries_M4: int64, a square of each of M objects: place of the view, row, column, number of the object.
    """

    images_B3SS: Tensor
    index_N: Tensor
    coords_NP2: Tensor
    labels_NP: Tensor
    covers_N1SS: Tensor
    inside_B1SS: Tensor
    owners_B1qq: Tensor
    classes_Bqq: Tensor
    queries_M4: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device."""
        return Batch(*(getattr(self, name).to(device) for name in self.__slots__))

    def add_points(self, points_N2: Tensor, labels_N: Tensor) -> "Batch":
        """Give each prompt one point more; label -1: none."""
        coords_NP2 = torch.cat([self.coords_NP2, points_N2[:, None]], dim=1)
        return replace(self, coords_NP2=coords_NP2, labels_NP=torch.cat([self.labels_NP, labels_N[:, None]], dim=1))

    def select(self, places_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take image, points and labels of some prompts."""
        return self.index_N[places_n], self.coords_NP2[places_n], self.labels_NP[places_n]


def build_batch(views: list[View], size: int, rng: np.random.Generator) -> Batch:
    """Put views on one axis of prompts and draw the first prompt of each object."""
    covers, coords, labels = [], [], []
    inside_B1SS = torch.zeros(len(views), 1, size, size)
    owners_Bqq = np.zeros((len(views), size // OWNER_STRIDE, size // OWNER_STRIDE), np.int64)
    classes_Bqq = np.full_like(owners_Bqq, -1)
    for place, view in enumerate(views):
        height, width = view.image_hw3.shape[:2]
        inside_B1SS[place, :, :height, :width] = 1
        part = (place, slice(view.owners_qq.shape[0]), slice(view.owners_qq.shape[1]))
        owners_Bqq[part], classes_Bqq[part] = view.owners_qq, view.classes[view.owners_qq]
        for cover_hw in np.repeat(view.covers_Khw, ASKED, axis=0):
            prompt = draw_first_prompt(cover_hw >= 128, str(rng.choice(list(KINDS), p=list(KINDS.values()))), rng)
            coords.append(prompt[0])
            labels.append(prompt[1])
        padded_KSS = np.zeros((len(view.covers_Khw), size, size), np.uint8)
        padded_KSS[:, :height, :width] = view.covers_Khw
        covers.append(np.repeat(padded_KSS, ASKED, axis=0))
    counts = torch.tensor([ASKED * len(view.covers_Khw) for view in views])
    return Batch(
        torch.from_numpy(np.stack([normalize_and_pad(view.image_hw3, size) for view in views])),
        torch.repeat_interleave(torch.arange(len(views)), counts),
        torch.from_numpy(np.stack(coords)),
        torch.from_numpy(np.stack(labels)),
        torch.from_numpy(np.concatenate(covers))[:, None].float() / 255,
        inside_B1SS,
        torch.from_numpy(owners_Bqq)[:, None].float(),
        torch.from_numpy(classes_Bqq),
        torch.from_numpy(draw_queries(owners_Bqq, rng)),
    )


def draw_queries(owners_Bqq: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw a square of each of some objects of each view, wherever it is shown."""
    rows = []
    for place, owners_qq in enumerate(owners_Bqq):
        numbers = np.unique(owners_qq[owners_qq > 0])
        for number in rng.permutation(numbers)[:QUERIES]:
            row, column = rng.choice(np.argwhere(owners_qq == number))
            rows.append((place, row, column, number))
    return np.array(rows, np.int64).reshape(-1, 4)


def draw_first_prompt(
    mask_hw: NDArray[np.bool_], kind: str, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw a prompt: points [2, 2] and labels [2] of an ``exact`` or ``loose`` box, or of one ``point``, deep or anywhere inside."""
    rows, columns = np.nonzero(mask_hw)
    if kind == "point":
        if rng.random() < 0.5:
            row, column = find_deepest_pixel(mask_hw[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
            row, column = row + rows.min(), column + columns.min()
        else:
            chosen = int(rng.integers(len(rows)))
            row, column = rows[chosen], columns[chosen]
        return np.array([[column, row], [0, 0]], np.float32), np.array([POINT_IN, NO_POINT], np.float32)
    box_14 = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
    jitter = LOOSENESS if kind == "loose" else 0.0
    prompt = prompts_from_boxes(jitter_boxes(box_14, jitter, (mask_hw.shape[0], mask_hw.shape[1]), rng))
    return prompt.coords_NP2[0], prompt.labels_NP[0]


def compute_loss(
    sam: Sam, hints: "Hints", batch: Batch, rng: np.random.Generator, *, decodes: bool
) -> tuple[Tensor, dict[str, float]]:
    """Compute the loss of a step, and the mean IoU of its first and last answers; without decoding that of the hints alone."""
    embeddings_BCHW = sam.encode_image(batch.images_B3SS)
    if not decodes:
        loss = hints.compute_loss(embeddings_BCHW, batch)
        return loss, {"hints": float(loss.detach())}
    targets = _Targets(batch)
    first = sam.decode(embeddings_BCHW, batch.index_N, batch.coords_NP2, batch.labels_NP, masks=ALL_MASKS)
    ambiguous_N: Tensor = find_ambiguous(batch.labels_NP, 0, "auto")
    losses_N, ious_N = targets.compare(first, ambiguous_N, torch.arange(len(ambiguous_N)))
    total = losses_N.mean() + hints.compute_loss(embeddings_BCHW, batch)
    seen = {"iou": float(ious_N.mean())}
    answer = first.pick(choose_tokens(first.iou_NK, ambiguous_N))
    decode = partial(sam.decode, embeddings_BCHW)
    corrected = _correct(decode, batch, answer.low_res_logits_NKHW.detach().float(), targets, rng)
    if corrected is not None:
        prompts, places_n = corrected
        last = decode(*prompts, masks=ALL_MASKS)
        nothing_n = torch.zeros(len(places_n), dtype=torch.bool, device=ambiguous_N.device)
        losses_n, ious_n = targets.compare(last, nothing_n, places_n)
        total = total + losses_n.sum() / len(losses_N)
        seen["clicked"] = float(ious_n.mean())
    return total, seen


class _Targets:
    """The objects on the grid of the loss, and what masks of them cost."""

    def __init__(self, batch: Batch) -> None:
        self.covers_NRR = functional.avg_pool2d(batch.covers_N1SS, LOSS_STRIDE)[:, 0]
        self.inside_BRR = functional.avg_pool2d(batch.inside_B1SS, LOSS_STRIDE)[:, 0]
        self.index_N = batch.index_N
        self.near_NRR = _find_near(self.covers_NRR)
        self.cells_Nhw = functional.avg_pool2d(batch.covers_N1SS, LOW_RES_STRIDE)[:, 0] >= 0.5
        self.seen_Nhw = functional.max_pool2d(batch.inside_B1SS, LOW_RES_STRIDE)[batch.index_N, 0] > 0

    def compare(self, decoded: DecodedMasks, ambiguous_n: Tensor, places_n: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss of each prompt and the IoU of its answer.

        An ambiguous prompt is learnt from by the best of tokens 1 to 3, by token 0 with half the weight, and by the predicted
        IoU of all; any other by token 0 alone.
        """
        covers_nRR, inside_nRR = self.covers_NRR[places_n], self.inside_BRR[self.index_N[places_n]]
        near_nRR = self.near_NRR[places_n] * inside_nRR
        side = covers_nRR.shape[-1]
        logits_n4RR = functional.interpolate(decoded.low_res_logits_NKHW.float(), (side, side), mode="bilinear")
        iou_n4 = decoded.iou_NK.float()
        losses_n, errors_n = logits_n4RR.new_zeros(len(places_n)), logits_n4RR.new_zeros(len(places_n))
        answers_n = logits_n4RR.new_zeros(len(places_n))
        for some_n, tokens in ((~ambiguous_n, (0,)), (ambiguous_n, (0, 1, 2, 3))):
            where = some_n.nonzero()[:, 0]
            if not len(where):
                continue
            target_mRR = covers_nRR[where]
            found = [_score(logits_n4RR[where, t], target_mRR, near_nRR[where], inside_nRR[where]) for t in tokens]
            losses_mK, true_mK = (torch.stack([pair[part] for pair in found], dim=1) for part in (0, 1))
            predicted_mK = iou_n4[where][:, : len(tokens)]
            loss_m = losses_mK[:, 0]
            if len(tokens) > 1:
                loss_m = losses_mK[:, 1:].amin(dim=1) + 0.5 * loss_m
                shown_m = 1 + predicted_mK[:, 1:].argmax(dim=1)
            else:
                shown_m = torch.zeros_like(where)
            errors_n = errors_n.index_copy(0, where, (predicted_mK - true_mK).square().sum(dim=1))
            losses_n = losses_n.index_copy(0, where, loss_m)
            answers_n = answers_n.index_copy(0, where, true_mK.gather(1, shown_m[:, None])[:, 0])
        return losses_n + 0.5 * errors_n, answers_n


def _score(logits_mRR: Tensor, covers_mRR: Tensor, near_mRR: Tensor, inside_mRR: Tensor) -> tuple[Tensor, Tensor]:
    """Compute dice plus cross entropy, of what is near the object and of all, and the IoU, of each mask; the padding counts nothing."""
    probability_mRR = logits_mRR.sigmoid() * inside_mRR
    overlap_m = (probability_mRR * covers_mRR).sum((1, 2))
    dice_m = 1 - (2 * overlap_m + 1) / (probability_mRR.sum((1, 2)) + covers_mRR.sum((1, 2)) + 1)
    entropy_mRR = functional.binary_cross_entropy_with_logits(logits_mRR, covers_mRR, reduction="none")
    near_m = (entropy_mRR * near_mRR).sum((1, 2)) / near_mRR.sum((1, 2)).clamp(min=1)
    all_m = (entropy_mRR * inside_mRR).sum((1, 2)) / inside_mRR.sum((1, 2)).clamp(min=1)
    with torch.no_grad():
        mask_mRR, truth_mRR = (logits_mRR > 0) & (inside_mRR > 0), covers_mRR >= 0.5
        hits_m = (mask_mRR & truth_mRR).sum((1, 2))
        iou_m = hits_m / ((mask_mRR | truth_mRR).sum((1, 2))).clamp(min=1)
    return dice_m + near_m + all_m, iou_m


def _find_near(covers_NRR: Tensor) -> Tensor:
    """Mark the rectangle around each object, half larger on each side: the object and the background that matters most."""
    near = torch.zeros_like(covers_NRR)
    for k, cover_RR in enumerate(covers_NRR):
        rows, columns = (cover_RR.amax(dim=axis).nonzero()[:, 0] for axis in (1, 0))
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        dy, dx = (bottom - top) // 2 + 1, (right - left) // 2 + 1
        near[k, max(0, top - dy) : bottom + dy, max(0, left - dx) : right + dx] = 1
    return near


def _correct(
    decode: Callable[..., DecodedMasks], batch: Batch, answer_N1hw: Tensor, targets: _Targets, rng: np.random.Generator
) -> tuple[tuple[Tensor, ...], Tensor] | None:
    """Correct some objects by clicks, from the model's first answers; all but the last answer come without gradient.

    Returns:
        What ``decode`` takes for the last answers, and which objects these are; None: none is corrected.
    """
    count, device = len(batch.index_N), answer_N1hw.device
    rounds_N = rng.choice(list(ROUNDS), size=count, p=list(ROUNDS.values())) * (rng.random(count) < CORRECTED_SHARE)
    fed_N = torch.from_numpy(rng.random(count) < FED_SHARE)
    truths_Nhw = targets.cells_Nhw.cpu().numpy()
    for done in range(1, max(ROUNDS) + 1):
        masks_Nhw = ((answer_N1hw[:, 0] > 0) & targets.seen_Nhw).cpu().numpy()
        point_N2, label_N = np.zeros((count, 2), np.float32), np.full(count, NO_POINT, np.float32)
        for place in np.flatnonzero(rounds_N >= done):
            click = _draw_click(masks_Nhw[place], truths_Nhw[place], rng)
            if click is None:
                rounds_N[place] = done - 1  # no error is left: it is learnt from as it is, if it was corrected at all
                continue
            cell_2 = np.array([click.column, click.row]) * LOW_RES_STRIDE + (LOW_RES_STRIDE - 1) / 2
            point_N2[place] = cell_2 + rng.uniform(-1.5, 1.5, 2)
            label_N[place] = POINT_IN if click.is_inside else POINT_OUT
        batch = batch.add_points(torch.from_numpy(point_N2).to(device), torch.from_numpy(label_N).to(device))
        again_n = torch.from_numpy(np.flatnonzero(rounds_N > done))
        if not len(again_n):
            break
        with torch.no_grad():
            decoded = decode(*batch.select(again_n), answer_N1hw[again_n], fed_N[again_n].to(device))
        answer_N1hw = answer_N1hw.index_copy(0, again_n.to(device), decoded.low_res_logits_NKHW.float())
    learnt_n = torch.from_numpy(np.flatnonzero(rounds_N))
    if not len(learnt_n):
        return None
    return (*batch.select(learnt_n), answer_N1hw[learnt_n], fed_N[learnt_n].to(device)), learnt_n


def _draw_click(mask_hw: NDArray[np.bool_], truth_hw: NDArray[np.bool_], rng: np.random.Generator) -> Click | None:
    """Click as the tests do, or on another place of an error."""
    if rng.random() < 0.5:
        return find_next_click(mask_hw, truth_hw)
    return draw_next_click(mask_hw, truth_hw, float(rng.random()))


class Hints(nn.Module):
    """An auxiliary head, thrown away in the end: the embedding is to tell the image, where objects and their edges are, and classes.

    Args:
        channels: of the embedding.
        classes: how many there are; may be 0.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        side = STRIDE // OWNER_STRIDE
        self.pixels = nn.Sequential(nn.Conv2d(channels, 5 * side**2, 1), nn.PixelShuffle(side))
        self.classes = nn.Conv2d(channels, max(1, classes), 1)
        self.alike = nn.Sequential(nn.Conv2d(channels, QUERY_CHANNELS * side**2, 1), nn.PixelShuffle(side))
        self.likeness = nn.Parameter(torch.tensor([8.0, 0.5]))

    def compute_loss(self, embeddings_BCHW: Tensor, batch: Batch) -> Tensor:
        """Compute the loss; objects, edges and classes count where there are objects, because not all may be annotated."""
        hints_B5qq = self.pixels(embeddings_BCHW).float()
        loss = functional.mse_loss(hints_B5qq[:, :3], functional.avg_pool2d(batch.images_B3SS, OWNER_STRIDE))
        owners = batch.owners_B1qq
        area = (owners > 0).float()
        edge = (functional.max_pool2d(owners, 3, 1, 1) != -functional.max_pool2d(-owners, 3, 1, 1)).float()
        weight = functional.max_pool2d(area, 7, 1, 3)
        for place, truth in ((3, area), (4, edge)):
            entropy = functional.binary_cross_entropy_with_logits(
                hints_B5qq[:, place : place + 1], truth, reduction="none"
            )
            loss = loss + (entropy * weight).sum() / weight.sum().clamp(min=1)
        middle = slice(2, None, STRIDE // OWNER_STRIDE)  # of each cell of the embedding
        truth_BHW = batch.classes_Bqq[:, middle, middle]
        if (truth_BHW >= 0).any():
            logits = self.classes(embeddings_BCHW).float()
            loss = loss + CLASS_WEIGHT * functional.cross_entropy(logits, truth_BHW, ignore_index=-1)
        return loss + self._compare_squares(embeddings_BCHW, batch)

    def _compare_squares(self, embeddings_BCHW: Tensor, batch: Batch) -> Tensor:
        """Compute how badly the likeness to a square of an object tells the object: dice and cross entropy.

        So every object that a view shows teaches the encoder what belongs together, at a small part of a decoder's price.
        """
        features_BDqq = functional.normalize(self.alike(embeddings_BCHW).float(), dim=1)
        view_M, row_M, column_M, number_M = batch.queries_M4.unbind(dim=1)
        if not len(view_M):
            return features_BDqq.sum() * 0
        query_MD = features_BDqq[view_M, :, row_M, column_M]
        cosine_Mqq = torch.einsum("md,mdhw->mhw", query_MD, features_BDqq[view_M])
        logits_Mqq = self.likeness[0] * (cosine_Mqq - self.likeness[1])
        truth_Mqq = (batch.owners_B1qq[view_M, 0] == number_M[:, None, None]).float()
        inside_Mqq = functional.avg_pool2d(batch.inside_B1SS, OWNER_STRIDE)[view_M, 0]
        near_Mqq = _find_near(truth_Mqq) * inside_Mqq
        return _score(logits_Mqq, truth_Mqq, near_Mqq, inside_Mqq)[0].mean()
