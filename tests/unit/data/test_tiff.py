"""Every kind of TIFF: read as numpy wrote it, or refused in words that describe it."""

import numpy as np
import pytest
from PIL import Image

from vpexp.data.image_files import ImageFileError
from vpexp.data.images import open_image, read_image, read_image_header, read_thumbnail

TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")


def draw(dtype, *shape, low=0, high=100, seed=0):
    values = np.random.default_rng(seed).uniform(low, high, shape)
    return (np.rint(values) if np.dtype(dtype).kind != "f" else values).astype(dtype)


def read_numbers(path):
    with open_image(path) as file:
        return file.read_numbers()


def spread(values, like):
    """The smallest of ``like`` to 0, the largest to 255; bytes stay as they are."""
    if like.dtype == np.uint8:
        return values
    low, high = (float(one) for one in (like.min(), like.max()))
    return np.rint((values.astype(np.float64) - low) / (high - low) * 255)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", TYPES)
def test_tiff__numbers_of_any_type(tmp_path, write_tiff, dtype, order):
    low, high = {"u": (0, 250), "i": (-100, 100), "f": (-3, 4)}[np.dtype(dtype).kind]
    grey = draw(dtype, 5, 7, low=low, high=high)
    grey[0, 0] = 3_000_000_000 if dtype in ("u4", "u8", "i8") else grey[0, 0]
    path = write_tiff(tmp_path / "grey.tif", grey, order=order)
    np.testing.assert_array_equal(read_numbers(path), grey)
    np.testing.assert_allclose(read_image(path)[:, :, 1], spread(grey, grey), atol=1)
    assert read_image_header(path).is_wide == (dtype != "u1")
    assert read_thumbnail(path, 4).shape == (4, 4)
    for planar in (1, 2):
        colours = draw(dtype, 5, 7, 4, low=low, high=high)
        path = write_tiff(tmp_path / "rgba.tif", colours, order=order, planar=planar, colour=2, extra=[2])
        np.testing.assert_array_equal(read_numbers(path), colours)
        np.testing.assert_allclose(read_image(path), spread(colours[..., :3], colours[..., :3]), atol=1)


def test_tiff__64_bit_offsets(tmp_path, write_tiff):
    for colour, values in ((1, draw("u2", 5, 7)), (2, draw("u2", 5, 7, 3)), (2, draw("u1", 5, 7, 3))):
        np.testing.assert_array_equal(
            read_numbers(write_tiff(tmp_path / "a.tif", values, big=True, colour=colour)), values
        )
    path = write_tiff(tmp_path / "a.tif", draw("u2", 5, 7), big=True, order=">")
    np.testing.assert_array_equal(read_numbers(path), draw("u2", 5, 7))


@pytest.mark.parametrize(
    ("kind", "options", "described"),
    [
        (("u1", 2), {}, "2 channels of 8 bits, grey"),
        (("f4", 2), {"extra": [0]}, "2 channels of 32 bits, floating point, grey"),
        (("u2", 5), {"extra": [0] * 4}, "5 channels of 16 bits, grey"),
        (("u1", 3), {"colour": 8}, "3 channels of 8 bits, Lab"),
        (("u2", 4), {"colour": 5}, "4 channels of 16 bits, CMYK"),
        (("i2", 1), {"colour": 0}, "1 channel of 16 bits, signed, grey, white is 0"),
        (("u2", 1), {"tag259": 12345}, "1 channel of 16 bits, grey, compression 12345"),
        (("u1", 1), {"tag339": 6}, "1 channel of 8 bits, of no real numbers, grey"),
    ],
)
def test_tiff__kinds_that_are_refused(tmp_path, write_tiff, kind, options, described):
    dtype, channels = kind
    path = write_tiff(tmp_path / "a.tif", draw(dtype, 5, 7, channels), **options)
    for read in (read_image_header, read_image):
        with pytest.raises(ImageFileError) as caught:
            read(path)
        assert caught.value.reason == f"kind of TIFF not read ({described})"


def test_tiff__channels_behind_the_colours(tmp_path, write_tiff):
    for dtype in ("u1", "u2"):
        values = draw(dtype, 5, 7, 5)
        path = write_tiff(tmp_path / "a.tif", values, colour=2, extra=[0, 0])
        assert read_image_header(path).channels_left_out == 2
        np.testing.assert_allclose(read_image(path), spread(values[..., :3], values[..., :3]), atol=1)
    undeclared = draw("u2", 5, 7, 3)  # as scientific programs write colours
    path = write_tiff(tmp_path / "b.tif", undeclared, extra=[0, 0])
    np.testing.assert_allclose(read_image(path), spread(undeclared, undeclared), atol=1)
    veiled = draw("u2", 5, 7, 2)
    path = write_tiff(tmp_path / "c.tif", veiled, extra=[2])
    np.testing.assert_allclose(read_image(path)[..., 2], spread(veiled[..., 0], veiled[..., 0]), atol=1)


