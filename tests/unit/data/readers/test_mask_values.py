import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from vpexp.data.readers.semantic import ValueSurvey


def draw_discs(scale=1):
    image = Image.new("L", (120 * scale, 90 * scale))
    for x, y, radius in ((30, 30, 18), (85, 50, 25), (20, 75, 8)):
        box = [scale * side for side in (x - radius, y - radius, x + radius, y + radius)]
        ImageDraw.Draw(image).ellipse(box, fill=255)
    return image


def compress(image):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=75)
    return Image.open(stream)


def survey(image):
    one = ValueSurvey()
    one.add(np.asarray(image).astype(np.int64))
    return one


@pytest.mark.parametrize(
    "image",
    [
        compress(draw_discs()),
        draw_discs(4).resize((120, 90), Image.Resampling.BOX),
        *(draw_discs().filter(ImageFilter.GaussianBlur(radius)) for radius in (1, 3, 6)),
    ],
)
def test_value_survey__blurred(image):
    assert survey(image).looks_blurred()


def test_value_survey__sharp():
    squares_HW = np.kron(np.arange(200).reshape(10, 20), np.ones((4, 4), dtype=np.int64))
    for image in (draw_discs(), squares_HW, squares_HW * 300, squares_HW - 5):
        assert not survey(image).looks_blurred()
    assert survey(draw_discs()).values == {0, 255}
