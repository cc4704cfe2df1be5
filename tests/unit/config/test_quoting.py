import shlex
from pathlib import Path

import pytest

from vpexp.config import compose_config
from vpexp.config.compose import format_resume, quote_value, quote_word

TEXTS = [
    "a b",
    "a=b",
    "it's",
    "a\\b",
    "a\\",
    "\\'x",
    "a,b",
    "x{y}",
    "[z]",
    "0012",
    "1e5",
    "true",
    "null",
    "",
    "é",
    'a"b',
]
TEXTS += ["~/x", "/data/my-set_1.v2", "$HOME", "#x", "(a)", "a:b", "-1", "wgisd"]


@pytest.mark.parametrize("text", TEXTS)
def test_quote_value__any_text_comes_back_through_hydra(text):
    cfg = compose_config(["data=coco", f"data.root={quote_value(text)}"])

    assert cfg.data.root == text


@pytest.mark.parametrize("value", [None, True, False, 3, 1e-5, [1, "a b"], {"a": 1, "b": "x,y"}, {"lr": None}])
def test_quote_value__other_values_come_back_as_they_were(value):
    assert compose_config([f"+optimizer.extra={quote_value(value)}"]).optimizer.extra == value


def test_quote_value__plain_text_stays_readable():
    assert quote_value("sam_vit_b") == "sam_vit_b"
    assert quote_value("/data/wgisd") == "/data/wgisd"


@pytest.mark.parametrize("word", ["resume=/a/b", "resume='/a b'", "a$b c", 'say "x"', "it's `x`"])
def test_quote_word__comes_back_through_a_shell(word):
    assert shlex.split(quote_word(word)) == [word]


def test_quote_word__spaces_take_double_quotes():
    assert quote_word("resume='/my runs'") == "\"resume='/my runs'\""
    assert quote_word("resume=/runs") == "resume=/runs"


@pytest.mark.parametrize("folder", ["/outputs/train/2026", "/my runs/it's"])
def test_format_resume__is_a_command_that_gives_the_folder_back(folder):
    words = shlex.split(format_resume(Path(folder)))

    assert words[:3] == ["python", "-m", "vpexp"]
    assert compose_config(words[3:]).resume == folder
