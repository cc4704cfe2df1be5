"""Filling, alone and with others: each image is encoded once, whoever is killed, whatever is damaged."""

import json
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.data.test_batch import save_scene
from vpexp.data.annotations import Region
from vpexp.data.geometry import normalize_and_pad, resize_image
from vpexp.data.images import read_image
from vpexp.embeddings import fill as fill_module
from vpexp.embeddings.fill import ImageEncoder, fill_embeddings
from vpexp.embeddings.plan import plan_embeddings
from vpexp.embeddings.store import EmbeddingStore, StoredEmbeddings, compute_image_key, release
from vpexp.errors import ConfigError

SIZE, SHAPE = 32, (3, 2, 2)
PLENTY = 10**8


def encode(images_B3SS):
    """The means of four quarters: enough to tell images apart."""
    return images_B3SS.reshape(-1, 3, 2, SIZE // 2, 2, SIZE // 2).mean(axis=(3, 5))


def compute_expected(image):
    image_HW3 = read_image(image.path, image.exif_transpose)
    return encode(normalize_and_pad(resize_image(image_HW3, SIZE), SIZE)[None])[0]


def open_store(root):
    return EmbeddingStore(root / "embeddings", "ab" * 16, SHAPE, "float32")


def save_images(root, count):
    return [save_scene(root / f"{i:03d}.png", width=60 + i) for i in range(count)]


def fill(store, images, *, workers=0, batch_size=1, encode=encode, max_bytes=PLENTY):
    plan = plan_embeddings(store, images, max_bytes=max_bytes)
    encoder = ImageEncoder("torch", encode, batch_size)
    return fill_embeddings(store, plan, encoder, image_size=SIZE, num_workers=workers)


@pytest.mark.parametrize("window", [None, Region(10, 30, 30, 55)])
def test_fill__variant_has_the_embedding_of_the_turned_image(tmp_path, window, monkeypatch):
    store, (image,) = open_store(tmp_path), save_images(tmp_path, 1)
    decoded = []
    monkeypatch.setattr(
        fill_module, "read_image", lambda *args, **more: decoded.append(args) or read_image(*args, **more)
    )
    places = [image.place._replace(window=window, variant=variant) for variant in range(8)]
    assert fill(store, places).encoded == 8
    assert len(decoded) == (1 if window else 2), "a whole image is not kept for what may come of it"
    plan = plan_embeddings(store, places, max_bytes=PLENTY)
    stored = StoredEmbeddings(store, plan.keys)
    pixels = read_image(image.path, window=window)
    for place in places:
        mirrored = pixels[:, ::-1] if place.variant >= 4 else pixels
        turned = np.rot90(mirrored, place.variant % 4)
        expected = encode(normalize_and_pad(resize_image(turned, SIZE), SIZE)[None])[0]
        np.testing.assert_array_equal(stored.read(place), expected)


def test_fill__windows_of_an_image_are_encoded_each_and_decoded_once(tmp_path, monkeypatch):
    store, (first, second) = open_store(tmp_path), save_images(tmp_path, 2)
    windows = [Region(0, 0, 20, 20), Region(10, 30, 30, 50)]
    places = [image.place._replace(window=window) for image in (first, second) for window in windows]
    decoded = []
    monkeypatch.setattr(
        fill_module, "read_image", lambda *args, **more: decoded.append(args) or read_image(*args, **more)
    )
    report = fill(store, [*places, first])
    assert (report.encoded, len(decoded)) == (5, 3)
    plan = plan_embeddings(store, places, max_bytes=3 * store.entry_bytes)
    assert (plan.found, plan.not_kept, plan.missing) == (3, 1, [])
    stored = StoredEmbeddings(store, plan.keys, plan.left_out)
    for place, window in zip(places[:3], windows * 2, strict=False):
        view = replace(first if place.path == first.path else second, window=window)
        pixels = read_image(place.path, window=window)
        assert np.array_equal(stored.read(view), encode(normalize_and_pad(resize_image(pixels, SIZE), SIZE)[None])[0])
    assert stored.find_key(replace(second, window=windows[1])) is None


def read_all(store, images):
    return [
        store.read(compute_image_key(image.path.read_bytes(), exif_transpose=image.exif_transpose)) for image in images
    ]


def assert_filled(store, images):
    for image, found in zip(images, read_all(store, images), strict=True):
        assert np.array_equal(found, compute_expected(image)), image.path
    assert not list(store.root.rglob("*.part"))


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path)


@pytest.mark.parametrize(("workers", "batch_size"), [(0, 1), (2, 1), (0, 3), (2, 8)])
def test_fill__every_image_once_then_none(store, tmp_path, workers, batch_size):
    images = save_images(tmp_path, 10)
    report = fill(store, images, workers=workers, batch_size=batch_size)
    assert (report.encoded, report.shared, report.left, report.unreadable) == (10, 0, 0, 0)
    assert_filled(store, images)
    again = fill(store, images, workers=workers, batch_size=batch_size)
    assert again.encoded == 0


