import contextlib
import io
import os
import socket
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from vpexp.data import images
from vpexp.data.annotations import Region
from vpexp.data.image_files import IMAGE_SUFFIXES, ImageFileError
from vpexp.data.images import ImageHeader, choose_orientation, open_image, read_image, read_image_header, read_thumbnail
from vpexp.errors import DataError


def save(path, array_or_image, **options):
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    image.save(path, **options)
    return path


@pytest.fixture
def colors_HW3():
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_read_image__rgb(tmp_path, colors_HW3):
    image_HW3 = read_image(save(tmp_path / "a.png", colors_HW3))
    assert image_HW3.dtype == np.uint8
    np.testing.assert_array_equal(image_HW3, colors_HW3)


def test_read_image__rgba_drops_alpha(tmp_path, colors_HW3):
    alpha_HW1 = np.arange(54, dtype=np.uint8).reshape(6, 9, 1)
    path = save(tmp_path / "a.png", np.concatenate([colors_HW3, alpha_HW1], axis=2))
    np.testing.assert_array_equal(read_image(path), colors_HW3)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "CMYK"])
def test_read_image__other_modes(tmp_path, colors_HW3, mode):
    image = Image.fromarray(colors_HW3).convert(mode)
    suffix = "tif" if mode == "CMYK" else "png"
    path = save(tmp_path / f"a.{suffix}", image)
    np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))


def test_read_image__cmyk_jpeg_has_three_channels(tmp_path, colors_HW3):
    path = save(tmp_path / "a.jpg", Image.fromarray(colors_HW3).convert("CMYK"))
    assert read_image(path).shape == (6, 9, 3)


@pytest.mark.parametrize(
    ("suffix", "dtype"), [("png", np.uint16), ("tif", np.uint16), ("tif", np.int32), ("tif", np.float32)]
)
def test_read_image__wide_values_are_stretched(tmp_path, suffix, dtype):
    values_HW = np.linspace(1000, 5000, 54).reshape(6, 9).astype(dtype)
    path = save(tmp_path / f"a.{suffix}", values_HW)
    assert read_image_header(path).is_wide
    image_HW3 = read_image(path)
    assert image_HW3.shape == (6, 9, 3)
    assert (image_HW3.min(), image_HW3.max()) == (0, 255)
    expected = (values_HW.astype(np.float64) - 1000) / 4000 * 255
    np.testing.assert_allclose(image_HW3[:, :, 1], expected, atol=0.51)


def test_read_image__flat_wide_image_is_black(tmp_path):
    path = save(tmp_path / "a.png", np.full((4, 5), 4000, dtype=np.uint16))
    assert not read_image(path).any()


def test_read_image__values_that_are_no_numbers(tmp_path):
    values_HW = np.array([[np.nan, 0.0], [np.inf, 2.0]], dtype=np.float32)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.tif", values_HW))[:, :, 0], [[0, 0], [0, 255]])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_read_image__exif(tmp_path, colors_HW3, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{suffix}", colors_HW3, exif=exif)
    stored_HW3 = np.asarray(Image.open(path).convert("RGB"))
    turned_HW3 = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    np.testing.assert_array_equal(read_image(path, exif_transpose=False), stored_HW3)
    np.testing.assert_array_equal(read_image(path), turned_HW3)
    header = read_image_header(path)
    assert header.orientation == orientation
    assert (header.height, header.width) == (6, 9)
    assert header.transposed_size == turned_HW3.shape[:2]


def test_read_image_header__tiff_is_turned_by_pil(tmp_path, colors_HW3):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.tif", colors_HW3, exif=exif)
    header = read_image_header(path)
    height, width, turn = choose_orientation(header, None)
    assert read_image(path, turn).shape == (height, width, 3)


def test_read_image_header__damaged_exif_is_no_reason(tmp_path, colors_HW3):
    path = save(tmp_path / "a.jpg", colors_HW3, exif=b"Exif\0\0nonsense")
    assert read_image_header(path).orientation == 1
    assert read_image(path).shape == (6, 9, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif", "gif"])
def test_read_image_header__truncated(tmp_path, suffix):
    noise_HW3 = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", noise_HW3)
    assert read_image_header(path).height == 64
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ImageFileError, match=r"a\.") as caught:
        read_image_header(path)
    assert caught.value.reason in ("image file is truncated or damaged", "no image, or its header is damaged")
    with pytest.raises(DataError, match=r"a\."):
        read_image(path)


