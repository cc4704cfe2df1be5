"""Whatever data sets hold, what is read is what a few lines of json, numpy and pycocotools read, and the rest is counted."""

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.references import drawn_sets
from tests.references.drawn_sets import SPLITS, Expected, Read, draw_set
from vpexp.config.schema import DataConfig
from vpexp.data.dataset import load_dataset
from vpexp.data.images import read_image
from vpexp.data.masks import decode_rle

CASES = {
    "coco": (drawn_sets.write_coco, drawn_sets.COCO_KINDS, {}),
    "datumaro": (drawn_sets.write_datumaro, drawn_sets.DATUMARO_KINDS, {"by_stem": True}),
    "common_semantic_segmentation": (drawn_sets.write_semantic, drawn_sets.MASK_KINDS, {"by_stem": True}),
    "voc": (drawn_sets.write_voc, drawn_sets.MASK_KINDS, {"by_stem": True, "shared": True}),
}


def check(format_: str, seed: int) -> None:
    """Write a data set, and compare what is read of it: objects, pixels of their images, and what is counted as skipped."""
    write, kinds, names = CASES[format_]
    with tempfile.TemporaryDirectory() as folder:
        expected: Expected = write(draw_set(seed, kinds, **names), Path(folder))
        dataset = load_dataset(
            DataConfig(format="auto", root=folder, instances="classes"), splits=SPLITS, keep_empty=True
        )
        assert dataset.format == format_
        assert {split: dataset.splits[split].source for split in SPLITS} == dict(zip(SPLITS, SPLITS, strict=True))
        found: Counter[Read] = Counter()
        for split in SPLITS:
            for image in dataset.splits[split].images:
                (grey,) = np.unique(read_image(image.path)).tolist()
                for label, mask in zip(image.labels_N, image.masks, strict=True):
                    packed = np.packbits(decode_rle(mask)).tobytes()
                    found[split, grey, dataset.categories[label], packed] += 1
        assert (found - expected.objects, expected.objects - found) == ({}, {})
        assert {split: dataset.splits[split].skipped for split in SPLITS} == expected.skipped


@pytest.mark.parametrize("count", [30, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("format_", CASES)
def test_load_dataset__equals_an_independent_reading(format_: str, count: int) -> None:
    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(st.integers(0, 2**32))
    def run(seed: int) -> None:
        check(format_, seed)

    run()
