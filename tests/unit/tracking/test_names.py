import itertools
import socket

import pytest
from mlflow.utils.validation import _validate_metric_name

from vpexp.tracking.store import clean_name, clean_params, clean_tags, describe_error, flatten, is_unreachable


def raise_from(error: BaseException, cause: BaseException) -> BaseException:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def test_flatten__nested_keys_become_dotted():
    nested = {"a": {"b": {"c": 1}, "d": None}, "e": [1, 2], "f": {}}

    assert flatten(nested) == {"a.b.c": 1, "a.d": None, "e": [1, 2], "f": {}}


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("val/f1-score", "val/f1-score"),
        ("val/map/grape (red), ½", "val/map/grape _x28_red_x29__x2c_ ½"),
        ("val/..", "val/_x2e_."),
        ("./a/..b/...", "_x2e_/a/..b/..."),
        ("a//b", "a/_x2f_b"),
        ("/a/", "_x2f_a_x2f_"),
        ("two\nlines", "two_xa_lines"),
        ("caf\udce9", "caf_xdce9_"),
        ("ripe_x25_", "ripe_x5f_x25_"),
        ("", ""),
    ],
)
def test_clean_name__keeps_what_mlflow_allows(name, cleaned):
    assert clean_name(name) == cleaned


def test_clean_name__different_names_stay_different():
    parts = [
        "",
        "a",
        "A",
        "/",
        ".",
        "_",
        "x25",
        "%",
        "#",
        "_x25_",
        "x2f_",
        "é",
        "e\u0301",
        "\udce9",
        "n" * 300,
        "n" * 301,
    ]
    names = ["".join(chosen) for chosen in itertools.product(parts, repeat=3)]
    cleaned = {name: clean_name(name) for name in set(names) - {""}}

    assert len(set(cleaned.values())) == len(cleaned)
    for name in cleaned.values():
        _validate_metric_name(name)
        assert len(name) <= 250


def test_clean_tags_and_params__are_text_of_a_length():
    assert clean_tags({"a": "y" * 9000, "b": 1}) == {"a": "y" * 5000, "b": "1"}
    assert clean_params({"a": "x" * 7000, "b": None, "c": [1, 2]}) == {"a": "x" * 6000, "b": "None", "c": "[1, 2]"}


def test_clean_params__file_name_that_no_encoding_can_write():
    assert clean_params({"root": "photos/caf\udce9"}) == {"root": "photos/caf\\udce9"}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("no\nsuch"), "no"),
        (ValueError(), "ValueError"),
        (ValueError("x" * 900), "x" * 200),
        (PermissionError(13, "Permission denied", "/srv"), "Permission denied"),
        (
            raise_from(RuntimeError("a long story"), ConnectionRefusedError(111, "Connection refused")),
            "Connection refused",
        ),
        (raise_from(RuntimeError("a long story"), TimeoutError("timed out")), "no answer in time"),
    ],
)
def test_describe_error__few_words(error, words):
    assert describe_error(error) == words


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (raise_from(RuntimeError("a"), ConnectionResetError(104, "reset")), True),
        (raise_from(RuntimeError("a"), socket.gaierror(-2, "Name or service not known")), True),
        (raise_from(RuntimeError("a"), TimeoutError("timed out")), True),
        (PermissionError(13, "Permission denied"), False),
        (RuntimeError("a"), False),
    ],
)
def test_is_unreachable__the_way_to_a_server_not_the_server(error, answer):
    assert is_unreachable(error) is answer
