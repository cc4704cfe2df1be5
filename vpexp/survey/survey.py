"""What a look at a data set gives: its numbers, and what is worth saying about them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vpexp.survey.duplicates import Duplicates
from vpexp.survey.measure import ObjectSizes, SplitMeasures

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class DamagedFile:
    """An image file that cannot be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """All that was found out about a data set.

    Attributes:
        name: what people call it.
        root: its folder.
        format: what it was read as.
        categories: names of the classes.
        splits: the numbers of its splits; one that only stands in for another is not among them.
        model: the model that the sizes are seen with.
        image_size: pixels of its input's longest side.
        object_sizes: the sizes of objects by split, of splits that have any.
        notes: what the reader had to say.
        duplicates: pictures that occur twice; None where they were not looked for.
        damaged: image files that cannot be used.
        tile: side of the tiles that images are cut into, pixels of the original image; None: they are whole.
    """

    name: str
    root: Path
    format: str
    categories: tuple[str, ...]
    splits: tuple[SplitMeasures, ...]
    model: str
    image_size: int
    object_sizes: Mapping[str, ObjectSizes]
    notes: tuple[str, ...] = ()
    duplicates: Duplicates | None = None
    damaged: tuple[DamagedFile, ...] = ()
    tile: int | None = None

    @property
    def shown(self) -> str:
        """What the model is shown at once."""
        return "image" if self.tile is None else f"tile of {self.tile} px"

    @property
    def image_count(self) -> int:
        """Count the images that have objects."""
        return sum(split.image_count for split in self.splits)

    @property
    def object_count(self) -> int:
        """Count the objects that have a mask."""
        return sum(split.object_count for split in self.splits)

    def count_skipped(self, *reasons: str) -> int:
        """Count what was left out for any of some reasons, or, without any, for all of them."""
        return sum(
            count
            for split in self.splits
            for reason, count in split.skipped.items()
            if not reasons or reason in reasons
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to look at.

    Attributes:
        level: how bad it is.
        text: what was found.
        advice: what to do about it.
        examples: images or files that it is about, the first few.
    """

    level: Level
    text: str
    advice: str = ""
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DataTable:
    """A table of text: the first column names the rows, the others hold numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
