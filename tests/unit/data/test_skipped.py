import pytest

from vpexp.data.skipped import CROWD, LEGITIMATE, SkipLedger, order_by_count
from vpexp.errors import DataError


def test_skip_ledger__counts_and_keeps_the_first_example():
    ledger = SkipLedger()
    ledger.skip("bad", "a.png")
    ledger.skip("bad", "b.png", count=3)
    ledger.skip("worse", "c.png", count=0)
    assert ledger.counts == {"bad": 4}
    assert ledger.examples == {"bad": "a.png"}


def test_skip_ledger__strict_names_the_example():
    ledger = SkipLedger(strict=True)
    with pytest.raises(DataError, match=r"a\.png, annotation 7: bad \(data\.strict=false"):
        ledger.skip("bad", "a.png, annotation 7")


def test_skip_ledger__strict_allows_what_is_no_defect():
    ledger = SkipLedger(strict=True)
    for reason in LEGITIMATE:
        ledger.skip(reason, "a.png")
    assert ledger.counts[CROWD] == 1


def test_order_by_count__most_frequent_first():
    assert order_by_count({"a": 1, "c": 5, "b": 5}) == [("b", 5), ("c", 5), ("a", 1)]


def test_skip_ledger__example_that_is_not_utf_8():
    ledger = SkipLedger()
    ledger.skip("crowd region", "a\udcff.png and \ud800")
    assert ledger.examples == {"crowd region": "a\\udcff.png and \\ud800"}
    with pytest.raises(DataError, match="udcff") as caught:
        SkipLedger(strict=True).skip("box only, no mask", "a\udcff.png")
    assert str(caught.value).encode("utf-8")
