"""How masks learn their classes: crops of annotated masks, and the choice among what names those of val best.

Legend: K masks, C classes, F features.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vpexp.data.annotations import AnnotatedImage
from vpexp.data.image_files import ImageFileError
from vpexp.data.images import read_image
from vpexp.inference.mask_crops import MaskCrops, crop_masks
from vpexp.models.mask_classifier import MaskClassifier, compute_statistics

WIDTH = 16
"""Of the learnt features."""
SHRINKAGE = 0.1
"""Share of the covariance within classes that is taken from its diagonal."""
PULL = 10.0
"""Penalty on the weights of the regression, in masks."""
SMALLEST_DEVIATION = 0.01
"""Of a statistic, so that one that hardly varies is not blown up."""
NEVER = -1e4
"""Logit of a class without examples."""
FEWEST = 20
"""Masks of val by which a kind is chosen."""
SAFEST = "both"
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
SMOOTHING = 0.05
BATCH = 64
CPU = torch.device("cpu")
SHIFT, GAIN = 0.06, 0.15
"""Brightness and contrast that crops of a step are changed by, at most."""


@dataclass(frozen=True, slots=True)
class LabelledCrops:
    """Crops of annotated masks, their classes, and the places of their images."""

    crops: MaskCrops
    labels_K: NDArray[np.int64]
    images_K: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels_K)

    def to_tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Give crops, extents and classes."""
        return (
            torch.from_numpy(self.crops.crops_K4PP),
            torch.from_numpy(self.crops.extents_K2),
            torch.from_numpy(self.labels_K),
        )


def collect_crops(
    images: Sequence[AnnotatedImage], most: int, seed: int, show: Callable[[Sequence[int]], Iterable[int]]
) -> LabelledCrops:
    """Cut annotated masks out of their images, at most ``most``, of each class alike where there are more.

    Args:
        images: of a split.
        most: masks.
        seed: of the choice among more.
        show: goes through the places of images, with a progress bar.
    """
    chosen = choose_masks([image.labels_N for image in images], most, seed)
    none = crop_masks(np.zeros((1, 1, 3), np.uint8), [])
    crops, extents, labels, places = (
        [none.crops_K4PP],
        [none.extents_K2],
        [np.zeros(0, np.int64)],
        [np.zeros(0, np.int64)],
    )
    for place in show([place for place, masks_n in enumerate(chosen) if len(masks_n)]):
        image, masks_n = images[place], chosen[place]
        try:
            image_HW3 = read_image(image.path, image.exif_transpose)
        except ImageFileError:
            continue  # counted where the decoder trains
        found = crop_masks(image_HW3, [image.masks[index] for index in masks_n.tolist()])
        crops.append(found.crops_K4PP)
        extents.append(found.extents_K2)
        labels.append(image.labels_N[masks_n])
        places.append(np.full(len(masks_n), place))
    found = MaskCrops(np.concatenate(crops), np.concatenate(extents))
    return LabelledCrops(found, np.concatenate(labels), np.concatenate(places))


def choose_masks(labels: Sequence[NDArray[np.int64]], most: int, seed: int) -> list[NDArray[np.int64]]:
    """Choose masks of images by their classes, so that the least frequent are taken first: places in each image."""
    if not sum(map(len, labels)):
        return list(labels)
    image_M = np.repeat(np.arange(len(labels)), [len(labels_N) for labels_N in labels])
    place_M = np.concatenate([np.arange(len(labels_N)) for labels_N in labels])
    label_M = np.concatenate(labels)
    order_M = np.random.default_rng(seed).permutation(len(label_M))
    rank_M = np.zeros(len(label_M), dtype=np.int64)  # of each mask among those of its class
    for label in np.unique(label_M):
        own = order_M[label_M[order_M] == label]
        rank_M[own] = np.arange(len(own))
    taken_M = np.sort(np.lexsort((order_M, rank_M))[:most])
    return [place_M[taken_M[image_M[taken_M] == image]] for image in range(len(labels))]


def train_classifier(
    train: LabelledCrops, val: LabelledCrops, classes: int, *, steps: int, seed: int, device: torch.device = CPU
) -> tuple[MaskClassifier, str, dict[str, float]]:
    """Train a classifier of each kind, and keep the one that names most masks of val rightly; of equals the simplest.

    Where val has too few masks or one class alone to choose by, it is ``both``. What is learnt by steps is learnt on ``device``.

    Returns:
        The classifier in eval mode, its kind, and the accuracy of each kind on val, NaN without masks there.
    """
    trained = train_kinds(train, val, classes, steps=steps, seed=seed, device=device)
    accuracies = {name: measure_accuracy(classifier, val) for name, classifier in trained.items()}
    best = max(accuracies, key=accuracies.__getitem__) if can_judge(val) else SAFEST
    return trained[best], best, accuracies


