"""Searches by Optuna in this process; the stage is a function of the test."""

import math
from concurrent.futures.process import BrokenProcessPool

import pytest

from tests.unit.sweeps.conftest import find_sweep, measure
from vpexp.sweeps import command
from vpexp.sweeps.record import SweepFolder

optuna = pytest.importorskip("optuna", reason="scripts/setup installs Optuna and its sweeper")
pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="scripts/setup installs Optuna and its sweeper")

SEARCH = ("sweep=optuna", "hydra.sweeper.n_trials=5")


def get_trials(sweep: SweepFolder, state: str | None = None):
    (study,) = optuna.get_all_study_summaries(f"sqlite:///{sweep.path}/optuna.db")
    loaded = optuna.load_study(study_name=study.study_name, storage=f"sqlite:///{sweep.path}/optuna.db")
    return [trial for trial in loaded.get_trials() if state in (None, trial.state.name)]


def get_statuses(sweep: SweepFolder) -> list[str]:
    return [job.read_run_json()["status"] for job in sweep.find_jobs()]


def fail_on_call(stage, number, error):
    def work(context):
        if len(stage.asked) == number:
            raise error
        return measure(context)

    return work


def test_search__tries_as_many_as_asked_within_the_bounds(start, stage, tmp_path, capsys):
    assert start(*SEARCH) == 0

    assert len(stage.asked) == 5
    assert all(1e-6 <= lr <= 1e-3 and size in (1, 2, 4) for lr, size in stage.asked)
    sweep = find_sweep(tmp_path)
    assert [trial.state.name for trial in get_trials(sweep)] == ["COMPLETE"] * 5
    best = max(get_trials(sweep), key=lambda trial: trial.value)
    best_lr, best_size = max(stage.asked, key=lambda asked: 0.9 - abs(asked[0] - 1e-4) * 100 - abs(asked[1] - 2) / 10)
    assert (best.params["optimizer.lr"], best.params["data.batch_size"]) == (best_lr, best_size)
    name = sweep.find_jobs()[0].read_run_json()["job_name"]
    assert len(name) <= len("lr=1.23e-5 bs=1")
    assert "FutureWarning" not in capsys.readouterr().err


@pytest.mark.slow
def test_search__same_seed_proposes_the_same(start, stage):
    for seed in (0, 0, 1):
        start(*SEARCH, "hydra.sweeper.n_trials=2", f"seed={seed}")

    assert stage.asked[:2] == stage.asked[2:4] != stage.asked[4:]


@pytest.mark.slow
def test_search__direction_is_that_of_the_sweep(start, tmp_path):
    start(*SEARCH, "hydra.sweeper.n_trials=2", "sweep.direction=minimize")

    sweep = find_sweep(tmp_path)
    (study,) = optuna.get_all_study_summaries(f"sqlite:///{sweep.path}/optuna.db")
    assert study.direction.name == "MINIMIZE"


@pytest.mark.slow
def test_search__a_failed_trial_ends_nothing_and_is_tried_again_on_resume(start, stage, tmp_path):
    stage.work = fail_on_call(stage, 3, RuntimeError("the sky is falling"))

    assert start(*SEARCH) == 1

    assert len(stage.asked) == 5
    sweep = find_sweep(tmp_path)
    assert get_statuses(sweep).count("FAILED") == 1
    assert [trial.state.name for trial in get_trials(sweep)].count("FAIL") == 1
    failed = stage.asked[2]

    stage.work = measure
    stage.asked.clear()
    assert start(f"sweep.resume='{sweep.path}'") == 0

    assert stage.asked == [failed]
    assert get_statuses(sweep) == ["FINISHED"] * 5
    assert len(get_trials(sweep, "COMPLETE")) == 5
    assert sweep.read_run_json()["status"] == "FINISHED"


def test_search__a_trial_that_went_with_its_worker_runs_again_by_itself(start, stage, tmp_path, monkeypatch, capsys):
    stage.work = fail_on_call(stage, 2, RuntimeError("as far as the launcher sees"))
    start_hydra, starts = command.start_hydra, []

    def lose_a_worker_once(*arguments):
        starts.append(len(stage.asked))
        try:
            start_hydra(*arguments)
        finally:
            sweep = find_sweep(tmp_path)
            for job in sweep.find_jobs() if len(starts) == 1 else ():
                if job.read_run_json()["status"] == "FAILED":
                    job.update_run_json(status="RUNNING")
                    raise BrokenProcessPool

    monkeypatch.setattr(command, "start_hydra", lose_a_worker_once)
    assert start(*SEARCH, "hydra.sweeper.n_trials=3") == 0

    assert "job 1 once more, by itself, after the others" in capsys.readouterr().out
    assert stage.asked[-1] == stage.asked[1]
    assert starts[-1] == len(stage.asked) - 1
    assert get_statuses(find_sweep(tmp_path)) == ["FINISHED"] * 3
    assert len(get_trials(find_sweep(tmp_path), "COMPLETE")) == 3


