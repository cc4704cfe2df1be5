import json
import resource
import threading

import pytest

from vpexp.tracking.journal import ENTRIES, STATE, Journal, State, open_journal, read_state


def reopen(journal: Journal) -> Journal:
    opened = open_journal(journal.folder)
    assert opened is not None
    return opened


def list_waiting(journal: Journal) -> list[tuple[int, str]]:
    """Number and kind of all that waits, and an end to it."""
    waiting = []
    while entries := journal.get_next():
        waiting.append((entries[0].number, entries[0].kind))
        journal.settle(entries)
    return waiting


@pytest.fixture
def journal(tmp_path) -> Journal:
    opened = open_journal(tmp_path, "sqlite:///a.db")
    assert opened is not None
    return opened


def test_open_journal__says_at_once_where_its_entries_go(journal, tmp_path):
    assert read_state(tmp_path) == State("sqlite:///a.db")


def test_open_journal__nothing_there_and_no_store_is_none(tmp_path):
    assert open_journal(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_append__entries_come_back_in_their_order(journal):
    journal.append("create", {"name": "ä\nb"})
    journal.append("tags", {"a": "1"}, at=7)

    again = reopen(journal)
    (first,) = again.get_next()
    assert (first.kind, first.content, first.number) == ("create", {"name": "ä\nb"}, 1)
    again.settle([first])
    (second,) = again.get_next()
    assert (second.kind, second.time, second.number) == ("tags", 7, 2)
    again.append("close", {"status": "FINISHED"})
    assert list_waiting(reopen(journal)) == [(2, "tags"), (3, "close")]


def test_append__content_that_json_cannot_hold_costs_no_run(journal):
    journal.append("dataset", {"path": journal.folder, ("a", "tuple"): 1, "nan": float("nan")})

    (entry,) = reopen(journal).get_next()
    assert entry.content["path"] == str(journal.folder)


def test_append__many_threads_lose_nothing(journal):
    def tell(thread: int) -> None:
        for number in range(100):
            journal.append("tags", {"thread": thread, "number": number})

    threads = [threading.Thread(target=tell, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    again = reopen(journal)
    assert again.count_waiting() == 400
    assert [number for number, _ in list_waiting(again)] == list(range(1, 401))


def test_settle__is_remembered(journal):
    for kind in ("create", "params", "tags"):
        journal.append(kind, {})
    journal.settle(journal.get_next())

    assert list_waiting(reopen(journal)) == [(2, "params"), (3, "tags")]
    assert reopen(journal).count_waiting() == 0


def test_settle__what_is_left_for_later_is_tried_again_by_the_next_process_only(journal):
    for kind in ("create", "artifact", "tags"):
        journal.append(kind, {})
    journal.settle(journal.get_next())
    journal.settle(journal.get_next(), later=True)

    assert [entry.kind for entry in journal.get_next()] == ["tags"]
    assert (journal.count_waiting(), journal.count_missing()) == (1, 2)
    journal.settle(journal.get_next())
    again = reopen(journal)
    assert list_waiting(again) == [(2, "artifact")]
    assert (again.count_missing(), reopen(journal).count_missing()) == (0, 0)


def test_get_next__metrics_go_together(journal, monkeypatch):
    monkeypatch.setattr("vpexp.tracking.journal.METRICS_A_CALL", 2)
    for kind in ("create", "metrics", "metrics", "metrics", "tags", "metrics"):
        journal.append(kind, {})

    parcels = []
    while entries := journal.get_next():
        parcels.append([entry.number for entry in entries])
        journal.settle(entries)
    assert parcels == [[1], [2, 3], [4], [5], [6]]


@pytest.mark.parametrize("left", ['\n{"number": 2, "kind": "met', "\n"], ids=["killed process", "older vpexp"])
def test_append__what_an_earlier_process_has_left_swallows_nothing(journal, left):
    journal.append("create", {})
    with (journal.folder / ENTRIES).open("a") as file:
        file.write(left)

    again = reopen(journal)
    again.append("tags", {})

    assert list_waiting(reopen(journal)) == [(1, "create"), (2, "tags")]


def test_append__full_disk_costs_no_entry(journal, monkeypatch):
    journal.append("create", {})
    size = (journal.folder / ENTRIES).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (size + 20, hard)
    )  # Python ignores SIGXFSZ: writing fails as on a full disk
    try:
        journal.append("tags", {"a": "x" * 100})
        journal.append("metrics", {"b": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert journal.count_waiting() == 3
    assert len((journal.folder / ENTRIES).read_bytes()) == size + 20, "half a line"

    journal.append("close", {})

    assert list_waiting(reopen(journal)) == [(1, "create"), (2, "tags"), (3, "metrics"), (4, "close")]


def test_open_journal__more_delivered_than_on_disk_numbers_go_on(journal):
    for kind in ("create", "tags", "tags"):
        journal.append(kind, {})
    list_waiting(journal)
    lines = (journal.folder / ENTRIES).read_text().splitlines(keepends=True)
    (journal.folder / ENTRIES).write_text(lines[0])  # the disk was full, the store was there

    again = reopen(journal)
    again.append("close", {})

    assert list_waiting(reopen(journal)) == [(4, "close")]


def test_open_journal__another_store_is_told_everything(journal):
    journal.append("create", {})
    journal.append("close", {})
    list_waiting(journal)

    other = open_journal(journal.folder, "http://server")

    assert other is not None
    assert list_waiting(other) == [(1, "create"), (2, "close")]
    assert read_state(journal.folder) == State("http://server", delivered=2)


def test_start_again__everything_waits(journal):
    for kind in ("create", "tags", "metrics"):
        journal.append(kind, {})
    journal.settle(journal.get_next())
    journal.state.run_id = "1"

    journal.start_again()

    assert journal.state.run_id is None
    assert list_waiting(journal) == [(1, "create"), (2, "tags"), (3, "metrics")]


def test_leave__who_has_left_writes_over_nobody(journal):
    journal.append("create", {})
    journal.append("close", {})
    successor = reopen(journal)
    under_way = journal.get_next()
    journal.leave()
    list_waiting(successor)

    journal.settle(under_way)

    assert journal.get_next() == []

    assert read_state(journal.folder) == State("sqlite:///a.db", delivered=2)


@pytest.mark.parametrize("content", ["{", '{"uri": "a", "colour": 1}', "[]"])
def test_read_state__damaged_file_is_no_state_and_everything_is_told_again(journal, content, caplog):
    journal.append("create", {})
    (journal.folder / STATE).write_text(content)

    assert read_state(journal.folder) is None
    assert f"{journal.folder / STATE} is not readable" in caplog.text
    opened = open_journal(journal.folder, "sqlite:///a.db")
    assert opened is not None
    assert list_waiting(opened) == [(1, "create")]


def test_is_open__until_the_last_end(journal):
    states = []
    for kind in ("create", "close", "artifact", "reopen", "metrics", "close"):
        journal.append(kind, {}, at=5)
        states.append((journal.is_open, reopen(journal).is_open))

    assert states == [(True, True), (False, False), (False, False), (True, True), (True, True), (False, False)]
    assert reopen(journal).last_time == 5


def test_save__is_never_half_written(journal):
    journal.append("create", {})
    stop, broken = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                json.loads((journal.folder / STATE).read_text())
            except ValueError as error:
                broken.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(200):
        journal.save()
    stop.set()
    reader.join()

    assert broken == []
    assert sorted(path.name for path in journal.folder.iterdir()) == [STATE, ENTRIES]
