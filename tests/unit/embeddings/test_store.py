"""The store: what it is addressed by, what it rounds to, and that nothing on disk can fool or stop it."""

import logging
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from vpexp.embeddings import store as store_module
from vpexp.embeddings.store import (
    PRECISIONS,
    EmbeddingStore,
    StoredEmbeddings,
    compute_encoder_key,
    compute_image_key,
)
from vpexp.errors import ConfigError

SHAPE = (4, 3, 2)
KEY = compute_image_key(b"an image", exif_transpose=True)


def build_store(root, precision="float16", state_hash="weights"):
    return EmbeddingStore(root, compute_encoder_key(state_hash, 1024, precision), SHAPE, precision)


def draw(seed=0, scale=1.0):
    return (np.random.default_rng(seed).normal(size=SHAPE) * scale).astype(np.float32)


@pytest.fixture
def store(tmp_path):
    return build_store(tmp_path / "embeddings")


def test_compute_encoder_key__tells_encoders_apart(monkeypatch):
    keys = {
        compute_encoder_key("a", 1024, "float16"),
        compute_encoder_key("b", 1024, "float16"),
        compute_encoder_key("a", 512, "float16"),
        compute_encoder_key("a", 1024, "float32"),
        compute_encoder_key("a", 1024, "int8"),
    }
    monkeypatch.setattr(store_module, "PREPROCESSING_VERSION", -1)
    keys.add(compute_encoder_key("a", 1024, "float16"))
    assert len(keys) == 6
    assert all(len(bytes.fromhex(key)) == 16 for key in keys)


def test_compute_image_key__tells_contents_and_turns_apart():
    keys = {compute_image_key(content, exif_transpose=turned) for content in (b"", b"a", b"b") for turned in (0, 1)}
    assert len(keys) == 6


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 2e-3), ("float32", 0), ("int8", 1e-2)])
def test_write__reads_back_at_the_precision(tmp_path, precision, tolerance):
    store, embedding_CHW = build_store(tmp_path, precision), draw()
    assert not store.has(KEY)
    assert store.read(KEY) is None
    assert store.write(KEY, embedding_CHW)
    assert store.has(KEY)
    found_CHW = store.read(KEY)
    assert found_CHW.dtype == PRECISIONS[precision]
    np.testing.assert_allclose(found_CHW, embedding_CHW, rtol=0, atol=tolerance)
    assert np.array_equal(found_CHW, store.round(embedding_CHW))
    assert store.find_path(KEY).stat().st_size == store.entry_bytes


def test_write__leaves_an_entry_that_is_there_alone(store):
    assert store.write(KEY, draw(0))
    assert not store.write(KEY, draw(1))
    assert np.array_equal(store.read(KEY), store.round(draw(0)))
    assert [path.name for path in store.find_path(KEY).parent.iterdir()] == [f"{KEY}.emb"]


def test_read__other_weights_and_precisions_do_not_see_entries(store):
    store.write(KEY, draw())
    for other in (build_store(store.root, state_hash="others"), build_store(store.root, "float32")):
        assert other.read(KEY) is None
        assert not other.has(KEY)
    assert store.has(KEY)


@pytest.mark.parametrize("damage", ["empty", "cut off", "flipped", "foreign", "text"])
def test_read__damaged_entries_are_removed_and_can_be_written_again(store, caplog, damage):
    path = store.find_path(KEY)
    store.write(KEY, draw())
    content = path.read_bytes()
    if damage == "foreign":
        other = compute_image_key(b"another image", exif_transpose=True)
        store.write(other, draw(1))
        shutil.copy(store.find_path(other), path)
    else:
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        path.write_bytes({"empty": b"", "cut off": content[:-5], "flipped": flipped, "text": b"hello"}[damage])
    with caplog.at_level(logging.WARNING):
        assert store.read(KEY) is None
    assert str(path) in caplog.text
    assert not path.exists()
    assert store.write(KEY, draw(2))
    assert np.array_equal(store.read(KEY), store.round(draw(2)))


def test_remove_cut_off__only_what_has_the_wrong_length(store):
    assert not store.remove_cut_off(KEY)
    store.write(KEY, draw())
    assert not store.remove_cut_off(KEY)
    os.truncate(store.find_path(KEY), 20)
    assert not store.has(KEY)
    assert store.remove_cut_off(KEY)
    assert not store.find_path(KEY).exists()


def test_round__says_when_float16_is_too_small(store):
    with pytest.raises(ConfigError, match=r"reach 1e\+05, more than float16 holds: set cache\.precision=float32"):
        store.round(np.full(SHAPE, 1e5, np.float32))
    assert np.isinf(store.round(np.full(SHAPE, np.inf, np.float32))).all()
    with pytest.raises(ValueError, match="does not belong"):
        store.round(np.zeros((1, 2, 3), np.float32))


def test_write__folder_that_is_a_file(tmp_path):
    root = tmp_path / "embeddings"
    root.write_text("not a folder")
    store = build_store(root)
    with pytest.raises(OSError, match="embeddings"):
        store.write(KEY, draw())
    assert store.read(KEY) is None
    assert not store.has(KEY)
    store.touch(KEY)


def test_write__that_fails_in_the_middle_leaves_nothing(tmp_path):
    """The limit on file sizes makes the system refuse the second half of an entry, as a full disk does."""
    script = f"""
import resource, numpy as np
from tests.unit.embeddings.test_store import KEY, build_store, draw
store = build_store(__import__("pathlib").Path({str(tmp_path)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (80, 80))
try:
    store.write(KEY, draw())
except OSError as error:
    print(error.strerror)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "File too large\n"
    store = build_store(tmp_path)
    assert list(store.find_path(KEY).parent.iterdir()) == []
    assert store.write(KEY, draw())


def test_stored_embeddings__reads_by_image(store, tmp_path):
    from tests.unit.data.test_batch import save_scene

    image = save_scene(tmp_path / "a.png")
    store.write(KEY, draw())
    assert StoredEmbeddings(store).read(image) is None
    stored = StoredEmbeddings(store, {(image.path, image.exif_transpose): KEY})
    assert stored.find_key(image) == KEY
    assert np.array_equal(stored.read(image), store.round(draw()))
