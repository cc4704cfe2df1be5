"""The loss against numbers worked out by hand, closed forms and finite differences."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from vpexp.config.schema import LossConfig
from vpexp.training.losses import MaskLoss, compute_focal_and_dice, compute_mask_iou


def mask(*rows: str) -> torch.Tensor:
    """[1, rows, columns] from strings of # and blanks."""
    return torch.tensor([[[float(c == "#") for c in row] for row in rows]])


def focal_at(logit: float, target: int, alpha: float = 0.25, gamma: float = 2.0) -> float:
    probability = 1 / (1 + math.exp(-logit))
    p_t, alpha_t = (probability, alpha) if target else (1 - probability, 1 - alpha)
    return -alpha_t * (1 - p_t) ** gamma * math.log(p_t)


def focal_slope_at(logit: float, alpha: float = 0.25, gamma: float = 2.0) -> float:
    """The derivative by the logit, for a foreground pixel: alpha (1-p)^gamma (gamma p log p + p - 1)."""
    p = 1 / (1 + math.exp(-logit))
    return alpha * (1 - p) ** gamma * (gamma * p * math.log(p) + p - 1)


DEFAULTS = {"alpha": 0.25, "gamma": 2.0}


def random_case(count: int = 3, size: int = 6, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, size, size, generator=generator, dtype=dtype) * 3
    targets = (torch.rand(count, size, size, generator=generator) > 0.5).to(dtype)
    return logits, targets


def compute_focal(logits: torch.Tensor, targets: torch.Tensor, **options: float) -> torch.Tensor:
    return compute_focal_and_dice(logits, targets, **{**DEFAULTS, **options})[0]


def compute_dice(logits: torch.Tensor, targets: torch.Tensor, **options: float) -> torch.Tensor:
    return compute_focal_and_dice(logits, targets, **{**DEFAULTS, **options})[1]


def test_focal__is_the_mean_of_hand_computed_pixels() -> None:
    logits = torch.tensor([[[-6.0, 0.0], [2.0, 5.0]]])
    targets = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    expected = (focal_at(-6, 1) + focal_at(0, 0) + focal_at(2, 1) + focal_at(5, 0)) / 4
    found = compute_focal(logits, targets)
    assert found.shape == (1,)
    assert found.item() == pytest.approx(expected, rel=1e-6)
    # 0.75 x 0.25 x log 2: the one number that is easy by hand
    assert focal_at(0, 0) == pytest.approx(0.75 * 0.25 * math.log(2))


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.9, 1.0), (0.25, 3.5)])
def test_focal__follows_alpha_and_gamma(alpha: float, gamma: float) -> None:
    logits = torch.tensor([[[-3.0, 1.5]]])
    targets = torch.tensor([[[1.0, 0.0]]])
    found = compute_focal(logits, targets, alpha=alpha, gamma=gamma)
    expected = (focal_at(-3, 1, alpha, gamma) + focal_at(1.5, 0, alpha, gamma)) / 2
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_focal__missed_foreground_pixel_gets_the_full_gradient() -> None:
    """A sigmoid applied twice would leave about -0.001 of it: a pixel that the model is sure about never recovers."""
    logits = torch.full((1, 1, 1), -6.0, requires_grad=True)
    compute_focal(logits, torch.ones(1, 1, 1)).sum().backward()
    assert logits.grad is not None
    assert focal_slope_at(-6.0) == pytest.approx(-0.2555, abs=1e-4)
    assert logits.grad.item() == pytest.approx(focal_slope_at(-6.0), rel=1e-5)
    # through the whole loss as well: focal x 20, and what dice and the IoU term add has the same sign
    logits = torch.full((1, 1, 1), -6.0, requires_grad=True)
    MaskLoss(LossConfig())(logits, torch.zeros(1), torch.ones(1, 1, 1)).total.backward()
    assert logits.grad is not None
    assert logits.grad.item() < 20 * focal_slope_at(-6.0)
    twice = torch.full((1, 1, 1), -6.0, requires_grad=True)
    compute_focal(torch.sigmoid(twice), torch.ones(1, 1, 1)).sum().backward()
    assert twice.grad is not None
    assert abs(twice.grad.item()) < 0.005


