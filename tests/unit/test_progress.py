import io

from rich.console import Console

from vpexp import console
from vpexp.console import show_progress, show_wait


def test_show_progress__passes_everything_on():
    assert list(show_progress([3, 1, 2], "Reading")) == [3, 1, 2]
    assert list(show_progress([], "Reading")) == []


def test_show_progress__bar_only_when_it_takes_long(monkeypatch):
    output = io.StringIO()
    bar = console.build_progress()
    bar.live.console = Console(file=output, force_terminal=True)
    bar.disable = False  # as in a terminal
    built = []
    monkeypatch.setattr(console, "build_progress", lambda: built.append(1) or bar)
    assert list(show_progress(range(5), "Reading")) == list(range(5))
    assert not built
    monkeypatch.setattr(console, "_PATIENCE_SECONDS", -1.0)
    assert list(show_progress(range(5), "Reading a\udcff")) == list(range(5))
    assert built == [1]
    assert "Reading" in output.getvalue()
    assert output.getvalue().encode("utf-8")


def test_show_wait__only_for_large_files(tmp_path, monkeypatch):
    output = io.StringIO()
    bar = console.build_progress()
    bar.live.console = Console(file=output, force_terminal=True)
    bar.disable = False  # as in a terminal
    monkeypatch.setattr(console, "build_progress", lambda: bar)
    (tmp_path / "a.json").write_bytes(b"{}")
    with show_wait("Reading a.json", tmp_path / "a.json"):
        pass
    assert not output.getvalue()
    monkeypatch.setattr(console, "_LARGE_BYTES", 1)
    with show_wait("Reading a.json", tmp_path / "a.json"):
        pass
    assert "Reading a.json" in output.getvalue()
