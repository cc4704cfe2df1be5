"""Entries come back bit by bit, or not at all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file, save_file

from vpexp.embeddings.store import PRECISIONS, DamagedEntryError, compute_entry_bytes, pack_entry, read_entry

ENCODER, IMAGE = "0123456789abcdef" * 2, "fedcba9876543210" * 2
SHAPE = (4, 3, 2)


def write(path, array_CHW, encoder_key=ENCODER, image_key=IMAGE):
    path.write_bytes(b"".join(pack_entry(array_CHW, encoder_key, image_key)))
    return path


def read(path, shape=SHAPE, precision="float16", encoder_key=ENCODER, image_key=IMAGE):
    return read_entry(path, shape, precision, encoder_key, image_key)


@pytest.fixture
def entry(tmp_path):
    array_CHW = np.random.default_rng(0).normal(size=SHAPE).astype(np.float16)
    return write(tmp_path / "a.emb", array_CHW), array_CHW


@settings(max_examples=60)
@given(data=st.data(), precision=st.sampled_from(sorted(PRECISIONS)))
def test_read_entry__gives_every_bit_back(tmp_path_factory, data, precision):
    shape = data.draw(st.tuples(*[st.integers(1, 6)] * 3))
    array_CHW = data.draw(arrays.arrays(PRECISIONS[precision], shape))  # NaN, infinities and subnormal numbers too
    path = write(tmp_path_factory.mktemp("entry") / "a.emb", array_CHW)
    found_CHW = read(path, shape, precision)
    assert found_CHW.dtype == PRECISIONS[precision]
    assert found_CHW.shape == shape
    assert found_CHW.tobytes() == array_CHW.tobytes()
    assert path.stat().st_size == compute_entry_bytes(shape, precision)


def test_pack_entry__takes_arrays_in_any_layout(tmp_path):
    array_CHW = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32).transpose(2, 1, 0)
    assert np.array_equal(read(write(tmp_path / "a.emb", array_CHW), SHAPE, "float32"), array_CHW)


def test_read_entry__is_read_only(entry):
    with pytest.raises(ValueError, match="read-only"):
        read(entry[0])[0, 0, 0] = 1


def test_pack_entry__is_a_safetensors_file(entry):
    path, array_CHW = entry
    assert np.array_equal(load_file(path)["embedding"], array_CHW)


@settings(max_examples=80)
@given(data=st.data())
def test_read_entry__no_flipped_bit_passes(tmp_path_factory, data):
    array_CHW = np.random.default_rng(0).normal(size=SHAPE).astype(np.float16)
    content = bytearray(b"".join(pack_entry(array_CHW, ENCODER, IMAGE)))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("flipped") / "a.emb"
    path.write_bytes(content)
    with pytest.raises(DamagedEntryError):
        read(path)


@pytest.mark.parametrize("length", [0, 1, 8, 9, -1])
def test_read_entry__cut_off(entry, length):
    path, _ = entry
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedEntryError, match=r"bytes instead of \d+$"):
        read(path)


def test_read_entry__too_long(entry):
    path, _ = entry
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DamagedEntryError, match=r"bytes instead of \d+$"):
        read(path)


@pytest.mark.parametrize(
    "asked",
    [
        {"encoder_key": "f" * 32},
        {"image_key": "f" * 32},
        {"shape": (3, 4, 2)},
        {"shape": (4, 3, 1), "precision": "float32"},
    ],
)
def test_read_entry__of_something_else(entry, asked):
    with pytest.raises(DamagedEntryError, match=r"of another image|bytes instead of"):
        read(entry[0], **asked)


def test_read_entry__missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.emb")


def test_read_entry__of_another_writer(tmp_path):
    path = tmp_path / "a.emb"
    save_file({"x": np.zeros(compute_entry_bytes(SHAPE, "float16") - 64, np.uint8)}, path)
    path.write_bytes(path.read_bytes().ljust(compute_entry_bytes(SHAPE, "float16"), b"\0"))
    with pytest.raises(DamagedEntryError):
        read(path)
