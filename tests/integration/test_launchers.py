"""Sweeps on several processes and machines: Slurm's launcher, Ray's, and a tracking server on PostgreSQL, for real."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import DEBUG
from vpexp.command_line import read_command_line
from vpexp.sweeps.plan import plan_sweep
from vpexp.sweeps.record import SweepFolder

REPOSITORY = Path(__file__).parents[2]
SHORT = (*DEBUG[:2], "prompter=none", "stage.test=false", "stage.overlays=0")
SECONDS = 240
POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
    "PYTHONPATH": str(REPOSITORY),
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(found) -> None:
    deadline = time.monotonic() + SECONDS
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_up(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def start(*overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vpexp", "-m", *overrides]
    return subprocess.Popen(command, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def find_sweep(output_dir: Path) -> SweepFolder:
    (path,) = (output_dir / "sweeps").iterdir()
    return SweepFolder(path)


def get_statuses(sweep: SweepFolder) -> list[str]:
    return [job.read_run_json()["status"] for job in sweep.find_jobs()]


def place_in(folder: Path, cache_dir: Path) -> tuple[str, str]:
    return f"paths.output_dir='{folder}'", f"paths.cache_dir='{cache_dir}'"


def test_slurm__its_launcher_composes():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install 'vpexp[slurm]'")
    asked = ["-m", "sweep=lr_batch", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu"]

    plan = plan_sweep(read_command_line([*asked, "hydra.launcher.gpus_per_node=1"]))

    assert (plan.jobs, plan.workers) == (9, None)


def test_ray_cluster__its_launcher_composes():
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="pip install 'vpexp[ray]'")

    plan = plan_sweep(read_command_line(["-m", "sweep=lr_batch", "hydra/launcher=ray_cluster"]))

    assert (plan.jobs, plan.workers) == (9, None)


@pytest.mark.slow
def test_submitit__a_failed_job_stops_no_other(tmp_path: Path, cache_dir: Path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install 'vpexp[slurm]'")
    sweep = start(
        *SHORT, *place_in(tmp_path / "out", cache_dir), "hydra/launcher=submitit_local", "data.batch_size=0,2"
    )

    said, _ = sweep.communicate(timeout=SECONDS)

    assert sweep.returncode == 1, said
    assert get_statuses(find_sweep(tmp_path / "out")) == ["FAILED", "FINISHED"]


@pytest.fixture
def ray_nodes(tmp_path: Path) -> Iterator[tuple[str, list[psutil.Process]]]:
    """Two nodes of one processor each, as two machines would be; their address, and the processes that hold them."""
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="scripts/setup installs Ray and its launcher")
    address = f"127.0.0.1:{find_port()}"
    temporary = Path("/tmp") / f"vr{os.getpid()}"  # names of Ray's sockets in there must be short
    usual = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats"]
    head = ["--head", f"--port={address.partition(':')[2]}", f"--temp-dir={temporary}", "--include-dashboard=false"]
    for place in (head, [f"--address={address}"]):
        subprocess.run(
            [BIN / "ray", "start", *place, *usual],
            env=ENVIRONMENT,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=SECONDS,
        )
    signs = (str(temporary), address.partition(":")[2])
    told = {one: " ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])}
    processes = [one for one, line in told.items() if "ray" in line and any(sign in line for sign in signs)]
    raylets = [one for one in processes if one.name() == "raylet"]
    try:
        yield address, sorted(raylets, key=lambda one: one.create_time())
    finally:
        for one in processes:
            with_children = [*one.children(recursive=True), one] if one.is_running() else []
            for process in with_children:
                if process.is_running():
                    process.kill()
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.mark.slow
def test_ray__jobs_of_a_machine_that_is_lost_go_on_at_another(tmp_path: Path, cache_dir: Path, ray_nodes):
    address, raylets = ray_nodes
    out = tmp_path / "out"
    sweep = start(
        *(*SHORT, *place_in(out, cache_dir), "optimizer.lr=1e-6,1e-5"),
        *("trainer.max_epochs=12", "callbacks.early_stopping=null", "hydra/launcher=ray_cluster"),
        *(f"hydra.launcher.ray.init.address='{address}'", "hydra.launcher.ray.remote.max_retries=0"),
    )
    wait_for(lambda: len(list(out.glob("sweeps/*/*/checkpoints/last.ckpt"))) == 2)
    for process in [raylets[1], *raylets[1].children(recursive=True)]:
        process.kill()
    said, _ = sweep.communicate(timeout=SECONDS)

    assert sweep.returncode == 0, said
    assert "once more, by itself, after the others" in said
    assert get_statuses(find_sweep(out)) == ["FINISHED"] * 2
    with sqlite3.connect(out / "mlflow.db") as database:
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)] * 3


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A tracking server on PostgreSQL that keeps artifacts itself."""
    if POSTGRES is None:
        pytest.skip("PostgreSQL is not installed")
    pytest.importorskip("psycopg2", reason="pip install 'vpexp[postgres]'")
    place, port = Path(f"/tmp/vpexp_postgres_{os.getpid()}"), find_port()
    place.mkdir()
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []  # PostgreSQL refuses root
    if as_user:
        shutil.chown(place, "postgres")
    options = f"-p {port} -h 127.0.0.1 -k {place}"
    control = [*as_user, POSTGRES / "pg_ctl", "-D", place / "data", "-l", place / "log", "-w"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/tmp", "timeout": SECONDS}
    subprocess.run(
        [*as_user, POSTGRES / "initdb", "-D", place / "data", "-A", "trust", "-U", "vpexp"], check=True, **quiet
    )
    subprocess.run([*control, "-o", options, "start"], check=True, **quiet)
    address = f"http://127.0.0.1:{find_port()}"
    store = f"postgresql+psycopg2://vpexp@127.0.0.1:{port}/postgres"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--serve-artifacts"]
    command += [
        "--artifacts-destination",
        str(tmp_path / "store"),
        "--port",
        address.rpartition(":")[2],
        "--workers",
        "1",
    ]
    served = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: is_up(f"{address}/health"))
        yield address
    finally:
        parts = psutil.Process(served.pid).children(recursive=True)
        served.terminate()
        served.wait()
        for part in parts:
            if part.is_running():
                part.kill()
        subprocess.run([*control, "-m", "immediate", "stop"], check=False, **quiet)
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.slow
def test_server__processes_report_to_postgresql_at_once(tmp_path: Path, cache_dir: Path, server: str):
    out = tmp_path / "out"
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    sweep = start(*SHORT, *place_in(out, cache_dir), *launcher, "optimizer.lr=1e-5,1e-4", f"tracking.uri={server}")
    said, _ = sweep.communicate(timeout=SECONDS)
    assert sweep.returncode == 0, said

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server)
    runs = client.search_runs([client.get_experiment_by_name("synthetic").experiment_id])
    assert sorted(run.info.run_name for run in runs)[:2] == ["lr=1e-4", "lr=1e-5"]
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    parent = find_sweep(out).read_run_json()["mlflow_run_id"]
    assert [run.data.tags.get("mlflow.parentRunId") for run in runs].count(parent) == 2
    assert len(list((tmp_path / "store").rglob("config.yaml"))) == 2
    assert not (out / "mlflow.db").exists()
