"""Models in a real MLflow store: walked from the one in INT8 back to the data, registered, served and asked by HTTP."""

import base64
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Run
from pycocotools import mask as coco_mask

from tests.conftest import RunDebug
from tests.references.servers import choose_port, start_mlflow
from vpexp.data.images import read_image
from vpexp.inference.instances import find_instances
from vpexp.inference.load import load_predictor
from vpexp.runtime import quiet_libraries
from vpexp.stages.shared.context import StageResult

pytestmark = pytest.mark.slow

NAME = "shapes.int8"


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("my outputs")


@pytest.fixture(scope="module")
def uri(output_dir: Path) -> str:
    return f"sqlite:///{output_dir}/mlflow.db"


@pytest.fixture(scope="module")
def client(uri: str) -> MlflowClient:
    quiet_libraries()
    return MlflowClient(uri)


@pytest.fixture(scope="module")
def pipeline(output_dir: Path, run_debug: RunDebug) -> Path:
    """The folder of a pipeline whose model was registered."""
    result = run_debug(output_dir, "experiment=debug", "stage=pipeline", f"tracking.register={NAME}")
    assert result.folder is not None
    return result.folder


@pytest.fixture(scope="module")
def image(cache_dir: Path, pipeline: Path) -> Path:
    """Of the data that the pipeline saw, 64 x 64 pixels; the cache has other tests' images too."""
    return min(cache_dir.glob("synthetic/shapes_v1_64x64_*/images/test_*"))


def read_state(folder: Path) -> dict:
    return json.loads((folder / "tracking.json").read_text())


def get_run(client: MlflowClient, folder: Path) -> Run:
    return client.get_run(read_state(folder)["run_id"])


def get_folder(result: StageResult) -> Path:
    assert result.folder is not None
    return result.folder


def list_inputs(run: Run) -> list[str]:
    return [model.model_id for model in run.inputs.model_inputs]


def list_outputs(run: Run) -> list[str]:
    return [model.model_id for model in run.outputs.model_outputs]


# ---------------------------------------------------------------- lineage


def test_lineage__leads_from_the_registered_int8_model_to_the_data(client: MlflowClient, pipeline: Path) -> None:
    version = client.get_model_version(NAME, "1")

    stages, model_id = [], version.tags["model_id"]
    while model_id is not None:
        model = client.get_logged_model(model_id)
        assert model.status == LoggedModelStatus.READY
        run = client.get_run(model.source_run_id)
        assert list_outputs(run) == [model_id]
        stages.append((run.data.tags["stage"], model.model_type, model.tags["precision"]))
        (model_id,) = list_inputs(run) or [None]

    assert stages == [("ptq", "openvino", "INT8"), ("export", "openvino", "FP32"), ("train", "checkpoint", "FP32")]
    data = {entry.tags[0].value: entry.dataset for entry in run.inputs.dataset_inputs}
    assert data["train"].name == "synthetic"
    assert json.loads(data["train"].profile)["images"] == 4


@pytest.mark.parametrize(
    ("step", "origin"),
    [("test_torch", "train"), ("export", "train"), ("test_ir", "export"), ("ptq", "export"), ("test_int8", "ptq")],
)
def test_lineage__each_step_names_file_run_and_model_that_it_takes(
    client: MlflowClient, pipeline: Path, step: str, origin: str
) -> None:
    run, made = get_run(client, pipeline / step), read_state(pipeline / origin)

    assert run.data.tags["checkpoint_run"] == made["run_id"]
    assert run.data.tags["checkpoint"].startswith(f"{pipeline / origin}/")
    assert Path(run.data.tags["checkpoint"]).is_file()
    assert list_inputs(run) == [made["model_id"]]


def test_lineage__model_as_it_came_has_no_origin(client: MlflowClient, pipeline: Path) -> None:
    run = get_run(client, pipeline / "test_before")

    assert "checkpoint_run" not in run.data.tags
    assert list_inputs(run) == []


def test_lineage__predict_and_a_checkpoint_that_is_not_the_best(
    client: MlflowClient, pipeline: Path, output_dir: Path, run_debug: RunDebug, image: Path
) -> None:
    predicted = run_debug(
        *(output_dir, "stage=predict", f"checkpoint='{pipeline / 'ptq'}'", f"source='{image}'", "prompts=grid"),
        *("predict.points_per_side=2", "data=synthetic"),
    )
    last = pipeline / "train" / "checkpoints" / "last.ckpt"
    tested = run_debug(output_dir, "stage=test", f"checkpoint='{last}'", "stage.controls=false")

    run = get_run(client, get_folder(predicted))
    assert run.data.tags["checkpoint_run"] == read_state(pipeline / "ptq")["run_id"]
    assert list_inputs(run) == [read_state(pipeline / "ptq")["model_id"]]
    run = get_run(client, get_folder(tested))
    assert run.data.tags["checkpoint_run"] == read_state(pipeline / "train")["run_id"]
    assert list_inputs(run) == [], "the model of a training is its best epoch"


# ---------------------------------------------------------------- registry


