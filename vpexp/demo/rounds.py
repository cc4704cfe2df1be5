"""The data set that a round learns from, and what came out of it.

Of the labelled images a share is held out, by the content of their files, and never one that an earlier round has learnt from. Of the
first few none is: each is worth more to learn from, and what one image says of a model is next to nothing.
"""

import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from vpexp.console import format_count
from vpexp.demo.folder import place_image
from vpexp.demo.labels import LabelSet
from vpexp.files import write_text
from vpexp.runfolder import RunFolder

HELD_OUT = 0.25
"""Share of the labelled images that models are measured on."""
OUTPUT = "output.log"
"""In the folder of a round: what its process printed."""
FIRST = 3
"""Images with masks, up to which a round learns from all of them, and is measured on the same."""
LONGEST_INTERVAL = 10
FOUND, MASKS = "val/auto/f1", "val/f1-score"


@dataclass(frozen=True, slots=True)
class Round:
    """What a round brought.

    Attributes:
        number: from 1.
        images: that it learnt from.
        held_out: images that it was measured on; 0: it was on those that it learnt from.
        before: of the model that it started from: F1 at an IoU of 0.5 of what is found without prompts (0: it finds nothing), and
            F1 of the pixels of masks from boxes.
        after: of the model that it made.
        taken: whether that is the better one, by the sum of both, and so was taken up.
        error: why it made none; None where it did.
    """

    number: int
    images: int
    held_out: int
    before: tuple[float, float] = (0.0, 0.0)
    after: tuple[float, float] = (0.0, 0.0)
    taken: bool = False
    error: str | None = None

    def __str__(self) -> str:
        if self.error:
            return f"round {self.number} ended early ({self.error}): the model stays"
        (found, masks), (found_after, masks_after) = self.before, self.after
        measured = format_count(self.held_out, "held-out image")
        if not self.held_out:
            measured = (
                "the image that it learnt from" if self.images == 1 else f"the {self.images} images that it learnt from"
            )
        outcome = "taken up" if self.taken else "no better, not taken up"
        return f"round {self.number}, on {measured}: found {found:.2f} → {found_after:.2f}, masks {masks:.3f} → {masks_after:.3f}: {outcome}"

    def to_json(self) -> dict[str, Any]:
        """Write it as JSON holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` wrote."""
        values: dict[str, Any] = {field.name: content[field.name] for field in fields(cls)}
        return cls(**values | {name: tuple(values[name]) for name in ("before", "after")})


def hash_image(path: Path) -> float:
    """Compute a number from 0 to 1 of the content of a file.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def find_interval(known: int) -> int:
    """Find after how many further images the next round begins: half of those that the last one knew, 1 at least and 10 at most."""
    return min(max(1, math.ceil(known / 2)), LONGEST_INTERVAL)


def choose_held_out(places: Mapping[str, float], with_masks: Collection[str], learnt: Collection[str] = ()) -> set[str]:
    """Choose the images that models are measured on: those whose number is low; the lowest with masks where no such one is.

    Args:
        places: the number of each image, see ``hash_image``, by its name.
        with_masks: names of those with masks, one at least; one is not held out. Of no more than ``FIRST`` none is.
        learnt: names of those that an earlier round has learnt from, which are not held out.
    """
    masked = sorted(set(with_masks).difference(learnt), key=lambda name: (places[name], name))
    if len(with_masks) <= FIRST or not masked:
        return set()
    low = {name for name, place in places.items() if place < HELD_OUT and name not in learnt}
    low.add(masked[0])
    if low.issuperset(with_masks):
        low.remove(masked[-1])
    return low


def write_dataset(root: Path, labels: LabelSet, paths: Mapping[str, Path], held_out: Collection[str]) -> None:
    """Write the data set of a round.

    Args:
        root: a folder that is not there.
        labels: what is kept.
        paths: the images that count, by name.
        held_out: names of those to measure on; none: it is measured on those that it learns from.

    Raises:
        OSError: it cannot be written.
    """
    (root / "annotations").mkdir(parents=True)
    for split, is_held_out in (("train", False), ("val", True)):
        names = [name for name in paths if not held_out or (name in held_out) is is_held_out]
        for name in names:
            place_image(paths[name], root / "images" / split / name, is_labelled=False)
        write_text(root / "annotations" / f"instances_{split}.json", "".join(labels.choose(names).write()))


def _read_last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").split("\n") if path.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it did not begin")


def read_outcome(folder: Path, number: int, images: int, held_out: int) -> tuple[Round, Path | None]:
    """Read what a training left below a folder; also the checkpoint that it made.

    Returns:
        The checkpoint is None where the training made none, or no better one.
    """
    runs = sorted(folder.glob("train/*/run.json"))
    if not runs:
        return Round(number, images, held_out, error=_read_last_line(folder / OUTPUT)), None
    run = RunFolder(runs[-1].parent)
    record = run.read_run_json()
    if record.get("status") != "FINISHED":
        return Round(number, images, held_out, error=str(record.get("error") or "it was killed")), None
    metrics = run.read_metrics_json()["metrics"]
    before, after = (
        (float(metrics.get(f"{moment}{FOUND}") or 0.0), float(metrics.get(f"{moment}{MASKS}") or 0.0))
        for moment in ("before/", "")
    )
    taken = sum(after) > sum(before)
    checkpoint = run.path / record["best_checkpoint"]
    return Round(number, images, held_out, before, after, taken), checkpoint if taken else None
