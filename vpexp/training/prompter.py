"""How the prompter learns where objects are: a training that goes on to the same numbers.

It reads the embeddings that the decoder's training has cached, and the pixels, and needs no decoder. What a step draws depends on the
seed and the step's number alone.

Source: one cycle of the learning rate, Smith & Topin 2019.

Legend: B views of a step, C channels, E = S/16 cells a side of the embedding, S model input size.
"""

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vpexp.config.schema import PrompterConfig
from vpexp.data.annotations import ImagePlace
from vpexp.data.geometry import normalize_and_pad
from vpexp.data.interface import STRIDE
from vpexp.evaluation.instances import NONE, compute_best_f1, compute_box_ious, match
from vpexp.files import replacing
from vpexp.models.prompter import Prompter
from vpexp.training.prompter_targets import SWAPPED_SIDES, Targets, View, build_targets, compute_loss, mirror

Read = Callable[[ImagePlace], tuple[NDArray[Any], NDArray[np.uint8]]]
"""Gives the embedding [C, E, E] of an image or window, and its pixels: RGB [h, w, 3], resized for the model."""

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises."""
WEIGHT_DECAY = 0.02
NOISE = 0.1
"""Standard deviations of the embedding that are added to it as noise."""
COLOR_CHANGE = 0.2
"""Standard deviation of what contrast and brightness of each image are changed by, normalised."""
FAMILIAR = 8
"""Rounds over all views after which they are mirrored as often as not; the first round shows them as they are."""
IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""From which a box counts as found on val; F1 is averaged over them."""


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
    """Mirror a step's views, all alike, add noise to the embeddings, and change contrast and brightness of each image.

    An encoder does not give the mirrored embedding for a mirrored image, so it tells less of where the sides of an object are. But few
    images are learnt by heart without it: so views are mirrored, along each axis by ``chance``, as they become familiar. Their axes
    are not exchanged: the head could then no longer read from an embedding whether an object is wide or high.
    """
    for how in SWAPPED_SIDES:
        if rng.random() < chance:
            embeddings_BCEE, images_B3SS = mirror(embeddings_BCEE, how), mirror(images_B3SS, how)
            targets = [one.mirror(how) for one in targets]
    embeddings_BCEE = embeddings_BCEE + NOISE * embeddings_BCEE.std() * torch.randn_like(embeddings_BCEE)
    gain_2B111 = COLOR_CHANGE * torch.randn(2, len(images_B3SS), 1, 1, 1)
    return embeddings_BCEE, images_B3SS * (1 + gain_2B111[0]) + gain_2B111[1], targets


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
