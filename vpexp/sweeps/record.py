"""The folder of a sweep: what was asked, the jobs in it, and their names, which say what varies."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from vpexp.errors import CheckpointError
from vpexp.runfolder import RunFolder

STAGE = "sweep"
# What changes neither what a job computes nor what it is called: a sweep may go on elsewhere, or with other threads.
UNHASHED = ("tracking", "paths", "sweep", "resume")
HASH_LENGTH = 12


@dataclass(frozen=True, slots=True)
class SweepRecord:
    """What ``run.json`` of a sweep says of it, under ``sweep``.

    Attributes:
        overrides: what every job is asked, and what varies, as typed.
        flags: Hydra's own.
        varying: keys that have several values.
        jobs: how many there are.
        stage: of every job, if it does not vary.
        metric: the number that names the best job; empty: f1-score of val, or of what was tested.
        direction: maximize or minimize.
        cwd: where it was started.
        output_dir: where runs lie, absolute.
        process: that orders the jobs.
        workers: jobs at once on this machine; None where a launcher decides that elsewhere.
        searches: whether a sweeper chooses values as it goes.
        left_out: hashes of jobs that a lost worker took with it, and that do not run beside others.
        alone: hash of the one job that runs now; empty for all but those left out.
    """

    overrides: tuple[str, ...]
    flags: tuple[str, ...]
    varying: tuple[str, ...]
    jobs: int
    stage: str
    metric: str
    direction: str
    cwd: str
    output_dir: str
    process: int
    workers: int | None
    searches: bool
    left_out: tuple[str, ...] = ()
    alone: str = ""


class SweepFolder(RunFolder):
    """A run folder that holds a run folder for each job."""

    @property
    def stop_marker(self) -> Path:
        """There after the first Ctrl-C: no further job starts."""
        return self.path / ".stop"

    @property
    def results(self) -> Path:
        """One row a job."""
        return self.path / "sweep_results.csv"

    def read(self) -> SweepRecord:
        """Read what was asked.

        Raises:
            CheckpointError: this is no sweep, or its record is damaged.
        """
        stored: dict[str, Any] | None = self.read_run_json().get("sweep")
        if stored is None:
            raise CheckpointError(f"{self.path} is no sweep; sweeps lie in outputs/sweeps/<time>")
        known = {field.name for field in fields(SweepRecord)}
        listed: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
        }
        try:
            record = SweepRecord(**{name: value for name, value in listed.items() if name in known})
        except TypeError as error:
            raise CheckpointError(f"{self.run_json}: no record of a sweep: {error}") from error
        kinds = get_type_hints(SweepRecord)
        for name in known:
            value = getattr(record, name)
            kind = tuple if get_origin(kinds[name]) is tuple else kinds[name]
            if not isinstance(value, kind) or (kind is tuple and not all(isinstance(word, str) for word in value)):
                raise CheckpointError(f"{self.run_json}: {name} is no {kinds[name]}: no record of a sweep, or changed")
        return record

    def write(self, record: SweepRecord) -> None:
        """Write down what is asked."""
        self.update_run_json(stage=STAGE, sweep=asdict(record))

    def find_jobs(self) -> list[RunFolder]:
        """Find the folders of the jobs that have begun, in their order."""
        found = [path for path in self.path.glob("*/run.json") if path.parent.name.isdigit()]
        return [RunFolder(path.parent) for path in sorted(found, key=lambda path: int(path.parent.name))]


def hash_job(cfg: DictConfig, values: Mapping[str, str]) -> str:
    """Hash what a job computes, and what varies without changing that: jobs that differ in a tag are two.

    Args:
        cfg: of the job.
        values: of what varies, by key.
    """
    content = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(content, dict)
    hashed = {str(name): value for name, value in content.items() if name not in UNHASHED}
    hashed |= {key.lstrip("+"): value for key, value in values.items() if key.lstrip("+").partition(".")[0] in UNHASHED}
    text = json.dumps(hashed, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


def read_values(overrides: Sequence[str], varying: Sequence[str]) -> dict[str, str]:
    """Read the values of what varies from the overrides of a job, in the order of ``varying``."""
    given = dict(override.lstrip("+").partition("=")[::2] for override in overrides)
    return {key: given[key.lstrip("+")] for key in varying if key.lstrip("+") in given}