def test_read_image_header__bytes_behind_the_end_are_no_reason(tmp_path, colors_HW3):
    path = save(tmp_path / "a.jpg", colors_HW3)
    path.write_bytes(path.read_bytes() + b"\0\0camera notes")
    assert read_image_header(path) == ImageHeader(6, 9, 1, False)


@pytest.mark.parametrize("content", [b"", b"x", b"no image at all, but text", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_read_image_header__no_image(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for read in (read_image, read_image_header):
        with pytest.raises(ImageFileError, match=r"a\.jpg"):
            read(path)


def test_read_image__missing(tmp_path):
    for read in (read_image, read_image_header):
        with pytest.raises(ImageFileError, match="missing") as caught:
            read(tmp_path / "gone.jpg")
        assert caught.value.reason == "image file is missing"
        assert "gone.jpg" in str(caught.value)


def test_read_image__damage_in_the_middle(tmp_path):
    noise_HW3 = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / "a.png", noise_HW3)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 50] = bytes(50)
    path.write_bytes(data)
    assert read_image_header(path).height == 64
    with pytest.raises(ImageFileError, match="damaged"):
        read_image(path)


@pytest.mark.parametrize(
    ("orientation", "annotated", "expected"),
    [
        (1, None, (6, 9, False)),
        (1, (6, 9), (6, 9, False)),
        (1, (9, 6), None),
        (6, (6, 9), (6, 9, False)),  # annotated as stored
        (6, (9, 6), (9, 6, True)),  # annotated as viewers show it
        (6, None, (9, 6, True)),
        (3, (6, 9), (6, 9, True)),  # upside down: the size cannot tell
        (6, (12, 18), None),
    ],
)
def test_choose_orientation__from_the_annotated_size(orientation, annotated, expected):
    assert choose_orientation(ImageHeader(6, 9, orientation, False), annotated) == expected


def test_choose_orientation__square_is_turned_as_viewers_do():
    assert choose_orientation(ImageHeader(8, 8, 6, False), (8, 8)) == (8, 8, True)


def test_read_image_header__too_large(tmp_path, monkeypatch, colors_HW3):
    path = save(tmp_path / "a.png", colors_HW3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    for read in (read_image, read_image_header):
        with pytest.raises(ImageFileError, match=r"a\.png: image is larger than 0 megapixels"):
            read(path)


def test_read_image_header__of_20000_pixels_a_side(tmp_path):
    width, height = b"\0\0\x4e\x20", b"\0\0\x4e\x20"
    whole = io.BytesIO()
    Image.new("RGB", (1, 1)).save(whole, "png")
    header = b"IHDR" + width + height + whole.getvalue()[24:29]
    content = whole.getvalue()[:12] + header + zlib.crc32(header).to_bytes(4, "big") + whole.getvalue()[33:]
    (tmp_path / "large.png").write_bytes(content)
    assert read_image_header(tmp_path / "large.png").transposed_size == (20_000, 20_000)


def test_read_image__a_window_in_strips_too(tmp_path, monkeypatch, colors_HW3):
    path = save(tmp_path / "a.png", colors_HW3)
    whole_HW3, window = read_image(path), Region(1, 2, 3, 5)
    monkeypatch.setattr(images, "_STRIP_PIXELS", colors_HW3.shape[1])
    np.testing.assert_array_equal(read_image(path), whole_HW3)
    part_HW3 = read_image(path, window=window)
    np.testing.assert_array_equal(part_HW3, whole_HW3[1:3, 2:5])
    assert part_HW3.base is None, "the whole image is let go"


def test_read_image__from_bytes_that_were_read_already(tmp_path):
    path = tmp_path / "gone.png"
    Image.fromarray(np.full((4, 6, 3), 77, np.uint8)).save(path)
    content = path.read_bytes()
    path.unlink()
    assert (read_image(path, content=content) == 77).all()
    with pytest.raises(ImageFileError, match=r"gone\.png: "):
        read_image(path, content=content[:40])


@pytest.mark.parametrize(("name", "mode"), [("a.jpg", "RGB"), ("a.png", "RGBA"), ("a.tif", "I;16"), ("a.gif", "P")])
def test_read_thumbnail__a_grey_square_of_any_file(tmp_path, name, mode):
    ramp_HW = np.tile(np.linspace(0, 255, 200, dtype=np.uint8), (120, 1))
    image = Image.fromarray(ramp_HW)
    image = Image.fromarray(ramp_HW.astype(np.uint16) * 256) if mode == "I;16" else image.convert(mode)
    path = save(tmp_path / name, image)

    thumbnail_TT = read_thumbnail(path, 32)

    assert (thumbnail_TT.shape, thumbnail_TT.dtype) == ((32, 32), np.uint8)
    np.testing.assert_allclose(thumbnail_TT[16], np.linspace(4, 251, 32), atol=4)
    np.testing.assert_array_equal(thumbnail_TT, read_thumbnail("nowhere.jpg", 32, content=path.read_bytes()))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_read_thumbnail__turned_as_the_whole_image_is(tmp_path, suffix, orientation):
    pixels_HW3 = np.zeros((64, 96, 3), dtype=np.uint8)
    pixels_HW3[:32, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{suffix}", pixels_HW3, exif=exif)

    whole = Image.fromarray(read_image(path)).convert("L").resize((8, 8), Image.Resampling.LANCZOS)
    np.testing.assert_allclose(read_thumbnail(path, 8), np.asarray(whole), atol=20)
    assert read_thumbnail(path, 8, exif_transpose=False)[0, 0] > 200


def test_read_thumbnail__damaged_files_are_named(tmp_path):
    path = save(tmp_path / "a.jpg", np.zeros((64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:400])

    with pytest.raises(ImageFileError, match=r"a\.jpg: "):
        read_thumbnail(path, 8)


def spread(values):
    """What is expected of wide colours: the smallest number of all channels to 0, the largest to 255."""
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) * 255


def write_wide(path, values_HW3):
    """Write a wide image by OpenCV, which keeps all bits."""
    import cv2

    lossless = {
        ".jp2": [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000],
        ".avif": [cv2.IMWRITE_AVIF_DEPTH, 12, cv2.IMWRITE_AVIF_QUALITY, 100],
    }
    assert cv2.imwrite(str(path), values_HW3[..., [2, 1, 0, 3][: values_HW3.shape[2]]], lossless.get(path.suffix, []))
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jp2", "a.avif", "a.ppm"])
def test_read_image__wide_colours_are_stretched_together(tmp_path, name):
    values_HW3 = np.random.default_rng(0).integers(300, 4000, (64, 80, 3)).astype(np.uint16)  # 12 bits in 16
    values_HW3[..., 0] //= 2  # less red: the hue stays
    path = write_wide(tmp_path / name, values_HW3)
    assert read_image_header(path) == ImageHeader(64, 80, 1, is_wide=True)
    np.testing.assert_allclose(read_image(path), spread(values_HW3), atol=0.51)
    assert abs(read_thumbnail(path, 8).mean() - spread(values_HW3).mean()) < 20
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(ImageFileError):
        read_image(path)


def test_read_image__wide_with_alpha(tmp_path):
    values_HW4 = np.random.default_rng(0).integers(300, 4000, (6, 8, 4)).astype(np.uint16)
    values_HW4[..., 3] = 65535  # it takes no part
    np.testing.assert_allclose(
        read_image(write_wide(tmp_path / "a.png", values_HW4)), spread(values_HW4[..., :3]), atol=0.51
    )


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_read_image__wide_colours_are_turned(tmp_path, orientation):
    values_HW3 = np.random.default_rng(0).integers(0, 4000, (6, 9, 3)).astype(np.uint16)
    path = write_wide(tmp_path / "a.png", values_HW3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    content = path.read_bytes()
    inserted = (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    path.write_bytes(content[:33] + inserted + content[33:])
    expected = {1: values_HW3, 3: values_HW3[::-1, ::-1], 6: np.rot90(values_HW3, -1)}[orientation]
    np.testing.assert_allclose(read_image(path), spread(expected), atol=0.51)


@pytest.mark.parametrize("largest", [3, 15, 255, 1000, 4095, 65535])
def test_read_image__portable_maps_of_any_depth(tmp_path, largest):
    grey_HW = np.random.default_rng(0).integers(0, largest + 1, (6, 9))
    dtype = ">u2" if largest > 255 else "u1"
    (tmp_path / "a.pgm").write_bytes(b"P5 9 6 %d\n" % largest + grey_HW.astype(dtype).tobytes())
    expected_HW = spread(grey_HW) if largest > 255 else grey_HW * 255 // largest
    np.testing.assert_allclose(read_image(tmp_path / "a.pgm")[..., 0], expected_HW, atol=0.51)
    with open_image(tmp_path / "a.pgm") as file:
        np.testing.assert_array_equal(file.read_numbers(), grey_HW)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_read_image_header__pages_left_out(tmp_path, name):
    pages = [Image.new("RGB", (30, 20), (value, 0, 0)) for value in (40, 80, 120, 160)]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    header = read_image_header(tmp_path / name)
    assert header.pages_left_out == 3
    (remark,) = header.remarks
    assert remark.format(images=1, total=3, example="a").startswith("pages left out: 3, behind the first page of 1 of")
    assert abs(int(read_image(tmp_path / name)[0, 0, 0]) - 40) < 8


@pytest.mark.parametrize("suffix", ["avif", "jp2", "tga", "ppm", "pcx", "qoi", "sgi", "dib", "ico"])
def test_read_image__further_formats(tmp_path, colors_HW3, suffix):
    image = Image.fromarray(colors_HW3).resize((16, 16))
    image.save(tmp_path / f"a.{suffix}")
    assert (read_image_header(tmp_path / f"a.{suffix}").height, f".{suffix}" in IMAGE_SUFFIXES) == (16, True)
    np.testing.assert_array_equal(
        read_image(tmp_path / f"a.{suffix}"), Image.open(tmp_path / f"a.{suffix}").convert("RGB")
    )


def test_read_image__runs_no_program(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("Ghostscript was started"))
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n"
    )
    for read in (read_image, read_image_header, lambda path: read_thumbnail(path, 8)):
        with pytest.raises(ImageFileError, match="no image, or its header is damaged"):
            read(tmp_path / "a.png")


def test_read_image__file_type_not_read(tmp_path):
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(ImageFileError) as caught:
        read_image_header(tmp_path / "a.HEIC")
    assert caught.value.reason == "file type not read (.heic)"


def test_read_image__only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "b.png"))
    (tmp_path / "c.png").mkdir()
    (tmp_path / "d.png").symlink_to("/dev/zero")
    for name in "abcd":
        for read in (read_image, read_image_header, lambda path: read_thumbnail(path, 8)):
            with pytest.raises(ImageFileError, match=f"{name}.png: no regular file"):
                read(tmp_path / f"{name}.png")


@pytest.mark.parametrize("name", ["a.tif", "b.tif", "c.png", "d.avif", "e.jp2", "f.qoi", "g.gif", "h.ppm"])
def test_read_image__damaged_anywhere(tmp_path, monkeypatch, name):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # sizes are damaged too
    values_HW3 = np.random.default_rng(0).integers(0, 4000, (64, 64, 3)).astype(np.uint16)
    if name[0] in "bcdeh":
        write_wide(tmp_path / name, values_HW3)
    else:
        Image.fromarray((values_HW3 >> 4).astype(np.uint8)).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    random = np.random.default_rng(1)
    for _ in range(40):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), 3) % random.choice([len(content), 300]):
            damaged[place] = random.choice([0, 1, 255])
        for read in (read_image, lambda path, content: read_thumbnail(path, 8, content=content)):
            with contextlib.suppress(ImageFileError):  # any other error fails the test
                assert read(tmp_path / name, content=bytes(damaged)).dtype == np.uint8
