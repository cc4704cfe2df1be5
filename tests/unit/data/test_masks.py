import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from vpexp.data.masks import (
    MaskError,
    check_polygon,
    check_rle,
    compute_area,
    compute_box,
    decode_rle,
    encode_label_map,
    encode_mask,
    merge_rles,
    polygons_to_rle,
)

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
MASKS = hnp.arrays(bool, SHAPES)


@given(MASKS)
def test_decode_rle__is_the_inverse_of_encode_mask(mask_HW):
    rle = encode_mask(mask_HW)
    assert rle["size"] == list(mask_HW.shape)
    assert isinstance(rle["counts"], bytes)
    np.testing.assert_array_equal(decode_rle(rle), mask_HW)


@given(MASKS)
def test_compute_box__tight_bounds(mask_HW):
    rows, columns = np.nonzero(mask_HW)
    box = compute_box(encode_mask(mask_HW))
    assert box.dtype == np.float32
    if rows.size:
        np.testing.assert_array_equal(box, [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    else:
        np.testing.assert_array_equal(box, [0, 0, 0, 0])


@given(MASKS)
def test_compute_area__counts_pixels(mask_HW):
    assert compute_area(encode_mask(mask_HW)) == mask_HW.sum()


@given(hnp.arrays(np.int64, SHAPES, elements=st.integers(-2, 4)))
def test_encode_label_map__equals_encoding_each_value(label_map_HW):
    masks = encode_label_map(label_map_HW)
    assert list(masks) == sorted(set(label_map_HW.ravel().tolist()))
    for value, rle in masks.items():
        assert rle == encode_mask(label_map_HW == value)


def test_polygons_to_rle__equals_pycocotools():
    polygons = [[2.25, 1.5, 12.75, 3.0, 7.5, 9.25], [14.0, 2.0, 18.0, 2.0, 18.0, 6.5]]
    expected = coco_mask.merge(coco_mask.frPyObjects(polygons, 12, 20))
    assert polygons_to_rle(polygons, 12, 20) == expected


def test_polygons_to_rle__rounds_float32_noise_away():
    exact = [10.1, 10.1, 13.3, 10.1, 13.3, 12.7, 10.1, 12.7]
    noisy = np.array(exact, dtype=np.float32).tolist()
    assert noisy != exact
    assert polygons_to_rle([noisy], 20, 20) == polygons_to_rle([exact], 20, 20, decimals=None)


@given(st.lists(st.floats(-40, 60), min_size=6, max_size=12).filter(lambda values: len(values) % 2 == 0))
def test_polygons_to_rle__any_polygon_stays_in_the_image(values):
    rle = polygons_to_rle([values], 15, 20)
    assert decode_rle(rle).shape == (15, 20)
    assert check_rle(rle, 15, 20) == rle


def test_polygons_to_rle__cuts_off_what_is_outside():
    rle = polygons_to_rle([[-5, -5, 50, -5, 50, 50, -5, 50]], 10, 20)
    assert decode_rle(rle).all()
    assert compute_area(polygons_to_rle([[30, 30, 40, 30, 40, 40]], 10, 20)) == 0


@pytest.mark.parametrize(
    ("polygons", "reason"),
    [
        ([], "without points"),
        ([[1, 1, 5, 5]], "fewer than 3 points"),
        ([[1, 1, 5, 5, 3]], "odd number"),
        ([[1, 1, 5, 5, 3, float("nan")]], "no numbers"),
        ([[1, 1, 5, 5, 3, "x"]], "no numbers"),
        ([[1, 1, 5, 5, 3, None]], "no numbers"),
        ([{"a": 1}], "no numbers"),
        ([[1, 1, 5, 5, 3, 1e9]], "far outside"),
    ],
)
def test_polygons_to_rle__bad_polygon(polygons, reason):
    with pytest.raises(MaskError, match=reason):
        polygons_to_rle(polygons, 10, 20)


@given(MASKS)
def test_check_rle__takes_all_three_forms(mask_HW):
    height, width = mask_HW.shape
    expected = encode_mask(mask_HW)
    flat = mask_HW.ravel(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    counts = np.diff([0, *changes, flat.size]).tolist()
    for form in (expected["counts"], expected["counts"].decode("ascii"), counts):
        assert check_rle({"size": [height, width], "counts": form}, height, width) == expected


def test_check_rle__joins_empty_runs():
    # 3 background, 2 object, 0 background, 1 object, 6 background; and an empty object run at the end
    rle = check_rle({"size": [3, 4], "counts": [3, 2, 0, 1, 6, 0]}, 3, 4)
    mask_HW = np.zeros(12, dtype=bool)
    mask_HW[3:6] = True
    assert rle == encode_mask(mask_HW.reshape(3, 4, order="F"))
    np.testing.assert_array_equal(compute_box(rle), [1, 0, 2, 3])


@pytest.mark.parametrize(
    ("rle", "reason"),
    [
        ({"size": [4, 3], "counts": [12]}, "size differs"),
        ({"size": [3, 4], "counts": [11]}, "damaged"),
        ({"size": [3, 4], "counts": [-2, 14]}, "damaged"),
        ({"size": [3, 4], "counts": ["x"]}, "damaged"),
        ({"size": [3, 4], "counts": [float("inf")]}, "damaged"),
        ({"size": [3, float("inf")], "counts": [12]}, "damaged"),
        ({"size": [3, 4], "counts": [10**30]}, "damaged"),
        ({"size": [3, 4], "counts": 12}, "damaged"),
        ({"size": [3, 4], "counts": ["1_2"]}, "damaged"),
        ({"size": [3, 4], "counts": ["\uff11\uff12"]}, "damaged"),
        ({"size": [3, 4], "counts": [11.5, 0.5]}, "damaged"),
        ({"size": [3, 4], "counts": [11, True]}, "damaged"),
        ({"size": ["3", "0_4"], "counts": [12]}, "damaged"),
        ({"size": [3.5, 4], "counts": [12]}, "damaged"),
        ({"size": [3, 4, 1], "counts": [12]}, "damaged"),
        ({"size": [3, 4], "counts": "zzzz"}, "damaged"),
        ({"size": [3, 4], "counts": "Ä"}, "damaged"),
        ({"size": [3, 4], "counts": "P"}, "damaged"),
        ({"size": [3, 4], "counts": ""}, "damaged"),
        ({"size": "ab", "counts": "0"}, "damaged"),
        ({"size": None, "counts": "0"}, "damaged"),
        ({"counts": [12]}, "unknown kind"),
        ([1, 2], "unknown kind"),
    ],
)
def test_check_rle__bad_encoding(rle, reason):
    with pytest.raises(MaskError, match=reason):
        check_rle(rle, 3, 4)


@given(st.binary(max_size=20))
def test_check_rle__never_reads_past_a_damaged_string(counts):
    try:
        rle = check_rle({"size": [5, 6], "counts": counts}, 5, 6)
    except MaskError:
        return
    assert decode_rle(rle).shape == (5, 6)


def test_merge_rles__unites():
    first, second = np.zeros((4, 5), dtype=bool), np.zeros((4, 5), dtype=bool)
    first[:2, :2] = True
    second[1:3, 1:3] = True
    np.testing.assert_array_equal(decode_rle(merge_rles([encode_mask(first), encode_mask(second)])), first | second)
    assert merge_rles([encode_mask(first)]) == encode_mask(first)


def test_check_polygon__number_beyond_floats():
    with pytest.raises(MaskError, match="values that are no numbers"):
        check_polygon([0, 0, 5, 0, 5, 10**400], 10, 10)


@pytest.mark.parametrize("value", ["1_0", "\uff11", "nan", " 10", True, None, "1e999"])
def test_check_polygon__text_that_is_no_number(value):
    with pytest.raises(MaskError, match="values that are no numbers"):
        check_polygon([1, 1, value, 1, 8, 8], 10, 20)


def test_check_polygon__decimal_numbers_in_text():
    assert check_polygon(["1", "1.5", "+2e0", ".5", 8, 8], 10, 20).tolist() == [1, 1.5, 2, 0.5, 8, 8]
