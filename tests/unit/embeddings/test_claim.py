"""Claims: one writer at a time, whatever happens to the others."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vpexp.embeddings import store
from vpexp.embeddings.store import claim_entry

CONTENT = [memoryview(b"head"), memoryview(b"body")]


@pytest.fixture
def entry(tmp_path):
    return tmp_path / "a.emb"


def run_script(script, *words):
    return subprocess.Popen([sys.executable, "-c", script, *map(str, words)], stdout=subprocess.PIPE, text=True)


def test_claim__publish_gives_the_entry_its_name(entry):
    claim = claim_entry(entry)
    assert not entry.exists()
    claim.publish(CONTENT)
    assert entry.read_bytes() == b"headbody"
    assert [path.name for path in entry.parent.iterdir()] == ["a.emb"]
    assert claim_entry(entry) is None


def test_claim__release_lets_the_next_one_in(entry):
    claim = claim_entry(entry)
    assert claim_entry(entry) is None
    claim.release()
    assert list(entry.parent.iterdir()) == []
    claim_entry(entry).publish(CONTENT)
    assert entry.exists()


def test_claim__holds_no_file_open_in_the_end(entry):
    def count():
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    claim = claim_entry(entry)
    claim_entry(entry)
    claim.publish(CONTENT)
    claim_entry(entry)
    claim_entry(entry.with_name("b.emb")).release()
    assert count() == before


HOLD = """
import os, sys, time
from pathlib import Path
from vpexp.embeddings.store import claim_entry
claim = claim_entry(Path(sys.argv[1]))
os.write(claim._descriptor, b"half of an entry that is much longer than the one after it")
print("claimed", flush=True)
time.sleep(60)
"""


def test_claim__of_a_killed_process_is_taken_over(entry):
    process = run_script(HOLD, entry)
    assert process.stdout.readline() == "claimed\n"
    assert claim_entry(entry) is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert entry.with_suffix(".part").exists()
    claim_entry(entry).publish(CONTENT)
    assert entry.read_bytes() == b"headbody"
    assert [path.name for path in entry.parent.iterdir()] == ["a.emb"]


RACE = """
import sys
from pathlib import Path
from vpexp.embeddings.store import claim_entry
folder, won = Path(sys.argv[1]), 0
while not (folder / "go").exists():
    pass
for number in range(300):
    claim = claim_entry(folder / f"{number}.emb")
    if claim is not None:
        claim.publish([memoryview(sys.argv[2].encode())])
        won += 1
print(won)
"""


def test_claim__each_entry_is_won_once(tmp_path):
    processes = [run_script(RACE, tmp_path, name) for name in "abc"]
    time.sleep(0.3)
    (tmp_path / "go").touch()
    won = [int(process.communicate()[0]) for process in processes]
    assert sum(won) == 300
    assert len(list(tmp_path.glob("*.emb"))) == 300
    assert not list(tmp_path.glob("*.part"))


def test_claim__without_locks_every_writer_has_a_draft_of_its_own(entry, monkeypatch):
    monkeypatch.setattr(store, "fcntl", None)
    first, second = claim_entry(entry), claim_entry(entry)
    assert len(list(entry.parent.glob("*.part"))) == 2
    first.publish(CONTENT)
    second.publish(CONTENT)
    assert [path.name for path in entry.parent.iterdir()] == ["a.emb"]
    assert claim_entry(entry) is None
    assert [path.name for path in entry.parent.iterdir()] == ["a.emb"]


def test_claim__draft_that_someone_removed(entry):
    claim = claim_entry(entry)
    entry.with_suffix(".part").unlink()
    other = claim_entry(entry)
    assert other is not None
    claim.release()
    assert entry.with_suffix(".part").exists(), "the draft of the other"
    other.publish(CONTENT)
    assert entry.exists()
