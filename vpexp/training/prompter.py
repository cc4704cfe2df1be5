"""How the prompter learns where objects are: views with their boxes, the loss, and a training that goes on to the same numbers.

It reads the embeddings that the decoder's training has cached, and the pixels, and needs no decoder. What a step draws depends on the
seed and the step's number alone.

Sources: the focal loss of heat maps, Law & Deng 2018 "CornerNet"; the logarithm of the IoU of boxes, Yu et al. 2016 "UnitBox"; one
cycle of the learning rate, Smith & Topin 2019.

Legend: B views of a step, N objects of one view, C channels, E = S/16 cells a side of the embedding and G of a grid of the prompter,
S model input size.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vpexp.config.schema import PrompterConfig
from vpexp.data.annotations import AnnotatedImage, ImagePlace, Region
from vpexp.data.geometry import compute_resized_size, normalize_and_pad, scale_boxes
from vpexp.data.interface import FIT, STRIDE
from vpexp.data.tiles import Tiling, plan_windows
from vpexp.evaluation.instances import NONE, compute_best_f1, compute_box_ious, match
from vpexp.files import replacing
from vpexp.models.prompter import SMALL, Maps, Prompter

Read = Callable[[ImagePlace], tuple[NDArray[Any], NDArray[np.uint8]]]
"""Gives the embedding [C, E, E] of an image or window, and its pixels: RGB [h, w, 3], resized for the model."""

VISIBLE = 0.25
"""Share of its box that a tile must show of an object to teach and to test it."""
SPREAD = 6.0
"""The heat of a centre falls with a standard deviation of this part of the box's side, along each side."""
NARROWEST = 0.6
"""Cells of the standard deviation, at least."""
NEAR = 0.3
"""Heat from which a cell learns the box."""
BOX_WEIGHT = 2.0
WARM_UP = 0.1
"""Share of the steps in which the learning rate rises."""
WEIGHT_DECAY = 0.02
NOISE = 0.1
"""Standard deviations of the embedding that are added to it as noise."""
COLOR_CHANGE = 0.2
"""Standard deviation of what contrast and brightness of each image are changed by, normalised."""
FAMILIAR = 8
"""Rounds over all views after which they are mirrored and turned as often as not; the first round shows them as they are."""
SWAPPED_SIDES = {"columns": (2, 1, 0, 3), "rows": (0, 3, 2, 1), "axes": (1, 0, 3, 2)}
"""Which distance becomes the left, upper, right and lower one where an image is mirrored, or its axes are exchanged."""
IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""From which a box counts as found on val; F1 is averaged over them."""


@dataclass(frozen=True, slots=True)
class View:
    """An image or a tile, and the objects in it.

    Attributes:
        place: where its pixels are.
        boxes_N4: float32, xyxy, pixels of the model's input.
        resized_hw: its size there.
    """

    place: ImagePlace
    boxes_N4: NDArray[np.float32]
    resized_hw: tuple[int, int]


def list_views(
    images: Sequence[AnnotatedImage],
    tiling: Tiling | None,
    image_size: int,
    *,
    margin: float = 0.0,
    resize: str = FIT,
) -> list[View]:
    """List images, or all their tiles, with and without objects.

    Args:
        images: whole.
        tiling: how they are cut; None: they are not.
        image_size: S.
        margin: share of a box's length that each side is moved outwards by: as loose as the boxes that the decoder was taught
            with.
        resize: how an image becomes the square, see ``compute_resized_size``.
    """
    views = []
    for image in images:
        boxes_N4 = _enlarge(image.boxes_N4, margin)
        for window in plan_windows(tiling, image.height, image.width):
            size = window.bottom - window.top, window.right - window.left
            resized_hw = compute_resized_size(*size, image_size, resize)
            boxes_n4 = scale_boxes(_clip_boxes(boxes_N4, window), size, resized_hw)
            views.append(View(image.locate(window), boxes_n4, resized_hw))
    return views


def _enlarge(boxes_N4: NDArray[np.float32], margin: float) -> NDArray[np.float32]:
    moves_N2 = np.float32(margin) * (boxes_N4[:, 2:] - boxes_N4[:, :2])
    return np.concatenate([boxes_N4[:, :2] - moves_N2, boxes_N4[:, 2:] + moves_N2], axis=1)


def _clip_boxes(boxes_N4: NDArray[np.float32], window: Region) -> NDArray[np.float32]:
    """Take what a window shows of boxes, in its own frame; those of which it shows too little are left out."""
    corner_4 = np.array([window.left, window.top] * 2, np.float32)
    end_4 = np.array([window.right, window.bottom] * 2, np.float32)
    clipped_N4 = np.clip(boxes_N4, corner_4, end_4)
    shown_N, whole_N = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (clipped_N4, boxes_N4))
    kept_n4: NDArray[np.float32] = clipped_N4[shown_N >= VISIBLE * whole_N] - corner_4
    return kept_n4


@dataclass(frozen=True, slots=True)
class Targets:
    """What the maps of one grid should be, of B views.

    Attributes:
        heat_BGG: 1 at the cell of each centre, falling around it.
        distances_B4GG: from the middle of a cell to the sides of the box whose heat is highest there, in cells.
        weights_BGG: how much a cell learns of it: 1 for each object, all its cells together.
        inside_BGG: 1 where a cell lies in the image.
    """

    heat_BGG: Tensor
    distances_B4GG: Tensor
    weights_BGG: Tensor
    inside_BGG: Tensor

    def to(self, device: torch.device) -> "Targets":
        """Move them to a device."""
        return Targets(*(getattr(self, field.name).to(device) for field in fields(self)))

    def turn(self, how: str) -> "Targets":
        """Mirror them, or exchange their axes."""
        heat, distances, weights, inside = (_turn(getattr(self, field.name), how) for field in fields(self))
        return Targets(heat, distances[:, SWAPPED_SIDES[how]], weights, inside)


def build_targets(views: Sequence[View], image_size: int, cells: Sequence[int]) -> list[Targets]:
    """Build the targets of views, of each grid those of the objects that are as large as it is for.

    Args:
        views: B of them.
        image_size: S.
        cells: pixels to a side of the cells of both grids, the finer first.
    """
    boxes = [_divide_boxes(view.boxes_N4, cells[0]) for view in views]
    return [
        _build_grid(views, grid_boxes, image_size, cell)
        for cell, grid_boxes in zip(cells, zip(*boxes, strict=True), strict=True)
    ]


def _divide_boxes(boxes_N4: NDArray[np.float32], cell: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Divide boxes into those of the finer and those of the coarse cells; ``cell`` is the side of a finer one."""
    is_large_N = np.prod(boxes_N4[:, 2:] - boxes_N4[:, :2], axis=1) > (SMALL * cell) ** 2
    return boxes_N4[~is_large_N], boxes_N4[is_large_N]


