"""Copies are found, and what only looks alike is none: on drawn scenes, and on frames of a scene in which something moves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.references.surveys import build_image, build_split
from vpexp.config.schema import SyntheticConfig
from vpexp.survey.duplicates import ALIKE, SAME_FILE, SAME_PICTURE, Duplicates, find_duplicates, read_signatures

BOX = ((10, 10, 20, 20), 0)


def draw_photo(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Draw soft colours with finer ones over them, as photos have."""
    generator = np.random.default_rng(seed)
    levels_HW3 = np.full((size[1], size[0], 3), 128.0)
    for cells, amplitude in ((4, 60), (12, 35), (40, 20)):
        coarse = generator.normal(0, amplitude, (cells, cells, 3)).astype(np.float32)
        channels = [Image.fromarray(coarse[:, :, i]).resize(size, Image.Resampling.BILINEAR) for i in range(3)]
        levels_HW3 += np.stack([np.asarray(channel) for channel in channels], axis=2)
    return Image.fromarray(np.clip(levels_HW3, 0, 255).astype(np.uint8))


def find(splits: dict[str, Sequence[Path]]) -> Duplicates:
    measured = []
    for name, paths in splits.items():
        images = []
        for path in paths:
            with Image.open(path) as image:
                images.append(build_image(path, [BOX], (image.height, image.width)))
        measured.append(build_split(name, images))
    paths = [path for split in measured for path in split.paths]
    return find_duplicates(measured, read_signatures(paths, [True] * len(paths)))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{seed}.jpg" for seed in range(12)]
    for seed, path in enumerate(paths):
        draw_photo(seed).save(path, quality=90)
    return paths


def test_find__photos_that_differ_are_no_copies(photos):
    found = find({"train": photos[:8], "val": photos[8:]})

    assert (found.pairs, found.alike) == ((), ())
    assert (found.leak_count, found.repeated_count) == (0, 0)


def test_find__the_same_file_in_two_splits(photos, tmp_path):
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(photos[2].read_bytes())

    found = find({"train": photos[:6], "val": [photos[7], copy]})

    (pair,) = found.pairs
    assert (pair.first.image_id, pair.second.image_id, pair.kind) == ("2.jpg", "copy.jpg", SAME_FILE)
    assert (pair.first.split, pair.second.split, pair.is_leak) == ("train", "val", True)
    assert found.leaks == {("train", "val"): 1}
    assert found.repeated == {}


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("worse.jpg", (320, 240), {"quality": 50}),
        ("other.png", (320, 240), {}),
        ("half.jpg", (160, 120), {"quality": 80}),
        ("large.webp", (640, 480), {"quality": 80}),
        ("square.jpg", (256, 256), {"quality": 80}),
    ],
)
def test_find__a_picture_saved_again_or_in_another_size(photos, tmp_path, name, size, options):
    with Image.open(photos[4]) as image:
        image.resize(size, Image.Resampling.LANCZOS).save(tmp_path / name, **options)

    found = find({"train": photos, "test": [tmp_path / name]})

    (pair,) = found.pairs
    assert (pair.first.image_id, pair.second.image_id, pair.kind) == ("4.jpg", name, SAME_PICTURE)
    assert (pair.second.width, pair.second.height) == size
    assert pair.is_leak


def test_find__a_picture_made_brighter_is_the_same_and_one_that_is_shifted_is_alike(photos, tmp_path):
    with Image.open(photos[4]) as image:
        image.point([round(30 + 0.85 * level) for level in range(256)] * 3).save(tmp_path / "bright.jpg")
    with Image.open(photos[5]) as image:
        image.crop((4, 0, 320, 240)).save(tmp_path / "shifted.jpg", quality=90)

    found = find({"train": photos, "val": [tmp_path / "bright.jpg", tmp_path / "shifted.jpg"]})

    assert [(pair.first.image_id, pair.second.image_id) for pair in found.pairs] == [("4.jpg", "bright.jpg")]
    assert [(pair.first.image_id, pair.second.image_id) for pair in found.alike] == [("5.jpg", "shifted.jpg")]


def test_find__copies_in_one_split_are_no_leak(photos, tmp_path):
    copies = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    for copy in copies:
        copy.write_bytes(photos[0].read_bytes())

    found = find({"train": [*photos[:3], *copies], "val": photos[5:7]})

    assert [pair.second.image_id for pair in found.pairs] == ["a.jpg", "b.jpg"]
    assert found.leaks == {}
    assert found.repeated == {"train": 2}


def test_find__frames_in_which_something_moves_are_no_copies(tmp_path):
    generator = np.random.default_rng(0)
    background = draw_photo(3)
    paths = []
    for place in range(6):
        frame = background.copy()
        ImageDraw.Draw(frame).ellipse([40 + 35 * place, 90, 56 + 35 * place, 106], fill=(250, 240, 30))
        noisy = np.asarray(frame).astype(np.float64) + generator.normal(0, 3, (240, 320, 3))
        paths.append(tmp_path / f"frame_{place}.jpg")
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(paths[-1], quality=90)

    found = find({"train": paths[:4], "val": paths[4:]})

    assert found.pairs == ()
    assert found.alike
    assert {(pair.first.split, pair.second.split, pair.kind) for pair in found.alike} == {("train", "val", ALIKE)}
    assert find({"train": paths}).alike == ()


def test_find__images_without_contrast_are_compared_by_content_alone(tmp_path):
    shades = {"black.png": (0, 0, 0), "dark.png": (1, 1, 1), "white.png": (255, 255, 255), "again.png": (0, 0, 0)}
    for name, shade in shades.items():
        Image.new("RGB", (64, 64), shade).save(tmp_path / name)

    found = find({"train": [tmp_path / "black.png", tmp_path / "dark.png"], "val": [tmp_path / "white.png"]})
    same = find({"train": [tmp_path / "black.png"], "val": [tmp_path / "again.png"]})

    assert found.pairs == ()
    assert [pair.kind for pair in same.pairs] == [SAME_FILE]


@pytest.mark.parametrize("scene", ["vineyard", "shapes"])
def test_find__drawn_scenes_are_no_copies(tmp_path, scene):
    from vpexp.synthetic.dataset import write_synthetic_dataset

    root = write_synthetic_dataset(
        tmp_path, SyntheticConfig(scene=scene, image_size=96, train=12, val=6, test=6, seed=0)
    )
    images = sorted((root / "images").iterdir())

    assert find({"train": images[:12], "val": images[12:]}).pairs == ()


def test_read_signatures__a_file_that_is_damaged_says_so(photos, tmp_path):
    cut, text = tmp_path / "cut.jpg", tmp_path / "text.jpg"
    cut.write_bytes(photos[0].read_bytes()[:3000])
    text.write_text("no image")

    good, first, second, third = read_signatures([photos[0], cut, text, tmp_path / "gone.jpg"], [True] * 4)

    assert good.damage is None
    assert good.thumbnail_TT is not None
    assert good.thumbnail_TT.shape == (32, 32)
    assert first.damage == "image file is truncated or damaged"
    assert second.damage == "no image, or its header is damaged"
    assert third.damage is not None
    assert "No such file" in third.damage