def can_judge(val: LabelledCrops) -> bool:
    """Whether a split has enough masks of more than one class to choose by."""
    return len(val) >= FEWEST and len(np.unique(val.labels_K)) > 1


def train_kinds(
    train: LabelledCrops, val: LabelledCrops, classes: int, *, steps: int, seed: int, device: torch.device = CPU
) -> dict[str, MaskClassifier]:
    """Train ``discriminant`` and ``regression``, linear in statistics, ``learnt`` on crops, and ``both``: a sum of two.

    What is added to the learnt one is the linear one that names more masks of val rightly. Masks of an image agree where that
    names more of val rightly.
    """
    statistics_KF, labels_K = _compute_statistics(train), train.to_tensors()[2]
    linear = {
        "discriminant": _build_linear(classes, fit_discriminant(statistics_KF, labels_K, classes)),
        "regression": _build_linear(classes, fit_regression(statistics_KF, labels_K, classes)),
    }
    better = max(linear.values(), key=lambda classifier: np.nan_to_num(measure_accuracy(classifier, val)))
    learnt = _train(train, classes, steps, seed, device)
    kinds = {**linear, "learnt": learnt, SAFEST: _join(better, learnt)}
    for classifier in kinds.values() if can_judge(val) else ():
        alone = measure_accuracy(classifier, val)
        classifier.agreement.fill_(1)
        if measure_accuracy(classifier, val) <= alone:
            classifier.agreement.zero_()
    return kinds


@torch.no_grad()
def _compute_statistics(crops: LabelledCrops) -> Tensor:
    """Compute the statistics of masks [K, F], float64."""
    crops_K4PP, extents_K2, _ = crops.to_tensors()
    parts = [slice(start, start + BATCH) for start in range(0, len(crops), BATCH)]
    return torch.cat([compute_statistics(crops_K4PP[part].float() / 255, extents_K2[part]) for part in parts]).double()


@dataclass(frozen=True, slots=True)
class _Moments:
    """Statistics of masks, standardized, and how they are spread.

    Attributes:
        mean_F, deviation_F: what they are standardized by.
        values_KF: standardized.
        means_CF: of each class; zeros of one without examples.
        counts_C: examples.
        within_FF: their covariance within classes, shrunk.
    """

    mean_F: Tensor
    deviation_F: Tensor
    values_KF: Tensor
    means_CF: Tensor
    counts_C: Tensor
    within_FF: Tensor

    @classmethod
    def compute(cls, statistics_KF: Tensor, labels_K: Tensor, classes: int) -> "_Moments":
        mean_F = statistics_KF.mean(dim=0)
        deviation_F = statistics_KF.std(dim=0, correction=0).clamp(min=SMALLEST_DEVIATION)
        values_KF = (statistics_KF - mean_F) / deviation_F
        own_KC = functional.one_hot(labels_K, classes).double()
        counts_C = own_KC.sum(dim=0)
        means_CF = own_KC.T @ values_KF / counts_C.clamp(min=1)[:, None]
        away_KF = values_KF - means_CF[labels_K]
        # as if one more mask were known, as far from its class as masks are from one another: classes may have one example
        free = len(labels_K) - int((counts_C > 0).sum()) + 1
        within_FF = (away_KF.T @ away_KF + torch.eye(len(mean_F)).double()) / free
        within_FF = (1 - SHRINKAGE) * within_FF + SHRINKAGE * torch.diag(torch.diag(within_FF))
        return cls(mean_F, deviation_F, values_KF, means_CF, counts_C, within_FF)

    def to_linear(self, weights_CF: Tensor, bias_C: Tensor) -> tuple[Tensor, Tensor]:
        """Give weights and bias for statistics as they are; a class without examples is never named."""
        weights_CF = weights_CF / self.deviation_F
        bias_C = bias_C - weights_CF @ self.mean_F
        is_known_C = self.counts_C > 0
        return weights_CF * is_known_C[:, None], torch.where(is_known_C, bias_C, NEVER)