def _build_grid(views: Sequence[View], boxes: Sequence[NDArray[np.float32]], image_size: int, cell: int) -> Targets:
    """Build the targets of one grid, from the boxes of each view that belong to it."""
    cells = image_size // cell
    heat_BGG = np.zeros((len(views), cells, cells), np.float32)
    distances_B4GG = np.zeros((len(views), 4, cells, cells), np.float32)
    weights_BGG, inside_BGG = np.zeros_like(heat_BGG), np.zeros_like(heat_BGG)
    for place, (view, boxes_N4) in enumerate(zip(views, boxes, strict=True)):
        rows, columns = (math.ceil(length / cell) for length in view.resized_hw)
        inside_BGG[place, :rows, :columns] = 1
        owners_GG = np.full((cells, cells), NONE)
        for number, box_4 in enumerate(boxes_N4 / cell):
            _draw_object(number, box_4, heat_BGG[place], distances_B4GG[place], weights_BGG[place], owners_GG)
        is_owned_GG = owners_GG != NONE
        owners_k, weights_k = owners_GG[is_owned_GG], weights_BGG[place][is_owned_GG]
        weights_BGG[place][is_owned_GG] = weights_k / np.bincount(owners_k, weights_k)[owners_k]
    return Targets(*map(torch.from_numpy, (heat_BGG, distances_B4GG, weights_BGG, inside_BGG)))


