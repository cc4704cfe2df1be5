"""Entries come back bit by bit, or not at all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file, save_file

from vpexp.embeddings.store import (
    PRECISIONS,
    DamagedEntryError,
    compute_entry_bytes,
    pack_entry,
    read_entry,
    to_arrays,
)

ENCODER, IMAGE = "0123456789abcdef" * 2, "fedcba9876543210" * 2
SHAPE = (4, 3, 2)


def write(path, array_CHW, precision="float16", encoder_key=ENCODER, image_key=IMAGE):
    path.write_bytes(b"".join(pack_entry(to_arrays(array_CHW, precision), encoder_key, image_key)))
    return path


def read(path, shape=SHAPE, precision="float16", encoder_key=ENCODER, image_key=IMAGE):
    return read_entry(path, shape, precision, encoder_key, image_key)


def draw_scaled(shape, seed=0):
    """Channels of very different ranges, and one that is the same everywhere."""
    rng = np.random.default_rng(seed)
    array_CHW = rng.normal(size=shape) * 10.0 ** rng.integers(-4, 5, size=(shape[0], 1, 1)) + rng.normal(
        size=(shape[0], 1, 1)
    )
    array_CHW[0] = 0.3
    return array_CHW.astype(np.float32)


@pytest.fixture
def entry(tmp_path):
    array_CHW = np.random.default_rng(0).normal(size=SHAPE).astype(np.float16)
    return write(tmp_path / "a.emb", array_CHW), array_CHW


@settings(max_examples=60)
@given(data=st.data(), precision=st.sampled_from(["float16", "float32"]))
def test_read_entry__gives_every_bit_back(tmp_path_factory, data, precision):
    shape = data.draw(st.tuples(*[st.integers(1, 6)] * 3))
    array_CHW = data.draw(arrays.arrays(PRECISIONS[precision], shape))  # NaN, infinities and subnormal numbers too
    path = write(tmp_path_factory.mktemp("entry") / "a.emb", array_CHW, precision)
    found_CHW = read(path, shape, precision)
    assert found_CHW.dtype == PRECISIONS[precision]
    assert found_CHW.shape == shape
    assert found_CHW.tobytes() == array_CHW.tobytes()
    assert path.stat().st_size == compute_entry_bytes(shape, precision)


def test_pack_entry__takes_arrays_in_any_layout(tmp_path):
    array_CHW = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32).transpose(2, 1, 0)
    assert np.array_equal(read(write(tmp_path / "a.emb", array_CHW, "float32"), SHAPE, "float32"), array_CHW)


def test_read_entry__of_8_bits_is_off_by_half_a_level_at_most(tmp_path):
    array_CHW = draw_scaled((40, 9, 7))
    path = write(tmp_path / "a.emb", array_CHW, "int8")
    found_CHW = read(path, array_CHW.shape, "int8")
    range_C = np.ptp(array_CHW.astype(np.float64), axis=(1, 2))
    error_C = np.abs(found_CHW - array_CHW.astype(np.float64)).max(axis=(1, 2))
    assert (error_C <= 0.501 * range_C / 255 + 1e-6 * np.abs(array_CHW).max(axis=(1, 2))).all()
    assert (found_CHW[0] == array_CHW[0]).all()
    assert path.stat().st_size == compute_entry_bytes(array_CHW.shape, "int8") < array_CHW.size + 8 * 40 + 500


def test_read_entry__of_8_bits_as_another_reader_of_safetensors(tmp_path):
    array_CHW = draw_scaled((6, 5, 4), seed=1)
    path = write(tmp_path / "a.emb", array_CHW, "int8")
    found = load_file(path)
    own_CHW = found["embedding"] * found["scale"][:, None, None] + found["offset"][:, None, None]
    assert np.array_equal(own_CHW, read(path, array_CHW.shape, "int8"))


def test_to_arrays__of_8_bits_hides_no_number_that_is_none(tmp_path):
    array_CHW = draw_scaled((4, 3, 2))
    array_CHW[1, 0, 0], array_CHW[2, 1, 1] = np.nan, np.inf
    found_CHW = read(write(tmp_path / "a.emb", array_CHW, "int8"), (4, 3, 2), "int8")
    assert not np.isfinite(found_CHW[1:3]).any()
    assert np.isfinite(found_CHW[[0, 3]]).all()


def test_read_entry__is_read_only(entry):
    with pytest.raises(ValueError, match="read-only"):
        read(entry[0])[0, 0, 0] = 1


def test_pack_entry__is_a_safetensors_file(entry):
    path, array_CHW = entry
    assert np.array_equal(load_file(path)["embedding"], array_CHW)


@settings(max_examples=80)
@given(data=st.data(), precision=st.sampled_from(["float16", "int8"]))
def test_read_entry__no_flipped_bit_passes(tmp_path_factory, data, precision):
    array_CHW = np.random.default_rng(0).normal(size=SHAPE).astype(np.float16)
    content = bytearray(b"".join(pack_entry(to_arrays(array_CHW, precision), ENCODER, IMAGE)))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("flipped") / "a.emb"
    path.write_bytes(content)
    with pytest.raises(DamagedEntryError):
        read(path, precision=precision)


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
