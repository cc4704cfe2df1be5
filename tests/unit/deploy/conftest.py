"""What the tests of quantization share: drawn training images, and what is drawn from them."""

import pytest

from vpexp.config.schema import DataConfig, PromptConfig, SyntheticConfig
from vpexp.data.dataset import load_dataset
from vpexp.deploy.calibration import read_calibration_set
from vpexp.synthetic.dataset import write_synthetic_dataset


@pytest.fixture(scope="session")
def training_images(tmp_path_factory):
    """Six drawn images of 256 px with their objects."""
    root = write_synthetic_dataset(
        tmp_path_factory.mktemp("training"),
        SyntheticConfig(scene="vineyard", image_size=256, train=6, val=1, test=1, seed=11),
    )
    return load_dataset(DataConfig(format="coco", root=root), splits=("train",)).splits["train"].images


@pytest.fixture(scope="session")
def calibrate(training_images):
    """Draw a calibration set: ``calibrate(image_size, count)``."""

    def draw(image_size, count=6, seed=0, **recipe):
        return read_calibration_set(
            training_images, image_size=image_size, recipe=PromptConfig(**recipe), count=count, seed=seed
        )

    return draw
