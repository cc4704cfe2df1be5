import numpy as np
import pytest
import torch

from vpexp.data.interface import SAM, EmbeddingMap, Interface
from vpexp.inference.exported import MODEL_TYPES
from vpexp.models.registry import build_sam_debug
from vpexp.models.sam2 import INTERFACE, build_sam2_debug


def draw_maps(interface, image_size=64, images=2):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(images, *one.get_shape(image_size))).astype(np.float32) for one in interface.maps]


def test_pack__keeps_every_value_at_its_place():
    maps = draw_maps(INTERFACE)
    packed = INTERFACE.pack(maps)
    assert packed.shape == (2, INTERFACE.channels, 4, 4) == (2, 1024, 4, 4)
    first, second, third = maps
    np.testing.assert_array_equal(packed[:, :256], first)
    # The cell of row 2 and column 3 holds rows 4 and 5, columns 6 and 7 of the map of stride 8 ...
    np.testing.assert_array_equal(packed[1, 256:512, 2, 3].reshape(2, 2, 64), second[1, :, 4:6, 6:8].transpose(1, 2, 0))
    # ... and of that of stride 4 rows 8 to 11, columns 12 to 15, half by half.
    cells = packed[1, 512:, 2, 3].reshape(2, 2, 2, 2, 32).transpose(0, 2, 1, 3, 4).reshape(4, 4, 32)
    np.testing.assert_array_equal(cells, third[1, :, 8:12, 12:16].transpose(1, 2, 0))


@pytest.mark.parametrize("interface", [SAM, INTERFACE])
def test_unpack__undoes_pack(interface):
    maps = draw_maps(interface)
    unpacked = interface.unpack(interface.pack(maps))
    assert list(unpacked) == list(interface.names)
    for found, expected in zip(unpacked.values(), maps, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_pack__torch_packs_alike():
    maps = draw_maps(INTERFACE)
    packed = build_sam2_debug().pack([torch.from_numpy(array) for array in maps])
    np.testing.assert_array_equal(packed.numpy(), INTERFACE.pack(maps))


@pytest.mark.parametrize(
    "interface", [SAM, INTERFACE, Interface((EmbeddingMap("x", 8), EmbeddingMap("y", 3, 8)), "stretch")]
)
def test_parse__reads_what_describe_writes(interface):
    assert Interface.parse(interface.describe()) == interface
    assert Interface.parse({"model_type": MODEL_TYPES["decoder"]}) == SAM  # of a version that wrote nothing of this


@pytest.mark.parametrize(
    "info",
    [
        {"resize_type": "crop"},
        {"embedding": "[]"},
        {"embedding": '[["a", 8, 8]]'},
        {"embedding": '[["a", 8, 16], ["b", 8, 5]]'},
        {"embedding": "nothing"},
        {"logit_limit": "high"},
    ],
)
def test_parse__refuses_what_was_changed(info):
    with pytest.raises((KeyError, TypeError, ValueError)):
        Interface.parse(info)


def test_sam__has_the_interface_of_its_family():
    assert build_sam_debug().interface == SAM
    assert build_sam2_debug().interface.names == ("image_embed", "high_res_feats_1", "high_res_feats_0")