def _draw_object(  # noqa: PLR0917 (four maps)
    number: int,
    box_4: NDArray[np.float32],
    heat_GG: NDArray[np.float32],
    distances_4GG: NDArray[np.float32],
    weights_GG: NDArray[np.float32],
    owners_GG: NDArray[np.int64],
) -> None:
    """Draw an object's heat, and distances around its centre; each cell keeps those of the object that it is hottest of."""
    cells = len(heat_GG)
    middle_2 = (box_4[:2] + box_4[2:]) / 2
    centre_2 = np.minimum(middle_2.astype(int), cells - 1)
    spread_2 = np.maximum((box_4[2:] - box_4[:2]) / SPREAD, NARROWEST)
    reach_2 = np.ceil(3 * spread_2).astype(int)
    left, top = np.maximum(centre_2 - reach_2, 0).tolist()
    right, bottom = np.minimum(centre_2 + reach_2 + 1, cells).tolist()
    xs, ys = np.arange(left, right, dtype=np.float32), np.arange(top, bottom, dtype=np.float32)[:, None]
    part = (slice(top, bottom), slice(left, right))
    own_gg = np.exp(-(((xs - centre_2[0]) / spread_2[0]) ** 2 + ((ys - centre_2[1]) / spread_2[1]) ** 2) / 2)
    heat_GG[part] = np.maximum(heat_GG[part], own_gg)
    takes_gg = (own_gg > NEAR) & (own_gg > weights_GG[part])
    sides = (xs + 0.5 - box_4[0], ys + 0.5 - box_4[1], box_4[2] - xs - 0.5, box_4[3] - ys - 0.5)
    for axis, side in enumerate(sides):
        distances_4GG[axis][part] = np.where(takes_gg, side, distances_4GG[axis][part])
    weights_GG[part] = np.where(takes_gg, own_gg, weights_GG[part])
    owners_GG[part] = np.where(takes_gg, number, owners_GG[part])


def compute_loss(maps: Sequence[Maps], targets: Sequence[Targets]) -> Tensor:
    """Compute the loss of the maps of all grids, an object each counting 1: focal loss of the heat, logarithm of the boxes' IoU."""
    objects = sum((one.heat_BGG == 1).sum() for one in targets)
    losses = [_compute_grid_loss(*grid, wanted) for grid, wanted in zip(maps, targets, strict=True)]
    return torch.stack(losses).sum() / torch.as_tensor(objects).clamp(min=1)


def _compute_grid_loss(logits_B1GG: Tensor, distances_B4GG: Tensor, targets: Targets) -> Tensor:
    heat_BGG, logits_BGG = targets.heat_BGG, logits_B1GG[:, 0]
    probability_BGG = logits_BGG.sigmoid().clamp(1e-5, 1 - 1e-5)
    is_centre_BGG = (heat_BGG == 1).float()
    hits = is_centre_BGG * (1 - probability_BGG).square() * probability_BGG.log()
    misses = (1 - is_centre_BGG) * (1 - heat_BGG).pow(4) * probability_BGG.square() * (1 - probability_BGG).log()
    focal = -((hits + misses) * targets.inside_BGG).sum()
    log_iou_BGG = compute_log_iou(distances_B4GG, targets.distances_B4GG)
    return focal - BOX_WEIGHT * (log_iou_BGG * targets.weights_BGG).sum()


def compute_log_iou(first_B4GG: Tensor, second_B4GG: Tensor) -> Tensor:
    """Compute the logarithm of the IoU of boxes given by the distances of one point to their sides: [B, G, G], 0 or below.

    A box that is too small or too large by a factor is pulled alike, however large it is.
    """
    (left_a, top_a, right_a, bottom_a), (left_b, top_b, right_b, bottom_b) = first_B4GG.unbind(1), second_B4GG.unbind(1)
    wide = (torch.minimum(left_a, left_b) + torch.minimum(right_a, right_b)).clamp(min=1e-3)
    high = (torch.minimum(top_a, top_b) + torch.minimum(bottom_a, bottom_b)).clamp(min=1e-3)
    shared = wide * high
    union = (left_a + right_a) * (top_a + bottom_a) + (left_b + right_b) * (top_b + bottom_b) - shared
    return (shared / union.clamp(min=1e-6)).clamp(1e-4, 1).log()


