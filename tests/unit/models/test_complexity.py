import pytest

from vpexp.stages.models import compute_complexity


def test_compute_complexity__official_parameter_counts():
    tiny, vit_b = compute_complexity("sam_tiny_vit"), compute_complexity("sam_vit_b")
    assert tiny.parameters_by_part == {
        "image_encoder": 5_743_892,
        "prompt_encoder": 6_220,
        "mask_decoder": 4_058_340,
    }
    assert vit_b.parameters == 93_735_472
    assert vit_b.megabytes == pytest.approx(374.9, abs=0.1)


def test_compute_complexity__near_the_published_multiply_adds():
    assert compute_complexity("sam_tiny_vit").gflops_by_part["image_encoder"] / 2 == pytest.approx(38.55, rel=0.01)
    assert compute_complexity("sam_vit_b").gflops_by_part["image_encoder"] / 2 == pytest.approx(454.76, rel=0.1)


def test_compute_complexity__attention_by_hand():
    # One image of 64 px: 16 tokens, 32 channels. The windowed block fills 4 x 4 tokens up to 6 x 6, four windows of 9.
    linear_per_token = 2 * 32 * (3 * 32 + 32)
    perceptron_per_token = 2 * 2 * 32 * 128

    def attention(tokens, side, channels=32):
        return 2 * 2 * tokens * tokens * channels + 2 * tokens * 2 * side * channels

    windowed = 36 * linear_per_token + 16 * perceptron_per_token + 4 * attention(9, 3)
    whole = 16 * (linear_per_token + perceptron_per_token) + attention(16, 4)
    patches_and_neck = 2 * 16 * (3 * 256 * 32 + 32 * 256 + 9 * 256 * 256)
    found = compute_complexity("sam_debug").gflops_by_part["image_encoder"] * 1e9
    assert found == pytest.approx(windowed + whole + patches_and_neck, abs=1)


def test_compute_complexity__image_size():
    small, large = compute_complexity("sam_micro", 128), compute_complexity("sam_micro", 448)
    assert small.image_size == 128
    assert small.gflops < large.gflops / 4
    assert small.gmacs == small.gflops / 2
