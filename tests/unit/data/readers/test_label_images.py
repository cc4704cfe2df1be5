import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from vpexp.data.masks import decode_rle
from vpexp.data.readers.label_images import (
    UNKNOWN_COLOR,
    VOID,
    MaskFileError,
    build_voc_colors,
    find_values,
    find_void,
    read_index_mask,
    split_components,
)

VALUES_HW = np.array([[0, 1, 1, 255], [0, 2, 2, 255], [7, 7, 0, 0]], dtype=np.uint8)


def voc_palette():
    return [channel for color in build_voc_colors() for channel in color]


def save(path, image):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)
    return path


def test_build_voc_colors__known_entries():
    colors = build_voc_colors()
    assert len(colors) == 256
    assert colors[0, 0, 0] == 0
    assert colors[128, 0, 0] == 1
    assert colors[192, 128, 128] == 15
    assert colors[0, 64, 128] == 20
    assert colors[224, 224, 192] == VOID


def test_build_voc_colors__as_datumaro_has_them():
    from datumaro.plugins.data_formats.voc.format import VocInstColormap

    expected = {tuple(int(channel) for channel in color): index for index, color in VocInstColormap.items()}
    assert build_voc_colors() == expected


def test_read_index_mask__grey(tmp_path):
    np.testing.assert_array_equal(read_index_mask(save(tmp_path / "a.png", VALUES_HW), {}), VALUES_HW)


def test_read_index_mask__grey_is_never_looked_up(tmp_path):
    path = save(tmp_path / "a.png", VALUES_HW)
    np.testing.assert_array_equal(read_index_mask(path, build_voc_colors()), VALUES_HW)


def test_read_index_mask__sixteen_bit(tmp_path):
    values_HW = np.array([[0, 300], [65535, 2]], dtype=np.uint16)
    np.testing.assert_array_equal(read_index_mask(save(tmp_path / "a.png", values_HW), {}), values_HW)


def test_read_index_mask__bilevel_and_grey_with_alpha(tmp_path):
    bits = save(tmp_path / "a.png", Image.fromarray(VALUES_HW > 0))
    np.testing.assert_array_equal(read_index_mask(bits, {}), VALUES_HW > 0)
    grey = save(tmp_path / "b.png", Image.merge("LA", [Image.fromarray(VALUES_HW)] * 2))
    np.testing.assert_array_equal(read_index_mask(grey, {}), VALUES_HW)


@pytest.mark.parametrize("colors", [{}, build_voc_colors(), {(1, 2, 3): 9}])
def test_read_index_mask__voc_palette(tmp_path, colors):
    image = Image.fromarray(VALUES_HW)
    image.putpalette(voc_palette())
    np.testing.assert_array_equal(read_index_mask(save(tmp_path / "a.png", image), colors), VALUES_HW)


def test_read_index_mask__renumbered_palette_goes_by_colour(tmp_path):
    renumber = np.zeros(256, dtype=np.uint8)
    renumber[[0, 1, 2, 7, 255]] = [3, 0, 1, 4, 2]
    colors = {index: color for color, index in build_voc_colors().items()}
    image = Image.fromarray(renumber[VALUES_HW])
    image.putpalette([channel for old in (1, 2, 255, 0, 7) for channel in colors[old]])
    path = save(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read_index_mask(path, build_voc_colors()), VALUES_HW)


def test_read_index_mask__colours(tmp_path):
    colors = {index: color for color, index in build_voc_colors().items()}
    table = np.array([colors[index] for index in range(256)], dtype=np.uint8)
    for mode in ("RGB", "RGBA"):
        path = save(tmp_path / f"{mode}.png", Image.fromarray(table[VALUES_HW]).convert(mode))
        np.testing.assert_array_equal(read_index_mask(path, build_voc_colors()), VALUES_HW)


def test_read_index_mask__undeclared_colour(tmp_path):
    image_HW3 = np.zeros((2, 2, 3), dtype=np.uint8)
    image_HW3[0, 0] = (1, 2, 3)
    values_HW = read_index_mask(save(tmp_path / "a.png", image_HW3), {(0, 0, 0): 0})
    np.testing.assert_array_equal(values_HW, [[UNKNOWN_COLOR + 0x010203, 0], [0, 0]])


def test_read_index_mask__grey_saved_as_rgb(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(VALUES_HW).convert("RGB"))
    np.testing.assert_array_equal(read_index_mask(path, {}), VALUES_HW)
    np.testing.assert_array_equal(read_index_mask(path, {(0, 0, 0): 0, (255, 0, 0): 1}), VALUES_HW)


def test_read_index_mask__grey_colours_that_are_declared(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(VALUES_HW * 0 + 128).convert("RGB"))
    assert (read_index_mask(path, {(128, 128, 128): 5}) == 5).all()


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_read_index_mask__damaged_or_missing(tmp_path, content):
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MaskFileError, match=r"a\.png"):
        read_index_mask(path, {})