def test_register__version_says_what_it_is(client: MlflowClient, pipeline: Path) -> None:
    (version,) = client.search_model_versions(f"name = '{NAME}'")

    scores = json.loads((pipeline / "report.json").read_text())
    tags = version.tags
    assert tags["precision"] == "INT8"
    assert tags["run_id"] == version.run_id == read_state(pipeline / "ptq")["run_id"]
    assert tags["int8/f1-score"] == f"{scores['int8']['f1-score']:.4f}"
    assert tags["torch/f1-score"] == f"{scores['torch']['f1-score']:.4f}"
    assert (tags["stage"], tags["model"], tags["data"]) == ("pipeline", "sam_debug", "synthetic")
    assert "sam_debug on synthetic, OpenVINO INT8" in version.description
    model = client.get_logged_model(read_state(pipeline / "ptq")["model_id"])
    assert version.tags["model_id"] == model.model_id
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": NAME, "version": "1"}]


def test_register__needs_no_torch_and_pins_what_is_installed(pipeline: Path) -> None:
    needed = (pipeline / "mlflow_model" / "requirements.txt").read_text().split()

    names = [line.partition("==")[0] for line in needed]
    assert names == ["mlflow", "numpy", "pillow", "pycocotools", "openvino"]
    assert not list(pipeline.glob("mlflow_model/**/*.safetensors"))


def test_sync__told_again_from_the_start_changes_nothing(
    client: MlflowClient, pipeline: Path, output_dir: Path, run_debug: RunDebug
) -> None:
    """As after a crash between every delivery and its note."""
    models = client.search_logged_models([read_state(pipeline)["experiment_id"]])
    before = {folder: get_run(client, folder) for folder in (pipeline, pipeline / "export", pipeline / "ptq")}
    for folder in before:
        state = read_state(folder)
        (folder / "tracking.json").write_text(json.dumps({**state, "delivered": 1, "model_id": None}))

    run_debug(output_dir, "stage=sync", f"run='{output_dir}'")

    assert len(client.search_model_versions(f"name = '{NAME}'")) == 1
    assert len(client.search_logged_models([read_state(pipeline)["experiment_id"]])) == len(models) == 3
    for folder, run in before.items():
        again = get_run(client, folder)
        assert (list_inputs(again), list_outputs(again)) == (list_inputs(run), list_outputs(run))
        assert read_state(folder)["model_id"] in [*list_outputs(run), None]


# ---------------------------------------------------------------- served


@pytest.fixture(scope="module")
def server(uri: str, pipeline: Path) -> Iterator[str]:
    with start_mlflow(
        ["models", "serve", "-m", f"models:/{NAME}/1", "--env-manager", "local"], uri, choose_port(), "/ping"
    ) as it:
        yield f"{it}/invocations"


def ask(address: str, *records: dict) -> tuple[int, dict]:
    body = json.dumps({"dataframe_records": records}).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def encode(image: Path) -> str:
    return base64.b64encode(image.read_bytes()).decode()


def test_served_model__gives_the_masks_of_the_predictor(server: str, pipeline: Path, image: Path) -> None:
    boxes = [[5, 6, 40, 50], [20.5, 10, 60, 33.25]]
    points = [[[12, 14]], [[30, 30]]]

    status, reply = ask(
        server, {"image": encode(image), "boxes": boxes}, {"image": encode(image), "points": points, "boxes": boxes[:1]}
    )

    assert status == 200, reply
    by_box, by_both = reply["predictions"]
    predictor = load_predictor(pipeline / "ptq")
    embedding = predictor.embed(read_image(image))
    expected = predictor.decode(embedding, boxes=np.array(boxes, np.float32))
    masks = np.stack([coco_mask.decode(rle) for rle in by_box["masks"]]).astype(bool)
    np.testing.assert_array_equal(masks, expected.masks)
    assert expected.masks.any()
    np.testing.assert_allclose(by_box["iou"], expected.iou, atol=1e-6)
    rows, columns = np.nonzero(expected.masks[0])
    assert by_box["boxes"][0] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    of_points = predictor.decode(embedding, points=np.array(points, np.float32))
    masks = np.stack([coco_mask.decode(rle) for rle in by_both["masks"]]).astype(bool)
    np.testing.assert_array_equal(masks, np.concatenate([expected.masks[:1], of_points.masks]))


