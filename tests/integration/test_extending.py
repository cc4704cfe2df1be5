"""The code of docs/extending.md, as it stands there, in one training."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vpexp.config import compose_config
from vpexp.errors import ConfigError
from vpexp.run import run

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
SMALL = [
    *("trainer.max_epochs=1", "trainer.accelerator=cpu", "data.num_workers=0", "data.batch_size=2"),
    *("callbacks.progress=null", "tracking.enabled=false", "stage.test=true", "cache.enabled=false"),
]


def draw_pairs(root):
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 1), ("test", 1)):
        (root / split).mkdir(parents=True)
        for number in range(count):
            numbers_HW = np.zeros((48, 64), dtype=np.uint8)
            numbers_HW[4:20, 6:30], numbers_HW[26:44, 36:60] = 1, 2
            Image.fromarray(numbers_HW).save(root / split / f"{number}_mask.png")
            pixels_HW3 = rng.integers(0, 90, (48, 64, 3)) + 60 * numbers_HW[..., None]
            Image.fromarray(pixels_HW3.astype(np.uint8)).save(root / split / f"{number}.png")
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(root / "train" / "alone.png")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Write the files of the page into the working folder."""
    for name, text in re.findall(r"^`([\w/]+\.\w+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def list_words():
    """List the words of all commands of the page, but for the folder of groups."""
    commands = re.findall(r"^```bash\npython -m vpexp (.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    words = [word for command in commands for word in shlex.split(command)]
    assert len(commands) == 4
    return [word for word in words if word not in ("--config-dir", "my_conf")]


def test_extending__the_page_works_as_it_stands(files):
    draw_pairs(files / "photos")
    overrides = [*list_words(), *SMALL]

    result = run(compose_config(overrides, "my_conf"), overrides)

    assert result.folder is not None
    record = (result.folder / "run.json").read_text()
    assert '"mask file is missing": 1' in record
    assert "found" in (result.folder / "metrics.csv").read_text()
    assert {name for name in result.metrics if name.endswith("/found")} == {
        *("val/found", "test/found", "before/val/found", "before/test/found")
    }
    # A checkpoint that names a reader and a model of somebody's own is read where they are given again.
    asked = ["stage=test", f"checkpoint='{result.folder}'", *SMALL[1:-2], "cache.enabled=false"]
    with pytest.raises(ConfigError, match=r"_target_=p\w+\.\w+ is no part of vpexp"):
        run(compose_config(asked), asked)
    asked += ["model._target_=patches.build", "data._target_=pairs.PairsReader"]
    again = run(compose_config(asked), asked)
    assert again.metrics["test/f1-score"] == result.metrics["test/f1-score"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data._target_=pairs.PairReader"], "data._target_=pairs.PairReader cannot be imported"),
        (
            ["data._target_=builtins.dict"],
            "data._target_=builtins.dict is no subclass of vpexp.data.readers.base.Reader",
        ),
        (["~data.options.suffix"], "data.options: pairs.PairsReader missing a required argument: 'suffix'"),
        (["data.options.sufix=a"], "data.options: pairs.PairsReader got an unexpected keyword argument 'sufix'"),
        (["metrics.found.iuo=1"], "metrics.found: "),
        (["metrics.found._target_=patches.build"], "metrics.found"),
    ],
)
def test_extending__mistakes_are_one_line(files, overrides, words):
    draw_pairs(files / "photos")
    overrides = [*list_words(), *SMALL, *overrides]

    with pytest.raises(ConfigError) as caught:
        run(compose_config(overrides, "my_conf"), overrides)

    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
