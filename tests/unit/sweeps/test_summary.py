import csv
import math
from dataclasses import replace

import pytest
from rich.console import Console

from vpexp.files import write_json
from vpexp.runfolder import RunFolder
from vpexp.sweeps.record import SweepFolder, SweepRecord, hash_job
from vpexp.sweeps.summary import build_sweep_table, draw_pictures, sort_values, summarize_sweep, write_results

VALUES = [("1e-05", "1"), ("1e-05", "2"), ("0.0001", "1"), ("0.0001", "2")]
SCORES = [0.7, 0.8, None, 0.75]


def write_job(sweep, number, score, **fields):
    folder = RunFolder(sweep.path / str(number))
    folder.path.mkdir()
    lr, size = VALUES[number % 4]
    folder.update_run_json(
        job_name=f"job {number}",
        values={"optimizer.lr": lr, "data.batch_size": size},
        status="FAILED" if score is None else "FINISHED",
        error="DataError: no images" if score is None else None,
        started="2026-11-22T10:00:00+0000",
        ended="2026-11-22T10:01:30+0000",
        epochs=3,
        mlflow_run_id=f"run{number}",
        **fields,
    )
    if score is not None:
        metrics = {
            "val/f1-score": score,
            "val/mean_iou": score / 2,
            "val/map_large": math.nan,
            "before/val/f1-score": 0.1,
        }
        write_json(folder.metrics_json, {"metrics": metrics, "details": {}})


@pytest.fixture
def sweep(tmp_path):
    folder = SweepFolder(tmp_path)
    folder.write(
        SweepRecord(
            overrides=("optimizer.lr=1e-5,1e-4", "data.batch_size=1,2"),
            flags=(),
            varying=("optimizer.lr", "data.batch_size"),
            jobs=4,
            stage="train",
            metric="",
            direction="maximize",
            cwd="/",
            output_dir=str(tmp_path),
            process=1,
            workers=1,
            searches=False,
        )
    )
    for number, score in enumerate(SCORES):
        write_job(folder, number, score)
    return folder


def test_summarize_sweep__best_and_counts(sweep):
    summary = summarize_sweep(sweep)

    assert summary.metric == "val/f1-score"
    assert (summary.best.number, summary.best.objective, summary.best.seconds) == (1, 0.8, 90.0)
    assert (summary.count("FINISHED"), summary.count("FAILED"), summary.count("KILLED")) == (3, 1, 0)


def test_summarize_sweep__ten_jobs_are_in_their_order(sweep):
    for number in range(4, 11):
        write_job(sweep, number, 0.5)

    assert [job.number for job in summarize_sweep(sweep).jobs] == list(range(11))


def test_summarize_sweep__a_job_that_failed_later_does_not_keep_its_old_number(sweep):
    RunFolder(sweep.path / "1").update_run_json(status="KILLED")

    assert summarize_sweep(sweep).best.number == 3


def test_write_results__one_row_a_job(sweep):
    write_results(summarize_sweep(sweep), sweep)

    with sweep.results.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["FINISHED", "FINISHED", "FAILED", "FINISHED"]
    assert [row["val/f1-score"] for row in rows] == ["0.7", "0.8", "", "0.75"]
    assert [row["val/map_large"] for row in rows] == ["", "", "", ""]
    assert rows[2]["error"] == "DataError: no images"
    assert [row["mlflow_run_id"] for row in rows] == ["run0", "run1", "run2", "run3"]


def test_build_sweep_table__shows_values_and_numbers(sweep):
    console = Console(width=120, record=True)

    console.print(build_sweep_table(summarize_sweep(sweep)))

    text = console.export_text()
    assert "sweep: val" in text
    assert "│   1 │ 1e-5 │  2 │ FINISHED │   0.8000 │   0.4000 │" in text
    assert "FAILED" in text


def test_draw_pictures__needs_a_number(sweep, tmp_path):
    assert [path.name for path in draw_pictures(summarize_sweep(sweep), tmp_path)] == [
        "parallel_coordinates.png",
        "heat_map.png",
    ]
    for number in (0, 1, 3):
        RunFolder(sweep.path / str(number)).update_run_json(status="FAILED")

    assert draw_pictures(summarize_sweep(sweep), tmp_path) == []


def test_draw_pictures__values_that_no_font_or_formula_has(sweep, tmp_path):
    summary = summarize_sweep(sweep)
    odd = {"1e-05": "$\\frac$", "0.0001": "\ud800"}
    jobs = [
        replace(job, values={key: odd.get(value, value) for key, value in job.values.items()}) for job in summary.jobs
    ]
    assert len(draw_pictures(replace(summary, jobs=jobs), tmp_path)) == 2


def test_sort_values__numbers_by_size_words_by_alphabet():
    assert sort_values(["10", "9", "1e-05", "9"]) == ["1e-05", "9", "10"]
    assert sort_values(["voc", "10", "coco"]) == ["10", "coco", "voc"]


def test_hash_job__what_is_computed_counts_and_what_varies():
    from vpexp.config import compose_config

    first = hash_job(compose_config(["optimizer.lr=1e-5"]), {"optimizer.lr": "1e-5"})

    same = compose_config(["optimizer.lr=1e-05", "paths.output_dir=b", "tracking=none"])
    assert hash_job(same, {"optimizer.lr": "1e-05"}) == first
    assert hash_job(compose_config(["optimizer.lr=1e-4"]), {"optimizer.lr": "1e-4"}) != first
    tagged = {key: hash_job(same, {key: "x"}) for key in ("tracking.tags.k", "+tracking.tags.k", "tracking.run_name")}
    assert tagged["tracking.tags.k"] == tagged["+tracking.tags.k"]
    assert len({first, *tagged.values(), hash_job(same, {"tracking.tags.k": "y"})}) == 4
    assert len(first) == 12