def test_served_model__finds_objects_in_an_image_alone(server: str, pipeline: Path, image: Path) -> None:
    status, reply = ask(server, {"image": encode(image)})

    predictor = load_predictor(pipeline / "ptq")
    _, found = find_instances(predictor, read_image(image))
    (answer,) = reply["predictions"]
    assert (status, answer["labels"]) == (200, [mask.label for mask in found.masks])
    assert [rle["counts"] for rle in answer["masks"]] == [mask.rle["counts"].decode() for mask in found.masks]
    np.testing.assert_allclose(answer["scores"], [mask.score for mask in found.masks], atol=1e-6)


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ({"boxes": [[1, 2, 30, 40]]}, "Model is missing inputs ['image']"),
        ({"image": "%%%", "boxes": [[1, 2, 30, 40]]}, "image is no base64 text"),
        ({"image": "aGVsbG8=", "boxes": [[1, 2, 30, 40]]}, "image cannot be read: no image"),
        ({"image": ..., "boxes": [[500, 2, 530, 40]]}, "boxes[0] [500.0, 2.0, 530.0, 40.0] lies outside of the image"),
        ({"image": ..., "points": [[3, 4]]}, "points[0] must be a list of points"),
    ],
)
def test_served_model__refuses_a_wrong_request_in_clear_words(
    server: str, image: Path, record: dict, complaint: str
) -> None:
    asked = {key: encode(image) if value is ... else value for key, value in record.items()}

    status, reply = ask(server, asked)

    assert status == 400
    assert complaint in reply["message"]
    assert "Traceback" not in json.dumps(reply)


# ---------------------------------------------------------------- stores that are down, or old


class OldServer(BaseHTTPRequestHandler):
    """Stands before a real server, and knows nothing of what came with MLflow 3, as a server of MLflow 2."""

    behind = ""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "logged-models" in self.path or "runs/outputs" in self.path:
            self.reply(404, b"<!doctype html><title>404 Not Found</title>", "text/html")
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        request = urllib.request.Request(self.behind + self.path, body or None, headers, method=self.command)
        try:
            with urllib.request.urlopen(request) as reply:
                self.reply(reply.status, reply.read(), reply.headers.get_content_type())
        except urllib.error.HTTPError as error:
            self.reply(error.code, error.read(), error.headers.get_content_type())

    do_GET = do_POST = do_PUT = do_PATCH = answer

    def reply(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def late_export(tmp_path_factory: pytest.TempPathFactory, run_debug: RunDebug) -> tuple[Path, int]:
    """What was trained and exported while the server was down: the folder of runs, and the server's port."""
    output_dir, port = tmp_path_factory.mktemp("late"), choose_port()
    asked = (f"tracking.uri=http://127.0.0.1:{port}", "tracking.experiment=late")
    run_debug(output_dir, *asked, "stage.test=false")
    run_debug(output_dir, "stage=export", *asked, "tracking.register=late")
    return output_dir, port


@pytest.fixture(scope="module")
def tracking_server(
    late_export: tuple[Path, int], uri: str, pipeline: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The server that was down, up now, on the database that is there already."""
    artifacts = tmp_path_factory.mktemp("artifacts")
    options = ["--backend-store-uri", uri, "--artifacts-destination", str(artifacts), "--workers", "1"]
    with start_mlflow(["server", *options], uri, late_export[1], "/health") as address:
        yield address


def test_register__while_the_store_is_down_is_done_by_sync(
    late_export: tuple[Path, int], tracking_server: str, run_debug: RunDebug, capsys: pytest.CaptureFixture[str]
) -> None:
    output_dir, _ = late_export
    (export,) = (path for path in (output_dir / "export").iterdir())
    (train,) = (path for path in (output_dir / "train").iterdir())
    assert read_state(export)["run_id"] is None

    run_debug(output_dir, "stage=sync", f"run='{export}'")  # brings the training with it
    run_debug(output_dir, "stage=sync", f"run='{output_dir}'")

    assert "registered in MLflow: models:/late/1" in capsys.readouterr().out
    client = MlflowClient(tracking_server)
    (version,) = client.search_model_versions("name = 'late'")
    run = get_run(client, export)
    assert version.run_id == run.info.run_id
    assert version.tags["precision"] == "FP32"
    assert "torch/val/f1-score" in version.tags
    assert list_outputs(run) == [version.tags["model_id"]]
    assert list_inputs(run) == [read_state(train)["model_id"]]
    assert run.data.tags["checkpoint_run"] == read_state(train)["run_id"]
    assert json.loads((train / "run.json").read_text())["mlflow_run_id"] == read_state(train)["run_id"]


def test_old_server__keeps_no_models_but_has_its_version(
    tracking_server: str, tmp_path: Path, run_debug: RunDebug
) -> None:
    OldServer.behind = tracking_server
    with ThreadingHTTPServer(("127.0.0.1", 0), OldServer) as old:
        threading.Thread(target=old.serve_forever, daemon=True).start()
        asked = (f"tracking.uri=http://127.0.0.1:{old.server_port}", "tracking.experiment=old")
        trained = run_debug(tmp_path, *asked, "stage.test=false")
        exported = run_debug(tmp_path, "stage=export", *asked, "tracking.register=old")
        old.shutdown()

    client = MlflowClient(tracking_server)
    run = get_run(client, get_folder(exported))
    assert run.info.status == "FINISHED"
    assert run.data.tags["checkpoint_run"] == read_state(get_folder(trained))["run_id"]
    (version,) = client.search_model_versions("name = 'old'")
    assert version.source == f"{run.info.artifact_uri}/mlflow_model"
    log = (get_folder(exported) / "vpexp.log").read_text()
    assert log.count("older than MLflow 3") == 1
    assert read_state(get_folder(exported))["model_id"] is None
