"""The choice of a runtime: by name, or by the clock, without an image encoded twice."""

import time

import numpy as np
import pytest

from vpexp.embeddings import fill
from vpexp.embeddings.fill import EncoderChoice, ImageEncoder
from vpexp.errors import ConfigError


class Runtime:
    """Takes as long as it is told, and adds its mark to the image."""

    def __init__(self, name, seconds=0.0, mark=0.0):
        self.name, self.seconds, self.mark, self.seen = name, seconds, mark, []

    def encode(self, images_B3SS):
        time.sleep(self.seconds)
        self.seen += images_B3SS[:, 0, 0, 0].astype(int).tolist()
        return images_B3SS + self.mark

    def build(self):
        return ImageEncoder(self.name, self.encode)


def encode_all(choice, count):
    images = [np.full((1, 3, 2, 2), number, np.float32) for number in range(count)]
    return [float(choice.encode(image, remaining=count - 1 - i)[0, 0, 0, 0]) for i, image in enumerate(images)]


@pytest.fixture(autouse=True)
def _cheap_conversion(monkeypatch):
    monkeypatch.setattr(fill, "CONVERSION_SECONDS", 0.01)


@pytest.mark.parametrize(
    ("torch_seconds", "other_seconds", "winner"), [(0.02, 0.005, "openvino"), (0.02, 0.04, "torch")]
)
def test_auto__the_faster_one_goes_on(torch_seconds, other_seconds, winner):
    torch, other = Runtime("torch", torch_seconds), Runtime("openvino", other_seconds, 0.5)
    choice = EncoderChoice(torch.build(), other.build)
    encoded = encode_all(choice, 12)
    assert sorted(torch.seen + other.seen) == list(range(12)), "each image once"
    assert torch.seen[:3] == [0, 1, 2]
    assert other.seen[:3] == [3, 4, 5]
    assert (len(other.seen) == 9) is (winner == "openvino")
    assert encoded == [i + 0.5 * (i in other.seen) for i in range(12)]
    assert choice.passes == {"torch": len(torch.seen), "openvino": len(other.seen)}
    assert choice.describe().startswith(f"{winner} (0.0")
    assert " s an image, " in choice.describe()


def test_auto__few_images_do_not_pay_for_a_conversion(monkeypatch):
    monkeypatch.setattr(fill, "CONVERSION_SECONDS", 1.0)
    torch, other = Runtime("torch", 0.01), Runtime("openvino")
    choice = EncoderChoice(torch.build(), other.build)
    encode_all(choice, 20)
    assert (len(torch.seen), other.seen) == (20, [])
    assert choice.describe() == "torch"


def test_auto__nothing_to_convert_on_a_gpu():
    choice = EncoderChoice(Runtime("torch", 0.01).build(), None)
    encode_all(choice, 5)
    assert choice.passes == {"torch": 5}


def test_auto__a_failing_conversion_is_no_failure():
    def fail():
        raise RuntimeError("unknown operator")

    choice = EncoderChoice(Runtime("torch", 0.02).build(), fail)
    encode_all(choice, 8)
    assert choice.passes == {"torch": 8}


def test_backend__by_name():
    torch, other = Runtime("torch", 0.02), Runtime("openvino")
    encode_all(EncoderChoice(torch.build(), other.build, backend="torch"), 9)
    assert (len(torch.seen), other.seen) == (9, [])
    choice = EncoderChoice(torch.build(), other.build, backend="openvino")
    encode_all(choice, 9)
    assert len(other.seen) == 9
    assert choice.describe() == "openvino"


def test_backend__nothing_is_built_where_nothing_is_encoded():
    def fail():
        raise AssertionError("converted for nothing")

    choice = EncoderChoice(Runtime("torch").build(), fail, backend="openvino")
    assert choice.batch_size == 1
    assert choice.passes == {}


def test_backend__openvino_that_cannot_convert_is_an_error():
    def fail():
        raise RuntimeError("unknown\noperator")

    choice = EncoderChoice(Runtime("torch").build(), fail, backend="openvino")
    with pytest.raises(
        ConfigError, match=r"cannot be converted \(RuntimeError: unknown operator\); set cache.backend=torch"
    ):
        encode_all(choice, 1)
