"""The benchmark of reading annotations, at a size that takes a second."""

from scripts.benchmarks.data import OBJECTS_AN_IMAGE, measure_data


def test_measure_data__one_row_a_size():
    rows = measure_data([5, 700])
    assert [row["images"] for row in rows] == [5, 700]
    assert [row["objects"] for row in rows] == [round(5 * OBJECTS_AN_IMAGE), round(700 * OBJECTS_AN_IMAGE)]
    large = rows[1]
    assert large["kept_mb"] > 0
    assert 0 < large["kept_s"] < large["first_s"]
    assert 0 < large["kept_read_peak_mb"] < 1000
