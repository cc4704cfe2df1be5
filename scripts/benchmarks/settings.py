"""The settings of both sides of a benchmark."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """The same for both sides.

    Attributes:
        model: name of the model, as ``stage=models`` lists it.
        folder: everything is written below it.
        data: folder of a COCO data set with the splits train, val and test.
        weights: one file in the official layout, which both sides load.
        threads: CPU threads.
        batch_size: images a training step.
        epochs: of a job of a sweep.
    """

    model: str
    folder: Path
    data: Path
    weights: Path
    threads: int = 1
    batch_size: int = 2
    epochs: int = 5

    def to_json(self) -> str:
        """Write it in one line."""
        return json.dumps(asdict(self), default=str)


def read_settings(line: str) -> Settings:
    """Read what ``Settings.to_json`` wrote."""
    fields = json.loads(line)
    return Settings(**{**fields, **{name: Path(fields[name]) for name in ("folder", "data", "weights")}})
