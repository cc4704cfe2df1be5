from pathlib import Path

import pytest

from vpexp.data.skipped import (
    BOX_ONLY,
    CROWD,
    LEGITIMATE,
    NOTHING_USABLE,
    SkipCounts,
    explain_shortage,
    order_by_count,
)
from vpexp.errors import DataError

ROOT = Path("my/set")


def test_skip_counts__counts_and_keeps_the_first_example():
    skips = SkipCounts()
    skips.skip("bad", "a.png")
    skips.skip("bad", "b.png", count=3)
    skips.skip("worse", "c.png", count=0)
    assert skips.counts == {"bad": 4}
    assert skips.examples == {"bad": "a.png"}


def test_skip_counts__strict_names_the_example():
    skips = SkipCounts(strict=True)
    with pytest.raises(DataError, match=r"a\.png, annotation 7: bad \(data\.strict=false"):
        skips.skip("bad", "a.png, annotation 7")


def test_skip_counts__strict_allows_what_is_no_defect():
    skips = SkipCounts(strict=True)
    for reason in LEGITIMATE:
        skips.skip(reason, "a.png")
    assert skips.counts[CROWD] == 1


def test_order_by_count__most_frequent_first():
    assert order_by_count({"a": 1, "c": 5, "b": 5}) == [("b", 5), ("c", 5), ("a", 1)]


def test_skip_counts__example_that_is_not_utf_8():
    skips = SkipCounts()
    skips.skip("crowd region", "a\udcff.png and \ud800")
    assert skips.examples == {"crowd region": "a\\udcff.png and \\ud800"}
    with pytest.raises(DataError, match="udcff") as caught:
        SkipCounts(strict=True).skip("box only, no mask", "a\udcff.png")
    assert str(caught.value).encode("utf-8")


def test_explain_shortage__one_cause():
    skips = SkipCounts()
    skips.skip(BOX_ONLY, "a.jpg, annotation 7", count=850)
    skips.skip(NOTHING_USABLE, "a.jpg", count=58)
    assert explain_shortage("train", "train2017", skips, ROOT, 1) == (
        "my/set: nothing to learn from in split train ('train2017'): all 850 objects are boxes without masks; "
        "vpexp learns from masks: use annotations with polygons, RLE or mask images (first: a.jpg, annotation 7)"
    )


def test_explain_shortage__only_one_object():
    skips = SkipCounts()
    skips.skip(CROWD, "a.jpg")
    assert "nothing to measure in split test ('t'): the only object is a crowd region;" in explain_shortage(
        "test", "t", skips, ROOT, 1
    )


def test_explain_shortage__several_causes():
    skips = SkipCounts()
    skips.skip(CROWD, "a.jpg", count=2)
    skips.skip(BOX_ONLY, "b.jpg", count=5)
    skips.skip("damaged RLE", "c.jpg")
    text = explain_shortage("train", "train", skips, ROOT, 1)
    assert "5 objects are boxes without masks, 2 skipped: crowd region, 1 skipped: damaged RLE; vpexp" in text


def test_explain_shortage__no_cause():
    assert explain_shortage("train", "train", SkipCounts(), ROOT, 1).endswith("it has no images with annotations")
    assert "the folder holds no image files" in explain_shortage("train", "train", SkipCounts(), ROOT, 0)
