"""What a browser is sent of an image."""

import io

import numpy as np
import pytest
from PIL import Image

from vpexp.data.image_files import ImageFileError
from vpexp.data.images import read_image
from vpexp.demo.pictures import build_picture, read_size


def open_sent(path):
    content, media_type = build_picture(path)
    return Image.open(io.BytesIO(content)), media_type, content == path.read_bytes()


def test_plain_file__is_sent_as_it_is(images):
    picture, media_type, is_file = open_sent(images[0].path)

    assert (media_type, is_file) == ("image/png", True)
    assert picture.size == (60, 40)


def test_turned_photo__is_sent_upright_without_a_note_to_turn_it_again(images):
    picture, media_type, is_file = open_sent(images[2].path)

    assert (media_type, is_file, picture.size) == ("image/jpeg", False, (32, 48))
    assert read_size(images[2].path) == (48, 32)
    assert picture.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("wide.png", Image.fromarray((np.arange(1200).reshape(30, 40) * 50).astype(np.uint16))),
        ("wide.tif", Image.fromarray((np.arange(1200).reshape(30, 40) * 50).astype(np.uint16))),
        ("alpha.png", Image.merge("RGBA", [Image.linear_gradient("L").resize((40, 30))] * 4)),
        ("palette.gif", Image.linear_gradient("L").resize((40, 30)).convert("P")),
        ("ink.jpg", Image.merge("CMYK", [Image.linear_gradient("L").resize((40, 30))] * 4)),
    ],
)
def test_what_browsers_show_otherwise__is_sent_as_the_model_sees_it(tmp_path, name, image):
    image.save(tmp_path / name)

    picture, media_type, is_file = open_sent(tmp_path / name)

    assert (media_type, is_file, picture.size) == ("image/jpeg", False, (40, 30))
    difference = np.abs(np.asarray(picture, int) - read_image(tmp_path / name).astype(int))
    assert difference.mean() < 3


def test_damaged_file__is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")

    with pytest.raises(ImageFileError, match=r"a\.jpg"):
        build_picture(tmp_path / "a.jpg")
