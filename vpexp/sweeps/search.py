"""A search by Optuna: its study lies in the sweep's folder, so that a search that was stopped goes on as one.

A trial whose job has not finished is proposed again, first of all: by its parameters its job is found, and goes on.
"""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vpexp.config.compose import quote_value
from vpexp.runfolder import RunFolder
from vpexp.sweeps.plan import STUDY, SweepPlan
from vpexp.sweeps.processes import SweepStopped
from vpexp.sweeps.record import SweepFolder
from vpexp.tracking.store import write_sqlite_uri

FIXED_PARAMS = "fixed_params"  # Optuna's name for the parameters of a trial that waits in its queue

Values = frozenset[tuple[str, str]]


def heed_stop(cfg: Any, trial: Any) -> None:
    """Propose no further trial after Ctrl-C; Optuna's sweeper calls this before each (``custom_search_space``).

    Raises:
        SweepStopped: there was a Ctrl-C.
    """
    del trial
    if SweepFolder(Path(cfg.hydra.sweep.dir)).stop_marker.exists():
        raise SweepStopped


class Search:
    """The study of a sweep, from one start of it to its end.

    Args:
        plan: of the sweep, which searches.
        sweep: its folder.
    """

    def __init__(self, plan: SweepPlan, sweep: SweepFolder) -> None:
        import optuna

        # The sweeper was written for Optuna 2: what it calls works, and is called old.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(optuna|hydra_plugins)\.")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        assert plan.search is not None
        self._sweep, self._jobs, self._seed = sweep, plan.jobs, plan.search.seed
        self._storage = plan.search.storage or write_sqlite_uri(sweep.path / STUDY)
        self._study = optuna.create_study(
            study_name=plan.search.study or sweep.path.name,
            storage=self._storage,
            direction=plan.cfg.sweep.direction,
            load_if_exists=True,
        )
        self._before = len(self._get_trials())
        self._is_new_start = True

    def prepare(self, alone: RunFolder | None = None) -> list[str]:
        """Queue the trials that go on, and count how many are to be run.

        What has failed is tried again once a start of the sweep; what went with a lost worker is left out.

        Args:
            alone: the job of the only trial that is to be run.

        Returns:
            Overrides for Hydra; empty if there is nothing to run.
        """
        from optuna.trial import TrialState

        again = [*self._get_trials(TrialState.RUNNING)]
        if self._is_new_start:
            again += self._get_trials(TrialState.FAIL)
        self._is_new_start = False
        self.close()
        if alone is not None:
            lost = _read_values(alone.read_run_json()["values"])
            trial = next(trial for trial in reversed(self._get_trials()) if _read_values(trial.params) == lost)
            self._study.enqueue_trial(trial.params)
            return self._override_hydra(1)
        complete = {_read_values(trial.params) for trial in self._get_trials(TrialState.COMPLETE)}
        given_up = complete | self._find_left_out()
        queued = {_read_values(trial.system_attrs[FIXED_PARAMS]) for trial in self._get_trials(TrialState.WAITING)}
        for trial in sorted(again, key=lambda trial: int(trial.number)):
            values = _read_values(trial.params)
            if values and values not in given_up | queued:
                self._study.enqueue_trial(trial.params)
                queued.add(values)
        failed = [trial for trial in self._get_trials(TrialState.FAIL) if trial.number >= self._before]
        remaining = self.count_unfinished() - len({_read_values(trial.params) for trial in failed} - queued - complete)
        if remaining <= 0:
            return []
        return self._override_hydra(remaining)

    def _override_hydra(self, trials: int) -> list[str]:
        overrides = {
            "hydra.sweeper.n_trials": trials,
            "hydra.sweeper.storage": self._storage,
            "hydra.sweeper.study_name": self._study.study_name,
        }
        if self._seed is not None:  # the same seed again would propose the first trials again
            overrides["hydra.sweeper.sampler.seed"] = self._seed + len(self._get_trials())
        return [f"{key}={quote_value(value)}" for key, value in overrides.items()]

    def count_unfinished(self) -> int:
        """Count the trials that have no result yet; parameters that were proposed twice have one for both."""
        from optuna.trial import TrialState

        return max(self._jobs - len(self._get_trials(TrialState.COMPLETE)), 0)

    def is_about_no_result(self, error: Exception) -> bool:
        """Return whether Optuna's sweeper has run all it was asked to, and stumbled over there being no best trial."""
        from optuna.trial import TrialState

        done = not self._get_trials(TrialState.RUNNING, TrialState.COMPLETE)
        return isinstance(error, ValueError) and done

    def close(self) -> None:
        """Leave no trial RUNNING in the study."""
        from optuna.trial import TrialState

        for trial in self._get_trials(TrialState.RUNNING):
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _get_trials(self, *states: Any) -> list[Any]:
        return list(self._study.get_trials(deepcopy=False, states=states or None))

    def _find_left_out(self) -> set[Values]:
        """Find the parameters of the jobs that went with lost workers since the sweep was started."""
        left_out = self._sweep.read().left_out
        records = [job.read_run_json() for job in self._sweep.find_jobs()]
        return {_read_values(record["values"]) for record in records if record.get("config_hash") in left_out}


def _read_values(params: Mapping[str, Any]) -> Values:
    """Read the parameters of a trial as they stand on the command line of its job."""
    pairs: Iterable[tuple[str, Any]] = params.items()
    return frozenset((name.lstrip("+"), str(value)) for name, value in pairs)
