"""What rank 0 makes of followers that end: each here is a process that ends in its own way."""

import os
import signal
import subprocess
import sys
import time

import pytest

from vpexp.errors import DataError, ProcessError
from vpexp.runfolder import RunFolder
from vpexp.stages.shared.distributed import DONE, FAILED, open_followers, report_to_rank_0

KILLED = f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"
FAILS = "raise SystemExit(1)"
LEAVES = "pass"
STAYS = "import time; time.sleep(600)"


@pytest.fixture
def followers(tmp_path):
    with open_followers(RunFolder(tmp_path), world_size=3) as opened:
        yield opened


def start(followers, *programs):
    for program in programs:
        process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
        followers._processes.append(process)


def test_explain__a_killed_follower_is_named_with_its_log(followers, tmp_path):
    start(followers, STAYS, KILLED)
    error = followers.explain(30)
    assert isinstance(error, ProcessError)
    assert str(error) == f"process 3 of the 3 that train was killed by SIGKILL; its log: {tmp_path / 'rank_2.log'}"
    with pytest.raises(ProcessError):
        followers.check()


def test_explain__says_how_to_go_on_where_there_is_a_checkpoint(followers, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    start(followers, KILLED, STAYS)
    assert str(followers.explain(30)).endswith(f"rank_1.log; go on with: python -m vpexp resume={tmp_path}")


def test_explain__an_error_of_the_user_comes_before_what_followed_from_it(followers):
    report_to_rank_0(followers.store, FAILED, 1, {"kind": "RuntimeError", "message": "connection closed by peer"})
    report_to_rank_0(followers.store, FAILED, 2, {"kind": "DataError", "message": "berry.png has vanished"})
    start(followers, FAILS, FAILS)
    for process in followers._processes:
        process.wait()
    error = followers.explain(0)
    assert type(error) is DataError
    assert str(error) == "berry.png has vanished"


def test_explain__a_defect_is_told_with_its_kind(followers):
    report_to_rank_0(followers.store, FAILED, 1, {"kind": "KeyError", "message": "'mask'"})
    start(followers, FAILS, STAYS)
    followers._processes[0].wait()
    assert "process 2 of the 3 that train failed: KeyError: 'mask'; its log: " in str(followers.explain(0))


def test_explain__nothing_where_all_are_there(followers):
    start(followers, STAYS, STAYS)
    assert followers.explain(0) is None
    followers.check()


def test_leave__gives_what_each_has_counted(followers):
    report_to_rank_0(followers.store, DONE, 1, {"images": 3, "encoded": 2})
    report_to_rank_0(followers.store, DONE, 2, {"images": 1, "encoded": 0})
    start(followers, LEAVES, LEAVES)
    assert followers.leave() == [{"images": 3, "encoded": 2}, {"images": 1, "encoded": 0}]
    assert all(process.returncode == 0 for process in followers._processes)


def is_there(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_open__leaves_nobody_behind(tmp_path):
    with open_followers(RunFolder(tmp_path), world_size=2) as followers:
        start(followers, f"import subprocess, sys; subprocess.run([sys.executable, '-c', {STAYS!r}])")
    (process,) = followers._processes
    assert process.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while is_there(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_there(process.pid)  # nor what it had started