def test_search__stopped_goes_on_with_the_same_study_and_the_half_done_trial(start, stage, tmp_path):
    stage.work = fail_on_call(stage, 4, SystemExit(143))

    assert start(*SEARCH) == 143

    sweep = find_sweep(tmp_path)
    assert get_statuses(sweep) == ["FINISHED"] * 3 + ["KILLED"]
    assert get_trials(sweep, "RUNNING") == []
    first = stage.asked.copy()

    stage.work = measure
    stage.asked.clear()
    assert start(f"sweep.resume='{sweep.path}'") == 0

    assert stage.asked[0] == first[-1]
    assert len(stage.asked) == 2
    assert not set(stage.asked[1:]) & set(first)
    assert get_statuses(sweep) == ["FINISHED"] * 5
    assert len(get_trials(sweep, "COMPLETE")) == 5


@pytest.mark.slow
def test_search__a_process_that_was_killed_leaves_no_trial_running_after_resume(start, stage, tmp_path):
    start(*SEARCH, "hydra.sweeper.n_trials=3")
    sweep = find_sweep(tmp_path)
    storage = f"sqlite:///{sweep.path}/optuna.db"
    study = optuna.load_study(study_name=sweep.path.name, storage=storage)
    trial = study.ask()  # as a process leaves it that is killed in mid-trial
    trial._suggest("optimizer.lr", get_trials(sweep)[0].distributions["optimizer.lr"])
    trial.suggest_categorical("data.batch_size", (1, 2, 4))
    stage.asked.clear()

    assert start(f"sweep.resume='{sweep.path}'", "hydra.sweeper.n_trials=5") == 0

    assert stage.asked[0] == (trial.params["optimizer.lr"], trial.params["data.batch_size"])
    assert len(stage.asked) == 2
    assert get_trials(sweep, "RUNNING") == []


@pytest.mark.slow
def test_search__ctrl_c_ends_it_after_the_trial(start, stage, tmp_path):
    def work(context):
        if len(stage.asked) == 2:
            find_sweep(tmp_path).stop_marker.touch()  # what the first Ctrl-C does
        return measure(context)

    stage.work = work

    assert start(*SEARCH) == 130

    assert len(stage.asked) == 2
    sweep = find_sweep(tmp_path)
    assert get_statuses(sweep) == ["FINISHED"] * 2
    assert get_trials(sweep, "RUNNING") == []

    stage.work = measure
    assert start(f"sweep.resume='{sweep.path}'") == 0
    assert len(stage.asked) == 5


@pytest.mark.slow
def test_search__parameters_proposed_twice_are_run_once(start, stage, tmp_path):
    assert start("sweep=optuna", "hydra.sweeper.n_trials=4", "optimizer.lr=choice(1e-4,1e-5)", "data.batch_size=2") == 0

    assert len(stage.asked) == len(set(stage.asked)) <= 2
    sweep = find_sweep(tmp_path)
    assert len(get_trials(sweep, "COMPLETE")) == 4
    assert sweep.read_run_json()["status"] == "FINISHED"


@pytest.mark.slow
def test_search__all_trials_failed_is_no_crash(start, stage, tmp_path):
    def work(context):
        raise RuntimeError("no luck")

    stage.work = work

    assert start(*SEARCH, "hydra.sweeper.n_trials=3") == 1

    assert get_statuses(find_sweep(tmp_path)) == ["FAILED"] * 3


@pytest.mark.slow
def test_search__a_number_that_is_none_fails_the_trial(start, stage, tmp_path):
    def work(context):
        result = measure(context)
        return type(result)({"val/f1-score": math.nan if len(stage.asked) == 2 else 0.5, "val/map": 0.1})

    stage.work = work

    assert start(*SEARCH, "hydra.sweeper.n_trials=3") in (0, 1)

    assert len(get_trials(find_sweep(tmp_path), "FAIL")) == 1


@pytest.mark.slow
def test_search__finished_sweep_runs_nothing_more(start, stage, tmp_path):
    start(*SEARCH, "hydra.sweeper.n_trials=2")
    sweep = find_sweep(tmp_path)
    stage.asked.clear()

    assert start(f"sweep.resume='{sweep.path}'") == 0

    assert stage.asked == []