def compute_rate(step: int, steps: int) -> float:
    """Compute the learning rate as a share of the highest: a line up, a cosine down to 0."""
    share = step / steps
    return share / WARM_UP if share < WARM_UP else 0.5 + 0.5 * math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))


class PrompterTrainer:
    """Trains a prompter, and keeps its state beside the checkpoints.

    Args:
        prompter: starts as it is.
        views: of the train split, with an object somewhere.
        val: of the val split.
        read: gives their embeddings and pixels.
        settings: the section ``prompter``.
        seed: of the order of views and of the noise.
        state_path: where the state is kept after each look at val; one that is there is gone on with.
        encoder_hash: of the encoder whose embeddings they are; the state of another encoder or prompter is not gone on with.
        report: is given step, loss and F1 on val after each look, and whether it was the best.
    """

    def __init__(
        self,
        prompter: Prompter,
        views: Sequence[View],
        val: Sequence[View],
        read: Read,
        settings: PrompterConfig,
        *,
        seed: int,
        state_path: Path,
        encoder_hash: str,
        report: Callable[[int, float, float, bool], None],
    ) -> None:
        self.prompter, self.views, self.val, self.read = prompter, views, val, read
        self.settings, self.seed, self.state_path, self.report = settings, seed, state_path, report
        self.encoder_hash = encoder_hash
        self.optimizer = torch.optim.AdamW(prompter.parameters(), lr=settings.lr, weight_decay=WEIGHT_DECAY)
        self.step, self.best_step, self.best_score = 0, 0, -1.0
        self.best = copy.deepcopy(prompter.state_dict())

    @property
    def device(self) -> torch.device:
        """Where the prompter lies."""
        return next(self.prompter.parameters()).device

    def fit(self, advance: Callable[[int], None]) -> None:
        """Train to the last step, or until val gains no more; the prompter then has the weights that were best on val.

        Args:
            advance: called after each step with how many are done.
        """
        self._load_state()
        losses: list[Tensor] = []  # read where val is looked at: a step does not wait for a GPU
        while self.step < self.settings.steps and not self._is_exhausted():
            losses.append(self._make_step())
            self.step += 1
            advance(self.step)
            if self.step % self.settings.evaluate_every == 0 or self.step == self.settings.steps:
                self._evaluate(float(np.mean([float(loss) for loss in losses])))
                losses.clear()
        self.prompter.load_state_dict(self.best)
        self.prompter.eval()

    def _is_exhausted(self) -> bool:
        return self.step - self.best_step >= self.settings.patience * self.settings.evaluate_every

    def _make_step(self) -> Tensor:
        self.prompter.train()
        rng = np.random.default_rng([self.seed, self.step])
        views = [self.views[place] for place in self._choose_views()]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**62)))
            embeddings_BCEE, images_B3SS = read_views(views, self.read)
            targets = build_targets(views, images_B3SS.shape[-1], self.prompter.cells)
            rounds = self.step * self.settings.batch_size / len(self.views)
            chance = 0.5 * min(1.0, rounds / FAMILIAR)
            embeddings_BCEE, images_B3SS, targets = _vary(embeddings_BCEE, images_B3SS, targets, chance, rng)
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.lr * compute_rate(self.step, self.settings.steps)
            inputs = embeddings_BCEE.to(self.device), images_B3SS.to(self.device)
            loss = compute_loss(self.prompter.compute_maps(*inputs), [one.to(self.device) for one in targets])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.prompter.parameters(), 1.0)
            self.optimizer.step()
        return loss.detach()

    def _choose_views(self) -> list[int]:
        """Choose the views of a step: all in an order of their own for each round, one round after another."""
        count, first = len(self.views), self.step * self.settings.batch_size
        places = []
        for number in range(first, first + self.settings.batch_size):
            order = np.random.default_rng([self.seed, 1, number // count]).permutation(count)
            places.append(int(order[number % count]))
        return places

    @torch.no_grad()
    def _evaluate(self, loss: float) -> None:
        """Measure F1 on val, keep the best weights, and the state."""
        score = measure_boxes(self.prompter, self.val, self.read, self.device)
        is_best = score > self.best_score
        if is_best:
            self.best_step, self.best_score = self.step, score
            self.best = copy.deepcopy(self.prompter.state_dict())
        self.report(self.step, loss, score, is_best)
        state = {
            "prompter": self.prompter.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "encoder_hash": self.encoder_hash,
            "numbers": {"step": self.step, "best_step": self.best_step, "best_score": self.best_score},
        }
        with replacing(self.state_path) as draft:
            torch.save(state, draft)

    def _load_state(self) -> None:
        if not self.state_path.exists():
            return
        state = torch.load(self.state_path, map_location=self.device, weights_only=True)
        is_of_this = state["prompter"].keys() == self.best.keys()  # an earlier version's is built otherwise
        if state["encoder_hash"] != self.encoder_hash or not is_of_this:
            return
        self.prompter.load_state_dict(state["prompter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = state["best"]
        for name, value in state["numbers"].items():
            setattr(self, name, value)


def read_views(views: Sequence[View], read: Read) -> tuple[Tensor, Tensor]:
    """Read what the prompter looks at: embeddings float32 [B, C, E, E], and images, normalised and padded [B, 3, S, S].

    Of an embedding of several maps that is the first.
    """
    found = [read(view.place) for view in views]
    embeddings_BCEE = np.stack([embedding_CEE for embedding_CEE, _ in found]).astype(np.float32)
    size = embeddings_BCEE.shape[-1] * STRIDE
    images_B3SS = np.stack([normalize_and_pad(image_hw3, size) for _, image_hw3 in found])
    return torch.from_numpy(embeddings_BCEE), torch.from_numpy(images_B3SS)


def _vary(
    embeddings_BCEE: Tensor, images_B3SS: Tensor, targets: list[Targets], chance: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor, list[Targets]]:
    """Mirror and turn a step's views, all alike, add noise to the embeddings, and change contrast and brightness of each image.

    An encoder does not give the mirrored embedding for a mirrored image: in the embedding as it is there lies more of how wide and
    how high an object is. So views are mirrored and turned, each by ``chance``, as they become familiar: few images are learnt by
    heart without it, of many it takes more than it gives.
    """
    for how in SWAPPED_SIDES:
        if rng.random() < chance:
            embeddings_BCEE, images_B3SS = _turn(embeddings_BCEE, how), _turn(images_B3SS, how)
            targets = [one.turn(how) for one in targets]
    embeddings_BCEE = embeddings_BCEE + NOISE * embeddings_BCEE.std() * torch.randn_like(embeddings_BCEE)
    gain_2B111 = COLOR_CHANGE * torch.randn(2, len(images_B3SS), 1, 1, 1)
    return embeddings_BCEE, images_B3SS * (1 + gain_2B111[0]) + gain_2B111[1], targets


def _turn(maps: Tensor, how: str) -> Tensor:
    """Mirror maps [..., H, W], or exchange their axes."""
    return maps.transpose(-2, -1) if how == "axes" else maps.flip(-1 if how == "columns" else -2)


@torch.no_grad()
def measure_boxes(prompter: Prompter, views: Sequence[View], read: Read, device: torch.device) -> float:
    """Compute the best F1 of the boxes of views over all score thresholds, averaged over ``IOUS``."""
    prompter.eval()
    scores, hits, objects = [], [], 0
    for view in views:
        inputs = [part.to(device) for part in read_views([view], read)]
        boxes_K4, scores_K = (part[0].cpu().numpy() for part in prompter(*inputs))
        ious_KN = compute_box_ious(boxes_K4, view.boxes_N4)
        scores.append(scores_K)
        hits.append([match(ious_KN, min_iou) != NONE for min_iou in IOUS])
        objects += len(view.boxes_N4)
    hits_TM = np.concatenate(hits, axis=1)
    return float(np.mean([compute_best_f1(np.concatenate(scores), hits_M, objects) for hits_M in hits_TM]))
