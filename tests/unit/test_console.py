"""Names of others are text on the terminal, in the log and in an error: no markup, nothing that acts."""

import io
import logging
import os
import subprocess
import sys

import pytest
from rich.console import Console

from vpexp.cli import main
from vpexp.console import DescriptionColumn, PlainTable, format_count, log_line
from vpexp.errors import DataError, make_printable
from vpexp.reporting.comparison import Comparison, build_table
from vpexp.run import _log_to
from vpexp.sweeps.record import SweepRecord
from vpexp.sweeps.summary import JobResult, SweepSummary, build_sweep_table

ACTING = ["\x1b[31m", "\x1b]0;title\x07", "\x9b2J", "\r", "\b", "\x7f", "\u202e", "\u2066", "\u2028", "\x85", "\ud800"]
ACTING += ["\x00", "\n"]
PLAIN = ["Straße", "日本語\u3000フォルダ", "मक्खी", "👩\u200d🌾", "a\u00a0b", "क\u200cष", "[/x]", "[1,2]", "[a,b]"]
PLAIN += ["[bold]", ":bug:", "\\[x]", "100 %"]


def render(renderable):
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize("text", ACTING)
def test_make_printable__what_acts_on_a_terminal_is_escaped(text):
    printed = make_printable(f"a{text}b")
    assert not any(character in printed for character in text if not character.isprintable())
    assert (printed[0], printed[-1]) == ("a", "b")
    assert "\\" in printed
    assert printed.encode("utf-8")


@pytest.mark.parametrize("text", PLAIN)
def test_make_printable__what_people_write_stays(text):
    assert make_printable(text) == text


def test_format_count__one_and_many():
    counts = [format_count(number, "image") for number in (0, 1, 2, 1200)]
    assert counts == ["0 images", "1 image", "2 images", "1200 images"]
    assert [format_count(number, "entry", "entries") for number in (1, 2)] == ["1 entry", "2 entries"]


def test_log_line_table_and_progress__names_are_text(monkeypatch, capsys, tmp_path):
    name = "".join(PLAIN) + "".join(ACTING)
    shown = make_printable(name)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest would report text that has no encoding

    with _log_to(tmp_path / "a.log"):
        log_line(name)
        logging.getLogger("vpexp").warning("%s and \x1b[31m", "\ud800")
    assert capsys.readouterr().out == f"{shown}\n"
    log = (tmp_path / "a.log").read_text(encoding="utf-8")
    assert f"INFO vpexp: {shown}\n" in log
    assert "WARNING vpexp: \\ud800 and \\x1b[31m\n" in log

    table = PlainTable(title="[/x]\x1b")
    table.add_column("[/y]\x1b")
    for cell in [*PLAIN, *ACTING]:
        table.add_row(cell)
    text = render(table)
    assert "\x1b" not in text
    for cell in ("[/x]\\x1b", "[/y]\\x1b", *map(make_printable, [*PLAIN, *ACTING])):
        assert cell in text

    class Task:
        description = name

    assert DescriptionColumn().render(Task()).plain == shown


def test_tables__values_of_a_sweep_and_names_of_models(tmp_path):
    values = ("[/x]", "[a,b]", "[1,2]", "\x1b[31mred")
    record = SweepRecord((), (), ("tracking.run_name",), 4, "train", "", "maximize", "", "", 1, 1, searches=False)
    folder = type("Folder", (), {"path": tmp_path})()
    jobs = tuple(
        JobResult(
            *(number, value, {"tracking.run_name": value}, "FINISHED", 0.5, {"val/f1-score": 0.5}, 1.0, 1, folder),
            run_id=None,
            error="",
        )
        for number, value in enumerate(values)
    )
    text = render(build_sweep_table(SweepSummary(record, "val/f1-score", jobs)))
    for value in values:
        assert make_printable(value) in text

    text = render(build_table(Comparison("[/m] on \x1b[2J", {}, ())))
    assert "[/m] on \\x1b[2J" in text


def test_main__an_error_line_is_printable(monkeypatch, capsys):
    def fail(_):
        raise DataError("a\x1b]0;x\x07\n\u202eb [/x]: no image")

    monkeypatch.setattr("vpexp.cli._answer", fail)
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "vpexp: a\\x1b]0;x\\x07\\n\\u202eb [/x]: no image\n"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_log_line__goes_on_when_who_looks_at_it_has_gone(is_terminal):
    script = "import sys; from vpexp.console import log_line\nfor _ in range(200): log_line('x' * 5000)\nsys.stderr.write('whole')"
    reader, writer = os.openpty() if is_terminal else os.pipe()
    process = subprocess.Popen([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    os.read(reader, 10)
    os.close(reader)

    assert process.communicate()[1] == "whole"
    assert process.returncode == 0
