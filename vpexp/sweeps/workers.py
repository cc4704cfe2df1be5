"""Workers of a sweep in other processes and on other machines: told when they are lost, ended with the sweep."""

import sys
import time
from concurrent.futures.process import BrokenProcessPool

from vpexp.sweeps.record import SweepFolder

SECONDS = 15.0  # that workers are given to end
LOOK = 0.2


def is_lost_worker(error: Exception) -> bool:
    """Say whether a launcher raised it because a worker is gone: joblib's pool, a machine of Ray, a job of submitit."""
    return isinstance(error, BrokenProcessPool) or type(error).__module__.partition(".")[0] in ("ray", "submitit")


def can_start_again(error: Exception) -> bool:
    """Say whether all other jobs have ended too, or can be ended, and so may be started again; not those in a queue."""
    return not type(error).__module__.startswith("submitit")


def end_ray_workers(sweep: SweepFolder) -> None:
    """Leave Ray's cluster, which ends this sweep's jobs there; without that they are ended too, but after their record."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    ray.shutdown()
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and any(job.is_held() for job in sweep.find_jobs()):
        time.sleep(LOOK)
