import pytest

from vpexp.data.skipped import CROWD, LEGITIMATE, SkipCounts, order_by_count
from vpexp.errors import DataError


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