@pytest.mark.parametrize("logit", [-90.0, -20.0, -1.0, 0.0, 3.0, 20.0, 90.0])
def test_focal__gradient_equals_the_closed_form_everywhere(logit: float) -> None:
    logits = torch.full((1, 1, 1), logit, dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    compute_focal(logits, one).sum().backward()
    assert logits.grad is not None
    assert logits.grad.item() == pytest.approx(focal_slope_at(logit), rel=1e-6, abs=1e-12)


def test_dice__equals_hand_computed_numbers() -> None:
    logits = torch.tensor([[[200.0, 0.0], [-200.0, -200.0]]])  # probabilities 1, 1/2, 0, 0
    targets = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    # overlap 1, sums 1.5 and 2, smoothing 1: 1 - (2 + 1) / (3.5 + 1)
    assert compute_dice(logits, targets).item() == pytest.approx(1 - 3 / 4.5)
    assert compute_dice(400 * targets - 200, targets).item() == pytest.approx(0)
    assert compute_dice(logits, targets, smoothing=0.5).item() == pytest.approx(1 - 2.5 / 4)


def test_mask_iou__counts_pixels_above_zero() -> None:
    targets = mask("##..", "##..", "....")
    logits = mask("#...", "##..", "####") * 2 - 1
    assert compute_mask_iou(logits, targets).item() == pytest.approx(3 / 8)
    assert compute_mask_iou(logits[:, :2], targets[:, :2]).item() == pytest.approx(3 / 4)
    assert compute_mask_iou(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)).item() == 0


def test_mask_loss__adds_the_weighted_means_of_all_masks() -> None:
    logits, targets = random_case()
    predicted_iou = torch.tensor([0.2, 0.5, 0.9])
    terms = MaskLoss(LossConfig(focal_weight=7, dice_weight=3, iou_weight=2))(logits, predicted_iou, targets)
    focal = dice = iou = 0.0
    for n in range(3):
        pixels = [(r, c) for r in range(6) for c in range(6)]
        focal += sum(focal_at(logits[n, r, c].item(), int(targets[n, r, c])) for r, c in pixels) / len(pixels)
        p = [1 / (1 + math.exp(-logits[n, r, c].item())) for r, c in pixels]
        t = [targets[n, r, c].item() for r, c in pixels]
        dice += 1 - (2 * sum(a * b for a, b in zip(p, t, strict=True)) + 1) / (sum(p) + sum(t) + 1)
        hit = [logits[n, r, c].item() > 0 for r, c in pixels]
        union = sum(h or b > 0 for h, b in zip(hit, t, strict=True))
        true_iou = sum(h and b > 0 for h, b in zip(hit, t, strict=True)) / union
        iou += (predicted_iou[n].item() - true_iou) ** 2
    assert terms.focal.item() == pytest.approx(focal / 3, rel=1e-5)
    assert terms.dice.item() == pytest.approx(dice / 3, rel=1e-5)
    assert terms.iou.item() == pytest.approx(iou / 3, rel=1e-5)
    assert terms.total.item() == pytest.approx((7 * focal + 3 * dice + 2 * iou) / 3, rel=1e-5)


def test_mask_loss__default_weights_are_20_1_1() -> None:
    logits, targets = random_case()
    terms = MaskLoss(LossConfig())(logits, torch.tensor([0.2, 0.5, 0.9]), targets)
    assert terms.total.item() == pytest.approx((20 * terms.focal + terms.dice + terms.iou).item())


