import json

import pytest

from vpexp.demo.labels import read_labels
from vpexp.errors import DataError


@pytest.mark.parametrize("number", ["1_0", "\uff17", 7.5, True, "a"])
@pytest.mark.parametrize("part", ["categories", "images", "annotations"])
def test_read_labels__ids_that_are_no_whole_numbers(tmp_path, part, number):
    content = {
        "categories": [{"id": 1, "name": "cell"}],
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1}],
    }
    path = tmp_path / "instances_train.json"
    path.write_text(json.dumps(content))
    assert list(read_labels(path).masks) == [1]
    content[part].append({**content[part][0], "id": number, "file_name": "b.png"})
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"cannot be gone on with.*is no whole number"):
        read_labels(path)
