from pathlib import Path

from vpexp.runfolder import RunFolder
from vpexp.sweeps.processes import find_lost_jobs, wait_for_jobs
from vpexp.sweeps.record import SweepFolder


def make_job(sweep: SweepFolder, number: int, status: str) -> RunFolder:
    path = sweep.path / str(number)
    path.mkdir()
    job = RunFolder(path)
    job.update_run_json(status=status, config_hash=f"{number:012}")
    return job


def test_find_lost_jobs__are_under_way_by_their_record_and_held_by_no_process(tmp_path: Path):
    sweep = SweepFolder(tmp_path)
    make_job(sweep, 0, "FINISHED")
    lost = [make_job(sweep, 1, "RUNNING"), make_job(sweep, 2, "STARTING")]

    assert [job.path for job in find_lost_jobs(sweep)] == [job.path for job in lost]


def test_wait_for_jobs__gives_up_on_one_that_is_at_work(tmp_path: Path):
    sweep = SweepFolder(tmp_path)
    working = make_job(sweep, 0, "RUNNING")

    with working.hold():
        assert [job.path for job in wait_for_jobs(sweep, seconds=0.1)] == [working.path]
    assert wait_for_jobs(sweep, seconds=0.1) == []