def test_tiff__white_is_zero(tmp_path, write_tiff):
    for dtype in ("u1", "u2"):
        values = draw(dtype, 5, 7)
        expected = np.iinfo(dtype).max - values
        np.testing.assert_allclose(
            read_image(write_tiff(tmp_path / "a.tif", values, colour=0))[..., 0], spread(expected, expected), atol=1
        )


@pytest.mark.parametrize("dtype", ["u1", "u2", "f8"])
def test_tiff__three_grey_pages_are_colours(tmp_path, write_tiff, dtype):
    pages = [draw(dtype, 5, 7, seed=seed) for seed in range(3)]
    colours = np.stack(pages, axis=2)
    path = write_tiff(tmp_path / "a.tif", *pages)
    header = read_image_header(path)
    assert (header.is_joined, header.pages_left_out) == (True, 0)
    np.testing.assert_allclose(read_image(path), spread(colours, colours), atol=1)
    for others in (pages[:2], [*pages, pages[0]], [*pages[:2], pages[2][:4]]):
        path = write_tiff(tmp_path / "b.tif", *others)
        header = read_image_header(path)
        assert (header.is_joined, header.pages_left_out) == (False, len(others) - 1)
        np.testing.assert_allclose(read_image(path)[..., 0], spread(pages[0], pages[0]), atol=1)


def test_tiff__stacks_of_imagej_are_no_colours(tmp_path):
    pages = [Image.fromarray(draw("u1", 5, 7, seed=seed)) for seed in range(3)]
    for text, is_joined in (("ImageJ=1.53\nslices=3\n", False), ("ImageJ=1.53\nchannels=3\n", True)):
        pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], description=text)
        assert read_image_header(tmp_path / "a.tif").is_joined == is_joined


def test_tiff__previews_are_no_pages(tmp_path, write_tiff):
    path = write_tiff(tmp_path / "a.tif", draw("u2", 5, 7), tag254=1)
    assert read_image_header(path).pages_left_out == 0
    path = write_tiff(tmp_path / "b.tif", draw("u2", 5, 7), draw("u2", 2, 3), tag254=1)
    assert read_image_header(path).pages_left_out == 0
    assert read_image(path).shape == (5, 7, 3)


@pytest.mark.parametrize("compression", [5, 8, 32946, 32773])
def test_tiff__compressed(tmp_path, compression):
    import cv2

    for dtype in ("u1", "u2", "i2", "i4", "f4", "f8"):
        for shape in ((64, 48), (64, 48, 3)):
            values = draw(dtype, *shape, high=250)
            bgr = values if values.ndim == 2 else np.ascontiguousarray(values[..., ::-1])
            path = tmp_path / "a.tif"
            if not cv2.imwrite(str(path), bgr, [cv2.IMWRITE_TIFF_COMPRESSION, compression]):
                continue
            np.testing.assert_array_equal(read_numbers(path), values)
            path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
            with pytest.raises(ImageFileError):
                read_image(path)


def test_tiff__pages_of_compressed_wide_colours(tmp_path):
    import cv2

    pages = [draw("u2", 16, 24, 3, high=5000, seed=seed) for seed in range(2)]
    cv2.imwritemulti(str(tmp_path / "a.tif"), [page[..., ::-1] for page in pages], [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    assert read_image_header(tmp_path / "a.tif").pages_left_out == 1
    np.testing.assert_array_equal(read_numbers(tmp_path / "a.tif"), pages[0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff__turned_alike_whoever_reads_it(tmp_path, write_tiff, orientation):
    import cv2

    values = draw("u2", 8, 16, 3, high=5000)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray((values // 32).astype(np.uint8)).save(tmp_path / "pillow.tif", exif=exif)
    expected = spread(read_image(tmp_path / "pillow.tif"), values // 32)
    plain = write_tiff(tmp_path / "plain.tif", values, colour=2, tag274=orientation)
    assert read_image_header(plain).transposed_size == expected.shape[:2]
    np.testing.assert_allclose(read_image(plain), expected, atol=2)
    np.testing.assert_array_equal(read_numbers(plain), cv2.imdecode(np.fromfile(plain, np.uint8), -1)[..., ::-1])


def test_tiff__truncated(tmp_path, write_tiff):
    path = write_tiff(tmp_path / "a.tif", draw("f8", 50, 70))
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:-40])
    with pytest.raises(ImageFileError, match="damaged"):
        read_image_header(path)
    place = content.index(np.uint32(50 * 70 * 8).tobytes()) - 8  # the entry of the strip's size: now it is half
    content[place + 8 : place + 12] = np.uint32(50 * 70 * 4).tobytes()
    path.write_bytes(content)
    with pytest.raises(ImageFileError, match="damaged"):
        read_image_header(path)