def test_fill__damaged_images_are_left_out(store, tmp_path):
    images = save_images(tmp_path, 3)
    content = images[1].path.read_bytes()
    images[1].path.write_bytes(content[: len(content) // 2])
    report = fill(store, images)
    assert (report.encoded, report.unreadable, report.left) == (2, 1, 0)
    assert_filled(store, [images[0], images[2]])


def test_fill__a_file_that_changes_meanwhile_is_stored_as_what_it_is(store, tmp_path):
    images = save_images(tmp_path, 2)
    plan = plan_embeddings(store, images, max_bytes=PLENTY)
    save_scene(images[1].path, width=90)
    fill_embeddings(store, plan, ImageEncoder("torch", encode), image_size=SIZE, num_workers=0)
    assert_filled(store, images)


def test_fill__interrupted_goes_on_where_it_was(store, tmp_path):
    images = save_images(tmp_path, 6)
    seen = []

    def encode_until_interrupted(images_B3SS):
        seen.extend(images_B3SS)
        if len(seen) > 4:
            raise KeyboardInterrupt
        return encode(images_B3SS)

    with pytest.raises(KeyboardInterrupt):
        fill(store, images, batch_size=2, encode=encode_until_interrupted)
    assert not list(store.root.rglob("*.part"))
    assert len(list(store.root.rglob("*.emb"))) == 4
    assert fill(store, images).encoded == 2
    assert_filled(store, images)


def test_fill__numbers_that_float16_does_not_hold(tmp_path):
    store = EmbeddingStore(tmp_path / "embeddings", "ab" * 16, SHAPE, "float16")
    with pytest.raises(ConfigError, match=r"cache\.precision=float32"):
        fill(store, save_images(tmp_path, 3), batch_size=2, encode=lambda images: encode(images) * 1e6)
    assert not [path for path in store.root.rglob("*.*") if path.suffix in {".part", ".emb"}]


def test_fill__folder_that_is_a_file_ends_the_filling_not_the_run(store, tmp_path):
    images = save_images(tmp_path, 3)
    store.root.write_text("not a folder")
    report = fill(store, images)
    assert (report.encoded, report.left) == (0, 3)
    assert report.trouble is not None


def main(root: Path, count: int, seconds: float, limit: int, name: str) -> None:
    """Fill with the other processes, when all are ready."""
    own = root / name
    own.mkdir()
    images = save_images(own, count)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    def encode_slowly(images_B3SS):
        time.sleep(seconds)
        return encode(images_B3SS)

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not (root / "go").exists():
        time.sleep(0.001)
    report = fill(open_store(root), images, encode=encode_slowly)
    sys.stdout.write(json.dumps([report.encoded, report.shared, report.left, str(report.trouble)]))


def start(root: Path, name: str, *, count=12, seconds=0.03, limit=0):
    words = [
        sys.executable,
        "-m",
        "tests.unit.embeddings.test_fill",
        str(root),
        str(count),
        str(seconds),
        str(limit),
        name,
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process):
    return json.loads(process.communicate(timeout=60)[0])


def test_fill__two_processes_share_the_work(store, tmp_path):
    processes = [start(tmp_path, name) for name in "ab"]
    (tmp_path / "go").touch()
    reports = [finish(process) for process in processes]
    assert sum(encoded for encoded, *_ in reports) == 12, reports
    assert all(encoded > 0 and encoded + shared == 12 for encoded, shared, *_ in reports), reports
    assert_filled(store, save_images(tmp_path, 12))


def test_fill__killed_while_encoding_the_next_start_goes_on(store, tmp_path):
    (tmp_path / "go").touch()
    process = start(tmp_path, "a", seconds=0.1)
    while len(list(store.root.rglob("*.emb"))) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(store.root.rglob("*.emb")))
    assert 3 <= done < 12
    images = save_images(tmp_path, 12)
    assert fill(store, images).encoded == 12 - done
    assert_filled(store, images)


def test_fill__takes_over_from_a_killed_process(store, tmp_path):
    """The other one is killed while this one waits for what it has claimed."""
    (tmp_path / "go").touch()
    process = start(tmp_path, "a", count=1, seconds=60)
    while not list(store.root.rglob("*.part")):
        time.sleep(0.005)
    images = save_images(tmp_path, 3)
    other = start(tmp_path, "b", count=3, seconds=0.01)
    while len(list(store.root.rglob("*.emb"))) < 2:
        time.sleep(0.005)
    assert other.poll() is None, "it waits"
    process.send_signal(signal.SIGKILL)
    assert finish(other) == [3, 0, 0, "None"]
    process.wait()
    assert_filled(store, images)


def test_fill__does_not_wait_for_ever(store, tmp_path, monkeypatch):
    monkeypatch.setattr(fill_module, "PATIENCE_SECONDS", 0.3)
    images = save_images(tmp_path, 2)
    claim = store.claim(compute_image_key(images[0].path.read_bytes(), exif_transpose=False))
    report = fill(store, images)
    assert (report.encoded, report.left) == (1, 1)
    release(claim)


def test_fill__full_disk_ends_the_filling_not_the_run(store, tmp_path):
    (tmp_path / "go").touch()
    assert finish(start(tmp_path, "a", limit=80)) == [0, 0, 12, "[Errno 27] File too large"]
    assert not [path for path in store.root.rglob("*.*") if path.suffix in {".part", ".emb"}]
    assert fill(store, save_images(tmp_path, 12)).encoded == 12


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
