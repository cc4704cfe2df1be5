"""What tests share: drawn images and exported models, made once, and a quiet configuration that trains in a second."""

import fcntl
import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import event
from sqlalchemy.engine import Engine

from tests.references.exports import DrawnImage, build_debug_sam, draw_vineyard, export, learn_instances
from tests.references.preloaded import PreloadedPython, copy_first_database
from vpexp.config import compose_config
from vpexp.inference.exported import ExportedModel, find_exported
from vpexp.run import run
from vpexp.runtime import quiet_libraries
from vpexp.stages.shared.context import StageResult

# A busy machine is no reason to fail.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

quiet_libraries()  # before a test imports a library that phones home
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell's background jobs, and all that they start, ignore it


@event.listens_for(Engine, "connect")
def _wait_for_no_disk(connection, _) -> None:
    """Runs of a test lose nothing in a power cut: their databases need not wait for the disk."""
    if type(connection).__module__.startswith("sqlite3"):
        connection.execute("PRAGMA synchronous=OFF")


# The first epochs make a random model worse; what they made is kept all the same.
KEEP_EPOCH = "callbacks.early_stopping.min_delta=-1"
DEBUG = ("experiment=debug", "callbacks.progress=null", "optimizer.lr=1e-4", "stage.overlays=1", KEEP_EPOCH)

RunDebug = Callable[..., StageResult]


@pytest.fixture(scope="session", autouse=True)
def _start_quickly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Copy MLflow's databases from the session's first, and fork ``python -m vpexp`` from a process with all imports."""
    first = tmp_path_factory.mktemp("mlflow") / "first.db"
    preloaded = PreloadedPython(first)
    preloaded.install()
    copy_first_database(first)
    gc.freeze()  # what is imported is no garbage: processes that read images would copy it to find that out
    yield
    preloaded.remove()


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache folder of the whole session: images are drawn once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def run_debug(cache_dir: Path) -> RunDebug:
    """Run a stage on a handful of drawn images: ``run_debug(output_dir, "stage=test", "prompt=point")``."""

    def run_stage(output_dir: Path, *asked: str) -> StageResult:
        of_its_own = any(word.startswith(("stage=", "resume=")) for word in asked)
        defaults = ("callbacks.progress=null",) if of_its_own else DEBUG
        overrides = [*defaults, f"paths.output_dir='{output_dir}'", f"paths.cache_dir='{cache_dir}'", *asked]
        return run(compose_config(overrides), overrides)

    return run_stage


@pytest.fixture(scope="session")
def debug_sam():
    """A model of 64 px that runs in milliseconds, every one of its weights drawn."""
    return build_debug_sam()


@pytest.fixture(scope="session")
def micro_sam():
    """The trained model of 256 px that comes with the package."""

    from vpexp.inference.load import load_model

    return load_model("sam_micro")


def _export_once(
    tmp_path_factory: pytest.TempPathFactory, sam, name: str, format_: str, instances=None
) -> ExportedModel:
    """Export into a folder that the processes of these tests share; one of them does it."""
    root = tmp_path_factory.getbasetemp()
    kind = format_ if instances is None else f"{format_}_instances"
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / f"{name}_{kind}"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            draft = tmp_path_factory.mktemp(folder.name)
            export(sam, name, draft, format_, instances=instances)
            draft.rename(folder)
    return find_exported(folder)


@pytest.fixture(scope="session")
def debug_ir(debug_sam, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    """``debug_sam`` as OpenVINO IR."""
    return _export_once(tmp_path_factory, debug_sam, "sam_debug", "openvino")


@pytest.fixture(scope="session")
def debug_onnx(debug_sam, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    """``debug_sam`` as ONNX files."""
    return _export_once(tmp_path_factory, debug_sam, "sam_debug", "onnx")


@pytest.fixture(scope="session")
def micro_ir(micro_sam, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    """``micro_sam`` as OpenVINO IR."""
    return _export_once(tmp_path_factory, micro_sam, "sam_micro", "openvino")


@pytest.fixture(scope="session")
def micro_onnx(micro_sam, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    """``micro_sam`` as ONNX files."""
    return _export_once(tmp_path_factory, micro_sam, "sam_micro", "onnx")


@pytest.fixture(scope="session")
def debug_instances(debug_sam, tmp_path_factory: pytest.TempPathFactory):
    """A prompter that has learnt drawn images on ``debug_sam``, and a classifier of three classes."""
    return learn_instances(debug_sam, tmp_path_factory.mktemp("instances"))


@pytest.fixture(scope="session")
def instance_ir(debug_sam, debug_instances, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    """Both as OpenVINO IR."""
    return _export_once(tmp_path_factory, debug_sam, "sam_debug", "openvino", debug_instances)


@pytest.fixture(scope="session")
def instance_onnx(debug_sam, debug_instances, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    """Both as ONNX files."""
    return _export_once(tmp_path_factory, debug_sam, "sam_debug", "onnx", debug_instances)


@pytest.fixture(scope="session")
def vineyard(tmp_path_factory: pytest.TempPathFactory) -> list[DrawnImage]:
    """Drawn images of 256 px, with the boxes and points of their objects."""
    return draw_vineyard(tmp_path_factory.mktemp("vineyard"))
