"""A training stopped anywhere and resumed ends with the numbers of one that was never stopped, to the bit."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from vpexp.config import compose_config
from vpexp.run import run
from vpexp.runfolder import RunFolder, read_metrics
from vpexp.stages import train
from vpexp.stages.shared import training_loop
from vpexp.training.callbacks import AtomicCheckpointIO, EarlyStoppingAfter
from vpexp.training.module import SamFineTuner

SETTINGS = [
    "experiment=debug",
    "prompter=none",
    "stage.test=false",
    "stage.overlays=0",
    "stage.controls=false",
    "data.synthetic.train=5",  # three steps an epoch, the last one of a single image
    "data.synthetic.val=2",
    "data.batch_size=2",
    "optimizer.lr=1e-3",
    "loss.focal_weight=0",  # with these two each epoch is the best so far
    "trainer.max_epochs=9",
    "callbacks.early_stopping.patience=2",
    "callbacks.early_stopping.min_delta=1",  # nothing is a gain but the first epoch: three are trained
    "callbacks.progress=null",
    "prompt.jitter=0.3",
    "trainer.threads=1",  # sums in another order are other numbers
    "tracking=none",
]
TIMES = ("_time", "seconds", "_ms")
STEPS, VALIDATED = 3, 2  # of an epoch


@dataclass(frozen=True)
class Place:
    """A call in the course of a training: the ``count``-th of a function, before or behind it."""

    owner: Any
    name: str
    count: int
    behind: bool = False


PLACES = {
    "before_the_first_batch": Place(SamFineTuner, "on_train_start", 1),
    "batch_loaded": Place(SamFineTuner, "transfer_batch_to_device", 2),
    "forward": Place(SamFineTuner, "training_step", 2, behind=True),
    "backward": Place(SamFineTuner, "backward", STEPS + 2),
    "optimizer_step": Place(torch.optim.Adam, "step", STEPS + 2, behind=True),
    "step_done": Place(SamFineTuner, "on_train_batch_end", 1, behind=True),
    "last_step": Place(SamFineTuner, "training_step", 2 * STEPS),
    "last_step_done": Place(SamFineTuner, "on_train_batch_end", STEPS, behind=True),
    "validation_start": Place(SamFineTuner, "on_validation_epoch_start", 2),
    "validation_middle": Place(SamFineTuner, "validation_step", 1, behind=True),
    "validation_last_image": Place(SamFineTuner, "validation_step", 2 * VALIDATED),
    "validation_end": Place(SamFineTuner, "on_validation_epoch_end", 2),
    "early_stopping": Place(EarlyStoppingAfter, "on_validation_end", 3, behind=True),
    "epoch_recorded": Place(training_loop, "append_metrics", 2, behind=True),
    "writing_best": Place(AtomicCheckpointIO, "save_checkpoint", 4),  # the start; best and last; best
    "writing_last": Place(AtomicCheckpointIO, "save_checkpoint", 5, behind=True),
    "between_epochs": Place(SamFineTuner, "on_train_epoch_start", 2),
    "first_step_of_an_epoch": Place(SamFineTuner, "training_step", STEPS + 1),
    "end_of_training": Place(SamFineTuner, "on_train_end", 1),
    "evaluation_after": Place(train, "apply_checkpoint", 1, behind=True),
}
STOPS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}


@contextmanager
def at(place: Place, act: Callable[[], None]) -> Iterator[None]:
    """Act once, at a place of the training under way."""
    original, calls = getattr(place.owner, place.name), 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == place.count and not place.behind:
            act()
        result = original(*args, **kwargs)
        if calls == place.count and place.behind:
            act()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place.owner, place.name, call)
        yield
    assert calls >= place.count, "the training did not come to this place"


def send(*numbers: int) -> Callable[[], None]:
    def act() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    return act


def start(*overrides: str) -> Path:
    folder = run(compose_config([*SETTINGS, *overrides]), [*SETTINGS, *overrides]).folder
    assert folder is not None
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory, cache_dir) -> Callable[[str], list[str]]:
    root = tmp_path_factory.mktemp("stops")
    return lambda name: [f"paths.output_dir='{root / name}'", f"paths.cache_dir='{cache_dir}'"]


@pytest.fixture(scope="module")
def whole(places) -> Path:
    """A training that nobody stopped."""
    return start(*places("whole"))


def stop(place: Place, overrides: list[str], *numbers: int) -> Path:
    """Start a training, or go on with one, and stop it."""
    with pytest.raises(STOPS[numbers[-1]]) as caught, at(place, send(*numbers)):
        start(*overrides)
    if caught.type is SystemExit:
        assert caught.value.code == 128 + signal.SIGTERM
    (folder,) = Path(overrides[0].partition("=")[2].strip("'"), "train").iterdir()
    assert RunFolder(folder).read_run_json()["status"] == "KILLED"
    return folder


def read_numbers(content: Any) -> Any:
    """Leave out how long things took."""
    if isinstance(content, dict):
        return {key: read_numbers(value) for key, value in content.items() if value != "" and not key.endswith(TIMES)}
    return [read_numbers(value) for value in content] if isinstance(content, list) else content


def flatten(content: Any, name: str = "") -> dict[str, Any]:
    if isinstance(content, dict):
        return {key: value for k, part in content.items() for key, value in flatten(part, f"{name}/{k}").items()}
    if isinstance(content, list | tuple):
        return flatten(dict(enumerate(content)), name)
    return {name: content}


def read_checkpoint(path: Path) -> dict[str, Any]:
    content = torch.load(path, weights_only=True)
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "epoch_sums", "unreadable")
    flat = flatten({name: content[name] for name in kept if name in content})
    states = {name: state for name, state in content.get("callbacks", {}).items() if name.startswith("EarlyStopping")}
    return {**flat, **flatten(states)}


def assert_same(expected: Path, found: Path) -> None:
    assert read_numbers(read_metrics(found / "metrics.csv")) == read_numbers(read_metrics(expected / "metrics.csv"))
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (expected, found)]
    assert read_numbers(metrics[0]) == read_numbers(metrics[1])
    names = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (expected, found)]
    assert names[0] == names[1]
    for name in names[0]:
        one, other = (read_checkpoint(folder / "checkpoints" / name) for folder in (expected, found))
        assert one.keys() == other.keys()
        for key, value in one.items():
            same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
            assert same, f"{name}: {key}"


def choose_cases() -> Iterator[Any]:
    """Choose a signal for each place, in turns; some places of each kind are tried by the quick tests too."""
    quick = ("optimizer_step", "last_step", "validation_middle", "early_stopping")
    for index, name in enumerate(PLACES):
        number = list(STOPS)[index % 2]
        marks = [] if name in quick else [pytest.mark.slow]
        yield pytest.param(name, number, id=f"{name}-{number.name}", marks=marks)


@pytest.mark.parametrize(("name", "number"), choose_cases())
def test_resume__equals_the_run_that_was_not_stopped(name, number, whole, places):
    overrides = places(f"{name}_{number}")
    folder = stop(PLACES[name], overrides, number)
    assert start(*overrides, f"resume='{folder}'") == folder
    assert_same(whole, folder)


@pytest.mark.slow
def test_stop__twice_is_now_and_what_was_saved_before_is_gone_on_from(whole, places):
    overrides = places("twice")
    folder = stop(PLACES["first_step_of_an_epoch"], overrides, signal.SIGINT)
    again = [*overrides, f"resume='{folder}'"]
    saved = (folder / "checkpoints" / "last.ckpt").read_bytes()
    stop(Place(torch.optim.Adam, "step", 1, behind=True), again, signal.SIGINT, signal.SIGINT)
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == saved  # a step was half done
    for place in (PLACES["validation_middle"], Place(SamFineTuner, "on_validation_epoch_start", 1)):
        stop(place, again, signal.SIGTERM, signal.SIGINT)
    start(*again)
    assert_same(whole, folder)


@pytest.mark.slow
def test_resume__of_one_epoch_measures_it(places):
    one = "trainer.max_epochs=1"
    expected = start(*places("one"), one)
    overrides = [*places("stopped_one"), one]
    folder = stop(PLACES["last_step_done"], overrides, signal.SIGTERM)
    start(*overrides, f"resume='{folder}'")
    assert_same(expected, folder)


@pytest.mark.slow
def test_stop__waits_for_the_gradients_of_a_whole_step(places):
    settings = ["trainer.accumulate_grad_batches=2", "data.batch_size=1"]
    expected = start(*places("accumulated"), *settings)
    overrides = [*places("stopped_accumulated"), *settings]
    folder = stop(Place(SamFineTuner, "training_step", 3), overrides, signal.SIGINT)
    start(*overrides, f"resume='{folder}'")
    assert_same(expected, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["validation_end", "epoch_recorded", "writing_best"])
def test_resume__of_a_copy_equals_the_run_that_was_killed_there(name, whole, places):
    """A copy of the folder is what SIGKILL leaves; the folder that it was copied from stays as it is."""
    overrides = places(f"killed_{name}")
    output = Path(overrides[0].partition("=")[2].strip("'"))
    place = PLACES[name]
    later = Place(place.owner, place.name, place.count + 1, place.behind)
    with at(later, lambda: shutil.copytree(output, f"{output}_copy")):
        original = start(*overrides)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in original.rglob("*") if path.is_file()}
    copy = Path(f"{output}_copy") / original.relative_to(output)
    start(f"paths.output_dir='{output}_copy'", overrides[1], f"resume='{copy}'")
    assert_same(whole, copy)
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in original.rglob("*") if path.is_file()}
    assert after == before
