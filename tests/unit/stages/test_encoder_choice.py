"""What fills the cache: by name, or OpenVINO where there is enough for a conversion to pay."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from vpexp.embeddings.cache import EncoderPasses
from vpexp.errors import ConfigError
from vpexp.models.sam import Sam
from vpexp.stages.shared.embeddings import IMAGES_WORTH_CONVERTING, _choose_encoder

ENOUGH = IMAGES_WORTH_CONVERTING * (1024 // 64) ** 2


def choose(sam, missing, backend="auto"):
    cfg = OmegaConf.create({"cache": {"backend": backend}, "trainer": {"threads": 1}})
    passes = EncoderPasses(sam)
    return _choose_encoder(cfg, sam, passes, missing), passes


@pytest.mark.parametrize(
    ("backend", "missing", "name"),
    [
        ("auto", ENOUGH - 1, "torch"),
        ("auto", ENOUGH, "openvino"),
        ("torch", ENOUGH, "torch"),
        ("openvino", 1, "openvino"),
        ("openvino", 0, "torch"),  # nothing to encode, nothing to convert
    ],
)
def test_choose_encoder__by_name_or_by_the_number_of_pixels(debug_sam, backend, missing, name):
    encoder, passes = choose(debug_sam, missing, backend)
    image_13SS = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    encoded_1CHW = encoder.encode(image_13SS)
    assert encoder.name == name
    assert passes.images == 1
    expected, _ = choose(debug_sam, 0)
    np.testing.assert_allclose(encoded_1CHW, expected.encode(image_13SS), rtol=0, atol=1e-4)


def test_choose_encoder__that_cannot_be_converted(debug_sam, caplog):
    class UnknownToOpenvino(torch.nn.Module):
        def forward(self, embeddings_BCHW):
            return torch.special.bessel_j0(embeddings_BCHW)

    encoder = torch.nn.Sequential(debug_sam.image_encoder, UnknownToOpenvino())
    sam = Sam(encoder, debug_sam.prompt_encoder, debug_sam.mask_decoder)
    reason = "this encoder cannot be converted \\(OpConversionFailure: .*\\)"
    with pytest.raises(ConfigError, match=rf"^cache\.backend=openvino: {reason}; set cache\.backend=torch$"):
        choose(sam, 1, "openvino")
    encoder, _ = choose(sam, ENOUGH)
    assert encoder.name == "torch"
    assert "No conversion rule" in caplog.text
