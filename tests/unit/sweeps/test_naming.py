import pytest

from vpexp.sweeps.record import read_values
from vpexp.tracking.description import format_value, name_values, shorten


def test_name_values__last_words_and_short_numbers():
    assert name_values({"optimizer.lr": "1e-05", "data.batch_size": "2"}) == "lr=1e-5 bs=2"
    assert name_values({"model": "sam_vit_b", "+trainer.threads": "4"}) == "model=sam_vit_b threads=4"


def test_shorten__keys_that_end_alike_stay_whole():
    assert shorten(["optimizer.lr", "export.precision", "cache.precision"]) == [
        "lr",
        "export.precision",
        "cache.precision",
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1e-05", "1e-5"),
        ("0.0001", "1e-4"),
        ("0.00035", "3.5e-4"),
        ("-0.0002", "-2e-4"),
        ("0.05", "0.05"),
        ("4.430375245218267e-05", "4.43e-5"),
        ("0.12345678901", "0.123"),
        ("12345678", "12345678"),
        ("0", "0"),
        ("0.0", "0.0"),
        ("2", "2"),
        ("nan", "nan"),
        ("sam_vit_b", "sam_vit_b"),
        ("[a,b]", "[a,b]"),
    ],
)
def test_format_value(value, expected):
    assert format_value(value) == expected


def test_read_values__only_what_varies_in_its_order():
    overrides = ["data=coco", "data.batch_size=2", "+optimizer.lr=1e-05", "data.root=a=b"]

    assert read_values(overrides, ["optimizer.lr", "data.batch_size"]) == {
        "optimizer.lr": "1e-05",
        "data.batch_size": "2",
    }
    assert read_values(overrides, ["data.root"]) == {"data.root": "a=b"}
