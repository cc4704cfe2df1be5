"""What a stage says of the embedding cache."""

import pytest

from vpexp.config import compose_config
from vpexp.stages.shared.embeddings import describe_need


@pytest.mark.parametrize(
    ("asked", "images", "said"),
    [
        (["model=sam_tiny_vit"], 10_000, "10000 images of sam_tiny_vit take 20.97 GB (2.1 MB each, "),
        (["model=sam2_tiny"], 10_000, "10000 images of sam2_tiny take 83.89 GB (8.4 MB each, "),
        (
            ["model=sam2_tiny"],
            10_000,
            "cache.max_gb=20 holds 2,384 of them, the others are encoded whenever they are used",
        ),
        (["model=sam2_tiny", "cache.precision=int8"], 100, "take 420.3 MB (4.2 MB each, cache.precision=int8)"),
        (["model=sam2_tiny", "data.tile=512"], 7, "7 tiles of sam2_tiny take 58.7 MB"),
        (["model=sam2_tiny"], 100, "cache.max_gb=20 holds them all"),
    ],
)
def test_describe_need__of_images_or_tiles(asked, images, said):
    assert said in describe_need(compose_config(asked), images)


@pytest.mark.parametrize("asked", ["cache=none", "model.freeze=[]", "model.tune=last:1", "adapter=lora"])
def test_describe_need__nothing_where_other_things_are_kept(asked):
    assert describe_need(compose_config([asked]), 5) is None
