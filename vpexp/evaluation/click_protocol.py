"""How the objects of an image are asked for: by one prompt each, or by a simulated user who corrects the masks by clicks.

The protocol of clicks is the field's, Xu et al. 2016 "Deep interactive object selection" and Sofiiuk et al. 2021 "Reviving
iterative training with mask guidance for interactive segmentation" (RITM): the first click is the pixel deepest inside the
object, each further one the centre of the largest error of the mask at hand, and the number of clicks that an IoU takes (NoC)
is averaged over the objects.

Legend: N objects of one image, n those that are still asked for, P points of a prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vpexp.config.schema import PromptConfig
from vpexp.data.annotations import Region, Rle
from vpexp.data.clicks import Click, find_next_click
from vpexp.data.masks import compute_box, decode_rle, find_region
from vpexp.data.prompts import Prompts
from vpexp.evaluation.pixel_metrics import PixelCounts
from vpexp.inference.predictor import Prediction

NOC_IOUS = (80, 85, 90)
"""The IoUs, in percent, that clicks are counted to."""

Decode = Callable[[Prompts], Prediction]
PromptRow = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Points [P, 2] and labels [P] of one object."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model answered for N objects.

    Attributes:
        rounds: the masks after each round, N each.
        scores_N: predicted IoU of the last masks.
        prompts: what each object was asked with at last.
    """

    rounds: list[list[Rle]]
    scores_N: NDArray[np.float32]
    prompts: list[PromptRow]


class Interaction(Protocol):
    """A way to ask for the objects of an image."""

    @property
    def rounds(self) -> int:
        """How many masks each object gets, one after another."""
        ...

    def ask(self, decode: Decode, prompts: Prompts, annotated: Sequence[Rle]) -> Answers:
        """Ask for objects, given their first prompts and their true masks."""
        ...

    def summarize(self, rounds: Sequence[PixelCounts]) -> dict[str, float]:
        """Compute what there is to say of the rounds beyond the metrics of the last."""
        ...


class OnePrompt:
    """Each object is asked for once."""

    rounds = 1

    def ask(self, decode: Decode, prompts: Prompts, annotated: Sequence[Rle]) -> Answers:
        """Decode the prompts."""
        del annotated
        prediction = decode(prompts)
        return Answers([list(prediction.encode_masks())], prediction.iou, _list_rows(prompts))

    def summarize(self, rounds: Sequence[PixelCounts]) -> dict[str, float]:
        """Add nothing."""
        del rounds
        return {}


