"""MLflow's page of a sweep, opened in a browser as a person would."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.references.servers import LEAN

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
PATIENCE = 180

sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"no browser is installed ({', '.join(BROWSERS)})"),
]


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """The runs of a sweep over learning rates and batch sizes."""
    folder = tmp_path_factory.mktemp("outputs")
    asked = ("experiment=debug", "stage.controls=false", "stage.overlays=1", "data.num_workers=0")
    paths = (f"paths.output_dir={folder}", f"paths.cache_dir={cache_dir}")
    command = [sys.executable, "-m", "vpexp", "-m", *asked, *paths, "optimizer.lr=1e-5,1e-4", "data.batch_size=1,2"]
    subprocess.run(command, check=True, capture_output=True, timeout=3 * PATIENCE)
    return folder


@pytest.fixture(scope="module")
def runs(output_dir: Path) -> list[Run]:
    """All runs of the store."""
    client = MlflowClient(f"sqlite:///{output_dir}/mlflow.db")
    experiment = client.get_experiment_by_name("synthetic")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


@pytest.fixture(scope="module")
def table(output_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address that ``scripts/mlflow_ui`` prints, started as by hand."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    printed = tmp_path_factory.mktemp("page") / "printed.txt"
    with printed.open("w") as file:
        server = subprocess.Popen(
            [ROOT / "scripts" / "mlflow_ui", output_dir, "--port", str(port), "--workers", "1"],
            env={**os.environ, **LEAN},
            stdout=file,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for_server(f"{url}/health")
        yield next(word for word in printed.read_text().split() if word.startswith(url))
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(PATIENCE)


@pytest.fixture(scope="module")
def address(table: str) -> str:
    """Of the server."""
    return table.partition("/#")[0]


def wait_for_server(url: str) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < until, f"no answer from {url}"
            time.sleep(0.5)
        else:
            return


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """A page of a headless browser."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        opened = browser.new_page(viewport={"width": 2400, "height": 1000})
        opened.set_default_timeout(PATIENCE * 1000)
        yield opened
        browser.close()


def test_page__experiment_lists_jobs_below_their_sweep_with_the_columns_that_matter(page: Any, table: str) -> None:
    page.goto(table)

    for name in ("before/val/f1-score", "gain/val/f1-score", "val/f1-score"):
        page.get_by_role("columnheader").filter(has_text=name).first.wait_for()
    page.get_by_role("link", name="sweep train sam_debug").first.wait_for()
    assert page.get_by_role("link", name="lr=1e-5 bs=2").count() == 0
    page.locator("button[data-component-id*='runnamecellrenderer']").first.click()

    for name in ("lr=1e-5 bs=1", "lr=1e-5 bs=2", "lr=1e-4 bs=1", "lr=1e-4 bs=2"):
        page.get_by_role("link", name=name).first.wait_for()


def test_page__compares_jobs_by_learning_rate_and_batch_size(page: Any, address: str, runs: list[Run]) -> None:
    jobs = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    listed = ",".join(f'"{run.info.run_id}"' for run in jobs)
    page.goto(f'{address}/#/compare-runs?runs=[{listed}]&experiments=["{jobs[0].info.experiment_id}"]')

    page.get_by_text("Parallel Coordinates Plot").first.wait_for()
    page.locator(".js-plotly-plot svg").first.wait_for()
    text = page.inner_text("body")
    assert "Comparing 4 Runs" in text
    for word in ("optimizer.lr", "data.batch_size", "val/f1-score", "lr=1e-4 bs=2"):
        assert word in text, word


def test_page__overlay_opens(page: Any, address: str, runs: list[Run], output_dir: Path) -> None:
    job = next(run for run in runs if "mlflow.parentRunId" in run.data.tags)
    client = MlflowClient(f"sqlite:///{output_dir}/mlflow.db")
    overlay = client.list_artifacts(job.info.run_id, "overlays")[0].path

    page.goto(f"{address}/#/experiments/{job.info.experiment_id}/runs/{job.info.run_id}/artifacts/{overlay}")

    picture = page.locator("img[src^='blob:'], img[src^='data:'], img[src*='get-artifact']").first
    picture.wait_for()
    page.wait_for_function("image => image.naturalWidth > 100", arg=picture.element_handle())
