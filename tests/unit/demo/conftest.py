"""Images to label, and a model that finds objects in them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.references.labelling import draw_instances
from vpexp.data.image_source import SourceImage, find_images
from vpexp.inference.load import load_predictor


@pytest.fixture
def images(tmp_path: Path) -> list[SourceImage]:
    """Three images in two folders; the last is a photo held upright, stored on its side."""
    rng = np.random.default_rng(0)
    photos = tmp_path / "photos"
    (photos / "b").mkdir(parents=True)
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(photos / "a.png")
    Image.fromarray(rng.integers(0, 255, (30, 50, 3), np.uint8)).save(photos / "b" / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 255, (32, 48, 3), np.uint8)).save(photos / "turned.jpg", exif=exif)
    return find_images(str(photos))


@pytest.fixture
def finder(debug_sam):
    """A predictor that finds something everywhere."""
    predictor = load_predictor(debug_sam)
    predictor.instances = draw_instances().build_model(predictor.device)
    return predictor
