"""Claims: one writer at a time, whatever happens to the others."""

import signal
import subprocess
import sys
from pathlib import Path

import filelock
import numpy as np
import pytest

from vpexp.embeddings.store import EmbeddingStore, compute_image_key, release

SHAPE = (1, 2, 2)
EMBEDDING = np.ones(SHAPE, np.float32)


def open_store(root):
    return EmbeddingStore(Path(root), "ab" * 16, SHAPE)


def compute_key(number):
    return compute_image_key(str(number).encode(), exif_transpose=False)


KEY = compute_key(0)


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path)


def list_names(store):
    return sorted(path.name for path in store.folder.rglob("*") if path.is_file())


def run_script(script, *words):
    return subprocess.Popen([sys.executable, "-c", script, *map(str, words)], stdout=subprocess.PIPE, text=True)


def test_claim__publish_gives_the_entry_its_name(store):
    claim = store.claim(KEY)
    assert not store.has(KEY)
    store.publish(claim, KEY, EMBEDDING)
    assert np.array_equal(store.read(KEY), EMBEDDING)
    assert list_names(store) == [f"{KEY}.emb"]
    assert store.claim(KEY) is None
    assert list_names(store) == [f"{KEY}.emb"]


def test_claim__release_lets_the_next_one_in(store):
    claim = store.claim(KEY)
    assert store.claim(KEY) is None
    release(claim)
    assert list_names(store) == []
    store.publish(store.claim(KEY), KEY, EMBEDDING)
    assert store.has(KEY)


def test_claim__holds_no_file_open_in_the_end(store):
    def count():
        return len(list(Path("/proc/self/fd").iterdir()))

    release(store.claim(KEY))
    before = count()
    claim = store.claim(KEY)
    store.claim(KEY)
    store.publish(claim, KEY, EMBEDDING)
    store.claim(KEY)
    release(store.claim(compute_key(1)))
    assert count() == before


HOLD = """
import sys, time
from tests.unit.embeddings.test_claim import KEY, open_store
claim = open_store(sys.argv[1]).claim(KEY)
print("claimed", flush=True)
time.sleep(60)
"""


def test_claim__of_a_killed_process_is_taken_over(store):
    process = run_script(HOLD, store.root)
    assert process.stdout.readline() == "claimed\n"
    assert store.claim(KEY) is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list_names(store) == [f"{KEY}.part"]
    assert store.write(KEY, EMBEDDING)
    assert list_names(store) == [f"{KEY}.emb"]


RACE = """
import sys
from tests.unit.embeddings.test_claim import EMBEDDING, compute_key, open_store
store, won = open_store(sys.argv[1]), 0
print("ready", flush=True)
sys.stdin.read()
for number in range(300):
    won += store.write(compute_key(number), EMBEDDING)
print(won)
"""


def test_claim__each_entry_is_won_once(store):
    words = [sys.executable, "-c", RACE, str(store.root)]
    processes = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.close()
    won = [int(process.stdout.read()) for process in processes]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert sum(won) == 300
    assert list_names(store) == sorted(f"{compute_key(number)}.emb" for number in range(300))


def test_claim__without_locks_every_writer_may_write(store, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(filelock._unix.fcntl, "flock", refuse)
    first, second = store.claim(KEY), store.claim(KEY)
    for claim in (first, second):
        store.publish(claim, KEY, EMBEDDING)
    assert list_names(store) == [f"{KEY}.emb"]
    assert np.array_equal(store.read(KEY), EMBEDDING)
    assert store.claim(KEY) is None
    assert list_names(store) == [f"{KEY}.emb"]


def test_claim__lock_that_someone_removed(store):
    claim = store.claim(KEY)
    store.find_path(KEY).with_suffix(".part").unlink()
    other = store.claim(KEY)
    for each in (claim, other):
        store.publish(each, KEY, EMBEDDING)
    assert np.array_equal(store.read(KEY), EMBEDDING)
    assert list_names(store) == [f"{KEY}.emb"]
