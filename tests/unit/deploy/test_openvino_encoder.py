"""The encoder straight from torch to OpenVINO gives what torch gives."""

import numpy as np
import torch

from vpexp.deploy.openvino_format import build_openvino_encoder
from vpexp.embeddings.cache import EncoderPasses


def test_build_openvino_encoder__equals_torch(micro_sam):
    size = micro_sam.image_size
    images = np.random.default_rng(0).normal(size=(2, 1, 3, size, size)).astype(np.float32)
    passes = EncoderPasses(micro_sam)
    encode = build_openvino_encoder(micro_sam, threads=1)
    assert passes.images == 0, "a conversion encodes no image"
    first, second = (encode(image_13SS) for image_13SS in images)
    for image_13SS, found_1CHW in zip(images, (first, second), strict=True):
        with torch.no_grad():
            expected_1CHW = micro_sam.encode_image(torch.from_numpy(image_13SS)).numpy()
        np.testing.assert_allclose(found_1CHW, expected_1CHW, rtol=0, atol=1e-4)