def fit_discriminant(statistics_KF: Tensor, labels_K: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Fit a linear discriminant: what varies within classes, as light does, counts little. It needs few examples.

    Returns:
        Weights [C, F] and bias [C].
    """
    moments = _Moments.compute(statistics_KF, labels_K, classes)
    weights_CF = torch.linalg.solve(moments.within_FF, moments.means_CF.T).T
    shares_C = moments.counts_C / len(labels_K)
    bias_C = shares_C.clamp(min=1e-9).log() - (weights_CF * moments.means_CF).sum(dim=1) / 2
    return moments.to_linear(weights_CF, bias_C)


def fit_regression(statistics_KF: Tensor, labels_K: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Fit a logistic regression on statistics without correlation within classes: better than the discriminant of many examples.

    Returns:
        Weights [C, F] and bias [C].
    """
    moments = _Moments.compute(statistics_KF, labels_K, classes)
    root_FF = torch.linalg.cholesky(moments.within_FF)
    white_KF = torch.linalg.solve_triangular(root_FF, moments.values_KF.T, upper=False).T
    weights_CF = torch.zeros_like(moments.means_CF).requires_grad_()
    bias_C = torch.zeros(classes, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.LBFGS([weights_CF, bias_C], max_iter=60, line_search_fn="strong_wolfe")

    def compute_loss() -> Tensor:
        optimizer.zero_grad()
        logits_KC = functional.linear(white_KF, weights_CF, bias_C)
        loss = functional.cross_entropy(logits_KC, labels_K) + PULL / len(labels_K) * weights_CF.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(compute_loss)  # type: ignore[no-untyped-call]
    weights_CF = torch.linalg.solve_triangular(root_FF.T, weights_CF.detach().T, upper=True).T
    return moments.to_linear(weights_CF, bias_C.detach())


def _build_linear(classes: int, fitted: tuple[Tensor, Tensor]) -> MaskClassifier:
    classifier = MaskClassifier(classes, width=0, statistics=True).eval()
    weights_CF, bias_C = fitted
    fitted_parts = {"statistics.weight": weights_CF.float(), "statistics.bias": bias_C.float()}
    classifier.load_state_dict({**classifier.state_dict(), **fitted_parts})
    return classifier


def _join(linear: MaskClassifier, learnt: MaskClassifier) -> MaskClassifier:
    """Build the classifier whose logits are the sum of two."""
    both = MaskClassifier(learnt.settings["classes"], width=learnt.settings["width"], statistics=True)
    both.load_state_dict({**linear.state_dict(), **learnt.state_dict()})
    return both.eval()


def _train(train: LabelledCrops, classes: int, steps: int, seed: int, device: torch.device) -> MaskClassifier:
    """Train features of crops; what comes out lies on the CPU."""
    rng = np.random.default_rng(seed)
    crops_K4PP, extents_K2, labels_K = train.to_tensors()
    counts_C = np.bincount(train.labels_K, minlength=classes)
    shares_K = 1 / np.sqrt(counts_C[train.labels_K])
    shares_K /= shares_K.sum()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = MaskClassifier(classes, width=WIDTH, statistics=False).train().to(device)
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
        for _ in range(steps):
            chosen = torch.from_numpy(rng.choice(len(labels_K), BATCH, p=shares_K))
            changed = change_crops(crops_K4PP[chosen], extents_K2[chosen], rng)
            logits = classifier(*(part.to(device) for part in changed))
            loss = functional.cross_entropy(logits, labels_K[chosen].to(device), label_smoothing=SMOOTHING)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return classifier.cpu().eval()


def change_crops(crops_K4PP: Tensor, extents_K2: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mirror and turn crops, all alike, and change the brightness and contrast of each.

    Returns:
        Crops, float, 0 to 255, and extents.
    """
    crops_K4PP = crops_K4PP.float()
    for axis in (2, 3):
        if rng.random() < 0.5:
            crops_K4PP = crops_K4PP.flip(axis)
    if rng.random() < 0.5:
        crops_K4PP = crops_K4PP.transpose(2, 3)
        extents_K2 = extents_K2 * torch.tensor([1.0, -1.0])  # height over width
    gain_K111, shift_K111 = (
        torch.from_numpy(rng.uniform(-limit, limit, (len(crops_K4PP), 1, 1, 1))).float() for limit in (GAIN, SHIFT)
    )
    colors_K3PP = (crops_K4PP[:, :3] * (1 + gain_K111) + 255 * shift_K111).clamp(0, 255)
    return torch.cat([colors_K3PP, crops_K4PP[:, 3:]], dim=1), extents_K2


@torch.no_grad()
def measure_accuracy(classifier: MaskClassifier, crops: LabelledCrops) -> float:
    """Compute the share of masks that are named rightly; NaN of none."""
    if not len(crops):
        return float("nan")
    crops_K4PP, extents_K2, labels_K = crops.to_tensors()
    right = 0
    for image in np.unique(crops.images_K):
        own = torch.from_numpy(np.flatnonzero(crops.images_K == image))
        right += int((classifier(crops_K4PP[own], extents_K2[own]).argmax(dim=1) == labels_K[own]).sum())
    return right / len(crops)