@dataclass(frozen=True, slots=True)
class SimulatedUser:
    """Clicks on the largest error of each mask, until it has none or the clicks are used up.

    Attributes:
        clicks: at most so many an object.
        first: whether the first prompt is a click, ``point``, or a ``box`` that clicks correct.
        feed_mask: the decoder is given the mask that a click corrects, its low-resolution logits.
    """

    clicks: int
    first: str = "point"
    feed_mask: bool = True

    @property
    def first_clicks(self) -> int:
        """Clicks of the first prompt."""
        return 1 if self.first == "point" else 0

    @property
    def rounds(self) -> int:
        """How many masks each object gets."""
        return self.clicks - self.first_clicks + 1

    def ask(self, decode: Decode, prompts: Prompts, annotated: Sequence[Rle]) -> Answers:
        """Ask for all objects at once, then again for those whose masks have errors.

        An object without errors keeps its mask in the rounds that are left.
        """
        truths = [_crop(rle) for rle in annotated]
        masks: list[Rle] = list(annotated)  # of this length; each is answered in the first round
        scores_N = np.zeros(len(prompts), dtype=np.float32)
        rows = _list_rows(prompts)
        asked, places_n = prompts, np.arange(len(prompts))
        rounds: list[list[Rle]] = []
        for left in reversed(range(self.rounds)):
            if len(places_n):
                prediction = decode(asked)
                answers = zip(places_n.tolist(), prediction.encode_masks(), _list_rows(asked), strict=True)
                for place, rle, row in answers:
                    masks[place], rows[place] = rle, row
                scores_N[places_n] = prediction.iou
            rounds.append(list(masks))
            if left and len(places_n):
                asked, places_n = self._correct(asked, places_n, prediction, truths)
        return Answers(rounds, scores_N, rows)

    def _correct(
        self, asked: Prompts, places_n: NDArray[np.int64], prediction: Prediction, truths: Sequence["_CroppedMask"]
    ) -> tuple[Prompts, NDArray[np.int64]]:
        """Click once on each mask that has an error; the next prompts, and whose they are."""
        found = [_find_click(prediction, index, truths[place]) for index, place in enumerate(places_n.tolist())]
        wrong_n = np.array([index for index, click in enumerate(found) if click], dtype=np.int64)
        prompts = asked.select(wrong_n).add_clicks([click for click in found if click])
        if self.feed_mask:
            prompts = replace(prompts, mask_input_Nhw=prediction.low_res[wrong_n])
        return prompts, places_n[wrong_n]

    def summarize(self, rounds: Sequence[PixelCounts]) -> dict[str, float]:
        """Compute F1 and mean IoU after each click, and the number of clicks that an IoU takes.

        Returns:
            ``f1-score_clicks_1``, ``mean_iou_clicks_1``, ...; ``noc_85``, the mean over objects of the clicks until IoU is 0.85,
            which is the largest number of clicks for those that never reach it; ``noc_85_failed``, the share of these.
        """
        numbers: dict[str, float] = {}
        for clicks, counts in enumerate(rounds, start=self.first_clicks):
            metrics = counts.compute()
            numbers |= {f"{name}_clicks_{clicks}": metrics[name] for name in ("f1-score", "mean_iou")}
        ious_RN = np.array([counts.object_ious for counts in rounds], dtype=np.float64)
        for percent in NOC_IOUS:
            reached_RN = ious_RN >= percent / 100
            failed_N = ~reached_RN.any(axis=0)
            clicks_N = np.where(failed_N, self.clicks, reached_RN.argmax(axis=0) + self.first_clicks)
            numbers[f"noc_{percent}"] = float(clicks_N.mean()) if clicks_N.size else float("nan")
            numbers[f"noc_{percent}_failed"] = float(failed_N.mean()) if failed_N.size else float("nan")
        return numbers


def build_interaction(recipe: PromptConfig) -> Interaction:
    """Build the way in which a recipe of prompts asks in evaluation."""
    if recipe.type == "clicks":
        return SimulatedUser(recipe.clicks, recipe.first, recipe.feed_mask)
    return OnePrompt()


@dataclass(frozen=True, slots=True)
class _CroppedMask:
    """The pixels of a mask in its bounds."""

    region: Region
    part_hw: NDArray[np.bool_]


def _crop(rle: Rle) -> _CroppedMask:
    left, top, right, bottom = compute_box(rle).astype(int).tolist()
    region = Region(top, left, bottom, right)
    return _CroppedMask(region, decode_rle(rle)[region.slices].copy())


def _find_click(prediction: Prediction, index: int, truth: _CroppedMask) -> Click | None:
    """Find the next click on an object, looking only at the part of the image that its two masks lie in."""
    mask_HW = prediction.masks[index]
    own = find_region(mask_HW) if prediction.regions is None else prediction.regions[index]
    regions = [region for region in (own, truth.region) if region.area]
    if not regions:
        return None
    top, left = min(region.top for region in regions), min(region.left for region in regions)
    both = Region(top, left, max(region.bottom for region in regions), max(region.right for region in regions))
    annotated_hw = np.zeros((both.bottom - top, both.right - left), dtype=np.bool_)
    inner = Region(
        truth.region.top - top, truth.region.left - left, truth.region.bottom - top, truth.region.right - left
    )
    if truth.region.area:
        annotated_hw[inner.slices] = truth.part_hw
    click = find_next_click(mask_HW[both.slices], annotated_hw)
    return click and Click(click.row + top, click.column + left, click.is_inside)


def _list_rows(prompts: Prompts) -> list[PromptRow]:
    return list(zip(prompts.coords_NP2, prompts.labels_NP, strict=True))
