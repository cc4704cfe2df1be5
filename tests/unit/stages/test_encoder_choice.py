"""What fills the cache: by name, or OpenVINO where there is enough for a conversion to pay."""

import copy

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from vpexp.devices import Precision
from vpexp.embeddings.cache import EncoderPasses
from vpexp.errors import ConfigError
from vpexp.models.sam import Sam
from vpexp.stages.shared.embeddings import IMAGES_AT_ONCE, IMAGES_WORTH_CONVERTING, _choose_encoder, choose_computed

ENOUGH = IMAGES_WORTH_CONVERTING * (1024 // 64) ** 2


def choose(sam, missing, backend="auto"):
    cfg = OmegaConf.create({"cache": {"backend": backend}, "trainer": {"threads": 1, "compile": False}})
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


def test_choose_encoder__openvino_is_no_gpu_s_and_says_so(debug_sam, capsys):
    sam = copy.deepcopy(debug_sam).to("meta")  # in place of a GPU
    encoder, _ = choose(sam, ENOUGH, "openvino")
    assert (encoder.name, encoder.batch_size) == ("torch", IMAGES_AT_ONCE)
    assert "cache.backend=openvino is for CPUs: torch encodes on meta" in capsys.readouterr().out


def test_choose_encoder__what_computes_in_bfloat16_is_torch(debug_sam):
    sam = copy.deepcopy(debug_sam)
    sam.encoder_dtype = torch.bfloat16
    assert choose(sam, ENOUGH)[0].name == "torch"


BF16, FP32 = Precision("bf16-mixed", ""), Precision("32-true", "")


@pytest.mark.parametrize(
    ("asked", "backend", "precision", "native", "computed"),
    [
        ("auto", "auto", BF16, "AMX", "bfloat16"),
        ("auto", "torch", BF16, "AMX", "bfloat16"),
        ("auto", "auto", BF16, None, "float32"),  # a CPU that would imitate it
        ("auto", "openvino", BF16, "AMX", "float32"),
        ("auto", "auto", FP32, "AMX", "float32"),
        ("auto", "auto", None, "AMX", "float32"),  # a test
        ("bfloat16", "auto", None, None, "bfloat16"),
        ("float32", "auto", BF16, "AMX", "float32"),
    ],
)
def test_choose_computed__follows_the_training_where_that_is_fast(asked, backend, precision, native, computed):
    cfg = OmegaConf.create({"cache": {"compute": asked, "backend": backend}})
    assert choose_computed(cfg, torch.device("cpu"), precision, native) == computed


def test_choose_computed__openvino_computes_in_float32():
    cfg = OmegaConf.create({"cache": {"compute": "bfloat16", "backend": "openvino"}})
    with pytest.raises(ConfigError, match=r"^cache\.compute=bfloat16: OpenVINO .* set cache\.backend=torch$"):
        choose_computed(cfg, torch.device("cpu"), None, None)
