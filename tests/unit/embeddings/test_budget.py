"""The budget: the oldest go, what is in use stays, and only one process at a time is at it."""

import fcntl
import os
import time

import pytest

from vpexp.embeddings import plan
from vpexp.embeddings.plan import EVICTING, make_room
from vpexp.embeddings.store import release, try_lock


@pytest.fixture
def root(tmp_path):
    return tmp_path / "embeddings"


@pytest.fixture
def add(root):
    """Add an entry of 100 bytes that was last used some days ago."""

    def add_entry(name, days=0.0, encoder="enc"):
        path = root / encoder / name[:2] / f"{name}.emb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (time.time() - 86400 * days,) * 2)
        return path

    return add_entry


def test_make_room__the_oldest_go_first_of_all_encoders(root, add):
    new, old, older = add("aa", 1), add("bb", 5), add("cc", 9, encoder="other")
    assert make_room(root, budget=300, needed=0, in_use=frozenset()) == 0
    assert make_room(root, budget=300, needed=150, in_use=frozenset()) == 2
    assert [path.exists() for path in (new, old, older)] == [True, False, False]


def test_make_room__what_is_in_use_stays(root, add):
    old, new = add("aa", 9), add("bb", 1)
    assert make_room(root, budget=100, needed=0, in_use={old}) == 1
    assert (old.exists(), new.exists()) == (True, False)
    assert make_room(root, budget=10, needed=0, in_use={old}) == 0
    assert old.exists()


def test_make_room__other_files_are_left_alone(root, add):
    entry = add("aa", 9)
    notes = entry.with_name("notes.txt")
    notes.write_text("mine")
    make_room(root, budget=0, needed=0, in_use=frozenset())
    assert notes.exists()
    assert not entry.exists()


def test_make_room__not_while_another_process_does(root, add):
    add("aa", 9)
    with (root / EVICTING).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert make_room(root, budget=0, needed=0, in_use=frozenset()) == 0
    assert make_room(root, budget=0, needed=0, in_use=frozenset()) == 1


def test_make_room__forgotten_claims_go_held_ones_stay(root, add):
    entry = add("aa")
    forgotten, held = entry.with_name("ab.part"), entry.with_name("ac.part")
    forgotten.touch()
    lock = try_lock(held)
    make_room(root, budget=1000, needed=0, in_use=frozenset())
    assert (forgotten.exists(), held.exists()) == (False, True)
    release(lock)


def test_make_room__drafts_of_killed_processes_count_as_entries(root, add):
    entry = add("aa", 1)
    draft = entry.with_name(".ab.emb.1234")
    draft.write_bytes(bytes(100))
    os.utime(draft, (0, 0))
    assert make_room(root, budget=100, needed=0, in_use=frozenset()) == 1
    assert (entry.exists(), draft.exists()) == (True, False)


def test_make_room__no_folder_yet(root):
    assert make_room(root, budget=0, needed=10, in_use=frozenset()) == 0
    root.write_text("not a folder")
    assert make_room(root, budget=0, needed=10, in_use=frozenset()) == 0


def test_make_room__goes_on_where_an_entry_vanishes(root, add, monkeypatch):
    add("aa", 1)
    ghost = root / "enc" / "aa" / "ghost.emb"
    listed = plan._list_files
    monkeypatch.setattr(plan, "_list_files", lambda folder: [ghost, *listed(folder)])
    assert make_room(root, budget=0, needed=0, in_use=frozenset()) == 1
