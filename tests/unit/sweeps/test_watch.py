"""Whose process died, told even where the launcher was faster than the watch."""

from pathlib import Path

from vpexp.runfolder import RunFolder
from vpexp.sweeps.processes import DeathWatch
from vpexp.sweeps.record import SweepFolder


def make_job(sweep: SweepFolder, number: int, status: str) -> RunFolder:
    path = sweep.path / str(number)
    path.mkdir()
    job = RunFolder(path)
    job.update_run_json(status=status, config_hash=f"{number:012}")
    return job


def test_watch__a_job_that_died_just_before_the_end_is_found(tmp_path: Path):
    sweep = SweepFolder(tmp_path)
    make_job(sweep, 0, "FINISHED")
    lost = make_job(sweep, 1, "RUNNING")
    working = make_job(sweep, 2, "RUNNING")

    with working.hold(), DeathWatch(sweep) as watch:
        pass

    assert [job.path for job in watch.first_dead] == [lost.path]


def test_watch__nobody_died(tmp_path: Path):
    sweep = SweepFolder(tmp_path)
    make_job(sweep, 0, "FINISHED")
    working = make_job(sweep, 1, "RUNNING")

    with working.hold(), DeathWatch(sweep) as watch:
        pass

    assert watch.first_dead == []