@given(hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.integers(0, 5)))
def test_find_values__as_numpy(values_HW):
    assert find_values(values_HW) == np.unique(values_HW).tolist()


def test_split_components__corners_connect():
    mask_HW = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=bool)
    parts = [decode_rle(part) for part in split_components(mask_HW)]
    assert [int(part.sum()) for part in parts] == [2, 2, 2]
    np.testing.assert_array_equal(np.any(parts, axis=0), mask_HW)
    assert split_components(np.zeros((2, 2), dtype=bool)) == []


@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"])
def test_read_index_mask__numbers_of_any_type(tmp_path, write_tiff, dtype):
    values_HW = np.array([[0, 1, 256], [300, 1000, 2]]).astype(dtype)
    if dtype in ("u4", "u8", "i8", "f8"):
        values_HW[0, 0] = 70_000
        values_HW[1, 0] = 2**32 - 1
    if np.dtype(dtype).kind != "u":
        values_HW[0, 1] = -1
    for order in "<>":
        path = write_tiff(tmp_path / "a.tif", values_HW, order=order)
        np.testing.assert_array_equal(read_index_mask(path, {}), values_HW)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([[0.0, 1.5]], "mask values are no whole numbers"),
        ([[0.0, np.nan]], "mask values are no whole numbers"),
        ([[0.0, np.inf]], "mask values are no whole numbers"),
        ([[0.0, 2.0**32]], r"mask values of 2\*\*32 and more"),
    ],
)
def test_read_index_mask__no_numbers_of_things(tmp_path, write_tiff, values, reason):
    with pytest.raises(MaskFileError, match=rf"a\.tif: {reason}"):
        read_index_mask(write_tiff(tmp_path / "a.tif", np.array(values)), {})


def test_read_index_mask__pages_and_kinds(tmp_path, write_tiff):
    page_HW = np.ones((2, 3), np.uint8)
    for count in (2, 3):
        with pytest.raises(MaskFileError, match="mask file has several pages"):
            read_index_mask(write_tiff(tmp_path / "a.tif", *[page_HW] * count), {})
    with pytest.raises(MaskFileError, match=r"mask: kind of TIFF not read \(3 channels of 8 bits, Lab\)"):
        read_index_mask(write_tiff(tmp_path / "a.tif", np.ones((2, 3, 3), np.uint8), colour=8), {})
    (tmp_path / "a.npy").write_bytes(b"numbers")
    with pytest.raises(MaskFileError, match=r"mask: file type not read \(\.npy\)"):
        read_index_mask(tmp_path / "a.npy", {})
    with pytest.raises(MaskFileError, match="mask file is missing"):
        read_index_mask(tmp_path / "b.png", {})


@pytest.mark.parametrize("bits", [2, 4])
def test_read_index_mask__few_bits(tmp_path, bits):
    values_HW = np.arange(8).reshape(2, 4) % (1 << bits)
    packed = [int("".join(f"{value:0{bits}b}" for value in row), 2).to_bytes(4 * bits // 8, "big") for row in values_HW]
    header = struct.pack(">IIBBBBB", 4, 2, bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in packed))), (b"IEND", b"")]
    content = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    np.testing.assert_array_equal(read_index_mask(tmp_path / "a.png", {}), values_HW)


def test_read_index_mask__sixteen_bit_with_alpha_or_colours(tmp_path):
    import cv2

    grey_HW = np.array([[0, 300, 7]], dtype=np.uint16)
    opaque_HW = np.full_like(grey_HW, 65535)
    cv2.imwrite(str(tmp_path / "a.png"), np.dstack([grey_HW] * 3 + [opaque_HW]))
    np.testing.assert_array_equal(read_index_mask(tmp_path / "a.png", {}), grey_HW)
    cv2.imwrite(str(tmp_path / "b.png"), np.dstack([grey_HW, opaque_HW, grey_HW]))
    with pytest.raises(MaskFileError, match="mask colours of more than 8 bits"):
        read_index_mask(tmp_path / "b.png", {})


def test_find_void__as_numbers_above_255_have_it():
    assert find_void({0, 1, 255}) == find_void({0, UNKNOWN_COLOR + 5}) == 255
    assert find_void({0, 255, 256}) == 65535


def test_read_index_mask__palettes_of_fewer_colours_than_numbers(tmp_path):
    picture = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8))
    colors = build_voc_colors()
    for palette, of_instances, expected in (
        ([0] * 768, False, [0, 1, 2]),  # no colour was ever set
        ([0, 0, 0] + [128, 0, 0] * 255, False, [0, 1, 1]),  # parts of one class
        ([0, 0, 0] + [128, 0, 0] * 255, True, [0, 1, 2]),
    ):
        picture.putpalette(palette)
        read_HW = read_index_mask(save(tmp_path / "a.png", picture), colors, of_instances=of_instances)
        assert read_HW.tolist() == [expected]