@pytest.mark.parametrize("options", [{}, {"alpha": 0.7, "gamma": 1.5, "smoothing": 0.1}, {"gamma": 0.0}])
def test_losses__gradients_equal_finite_differences(options: dict[str, float]) -> None:
    logits, targets = random_case(dtype=torch.float64)
    logits.requires_grad_()
    assert gradcheck(lambda x: compute_focal_and_dice(x, targets, **{**DEFAULTS, **options}), (logits,))


def test_losses__equal_autograd_of_the_formulas() -> None:
    logits, targets = random_case()
    found, expected = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    focal, dice = compute_focal_and_dice(found, targets, **DEFAULTS)
    (3 * focal.sum() + 2 * dice.sum()).backward()
    p = torch.sigmoid(expected)
    p_t = p * targets + (1 - p) * (1 - targets)
    weight = 0.25 * targets + 0.75 * (1 - targets)
    plain_focal = (-weight * (1 - p_t) ** 2 * p_t.log()).mean(dim=(1, 2))
    plain_dice = 1 - (2 * (p * targets).sum(dim=(1, 2)) + 1) / ((p + targets).sum(dim=(1, 2)) + 1)
    (3 * plain_focal.sum() + 2 * plain_dice.sum()).backward()
    torch.testing.assert_close(focal, plain_focal)
    torch.testing.assert_close(dice, plain_dice)
    torch.testing.assert_close(found.grad, expected.grad)


def test_mask_loss__iou_term_teaches_the_iou_head_only() -> None:
    logits, targets = random_case()
    logits.requires_grad_()
    predicted_iou = torch.tensor([0.2, 0.5, 0.9], requires_grad=True)
    terms = MaskLoss(LossConfig(focal_weight=0, dice_weight=0))(logits, predicted_iou, targets)
    terms.total.backward()
    assert predicted_iou.grad is not None
    true_iou = compute_mask_iou(logits, targets)
    torch.testing.assert_close(predicted_iou.grad, 2 * (predicted_iou.detach() - true_iou) / 3)
    assert logits.grad is not None
    assert not logits.grad.any()


def test_mask_loss__no_masks_is_zero_with_a_gradient() -> None:
    logits = torch.zeros(0, 4, 4, requires_grad=True)
    terms = MaskLoss(LossConfig())(logits, torch.zeros(0), torch.zeros(0, 4, 4))
    assert terms.total.item() == 0
    terms.total.backward()
    assert logits.grad is not None


def test_mask_loss__empty_target_pushes_down() -> None:
    logits = torch.zeros(1, 4, 4, requires_grad=True)
    terms = MaskLoss(LossConfig())(logits, torch.zeros(1), torch.zeros(1, 4, 4))
    assert terms.dice.item() == pytest.approx(1 - 1 / (8 + 1))
    assert terms.iou.item() == 0
    terms.total.backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mask_loss__half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    size = 512  # 262,144 pixels: beyond the largest number of float16, and far beyond bfloat16's 8 bits
    logits = torch.full((1, size, size), 2.0, dtype=dtype, requires_grad=True)
    targets = torch.ones(1, size, size, dtype=torch.uint8)
    terms = MaskLoss(LossConfig())(logits, torch.ones(1, dtype=dtype), targets)
    expected = MaskLoss(LossConfig())(logits.detach().float(), torch.ones(1), targets)
    assert terms.total.dtype == torch.float32
    assert terms.total.item() == pytest.approx(expected.total.item(), rel=1e-6)
    assert terms.focal.item() == pytest.approx(focal_at(2.0, 1), rel=1e-3)
    terms.total.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("logit", [-200.0, 200.0])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_mask_loss__extreme_logits_stay_finite(logit: float, target: float) -> None:
    logits = torch.full((1, 2, 2), logit, requires_grad=True)
    terms = MaskLoss(LossConfig())(logits, torch.zeros(1), torch.full((1, 2, 2), target))
    terms.total.backward()
    assert logits.grad is not None
    assert torch.isfinite(terms.total)
    assert torch.isfinite(logits.grad).all()
