"""Models, origins and versions in a real database, told through journals as runs tell them."""

import json
import os

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus

from vpexp.runfolder import RunFolder
from vpexp.runtime import quiet_libraries
from vpexp.tracking.journal import open_journal, read_begin, read_state
from vpexp.tracking.upload import find_tracked_folders, upload_waiting


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    quiet_libraries()
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture(scope="module")
def client(uri):
    return MlflowClient(uri)


@pytest.fixture
def tell(tmp_path, uri):
    """Write what a run would tell into its journal, without a store: ``tell("export", origin="train", model=...)``."""

    def tell_run(name, *, origin=None, is_model=True, model=None, register=None, package=None, maker=None, ends=True):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        RunFolder(folder).update_run_json(stage=name)
        journal = open_journal(folder, uri)
        content = {"experiment": "tests", "name": name, "tags": {"stage": name}, "parent": None}
        journal.append("create", content | {"artifact_folder": str(tmp_path / "mlartifacts")})
        if origin:
            journal.append("origin", {"folder": str(tmp_path / origin), "is_model": is_model})
        if model:
            journal.append("model", {"name": model, "kind": "openvino", "tags": {"precision": "FP32"}})
        if register:
            package = (tmp_path / package) if package else folder / "package"
            package.mkdir(exist_ok=True)
            (package / "MLmodel").write_text("flavors: {}")
            versions = {
                "name": register,
                "package": os.path.relpath(package, folder),
                "tags": {"a": "b"},
                "description": "about",
            }
            journal.append("register", versions | {"maker": str(tmp_path / (maker or name))})
        if ends:
            journal.append("close", {"status": "FINISHED"})
        return folder

    return tell_run


def deliver(folder):
    """Deliver what waits; how much arrived, and what the store refused."""
    (upload,) = upload_waiting([folder])
    return upload.delivered, [f"{kind}: {reason}" for kind, reason in upload.refused]


def deliver_again(folder, **changed):
    """Deliver as a process does that knows nothing of the deliveries before but the run's id."""
    state = json.loads((folder / "tracking.json").read_text())
    (folder / "tracking.json").write_text(json.dumps({**state, "delivered": 0, **changed}))
    return deliver(folder)


def test_open_journal__run_is_found_though_its_store_never_answered(tell, tmp_path):
    folder = tell("train")

    assert read_state(folder).run_id is None
    assert find_tracked_folders(tmp_path) == [folder]


def test_find_tracked_folders__lists_what_began_first_first(tell, tmp_path):
    folders = [tell("train"), tell("export"), tell("a_ptq")]
    for place, folder in enumerate(reversed(folders)):
        file = folder / "tracking.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(line | {"time": 1000 + place}) + "\n" for line in lines))

    assert [read_begin(folder) for folder in folders] == [1002, 1001, 1000]
    assert find_tracked_folders(tmp_path) == folders[::-1]


def test_upload__models_are_outputs_and_inputs_of_runs(tell, client, tmp_path):
    train, export = tell("train", model="sam: the 'best'"), tell("export", origin="train", model="IR")

    list(upload_waiting(find_tracked_folders(tmp_path)))

    made, taken = read_state(train), read_state(export)
    model = client.get_logged_model(made.model_id)
    assert (model.name, model.model_type, model.source_run_id) == ("sam_ the _best_", "openvino", made.run_id)
    assert model.status == LoggedModelStatus.READY
    assert model.tags["precision"] == "FP32"
    run = client.get_run(taken.run_id)
    assert [entry.model_id for entry in run.inputs.model_inputs] == [made.model_id]
    assert [entry.model_id for entry in run.outputs.model_outputs] == [taken.model_id]
    assert run.data.tags["checkpoint_run"] == made.run_id


def test_deliver__what_a_run_takes_up_is_delivered_before_it(tell, client):
    train, export = tell("train", model="best"), tell("export", origin="train")

    deliver(export)

    made = read_state(train)
    assert client.get_run(made.run_id).info.status == "FINISHED"
    assert RunFolder(train).read_run_json()["mlflow_run_id"] == made.run_id
    inputs = client.get_run(read_state(export).run_id).inputs.model_inputs
    assert [entry.model_id for entry in inputs] == [made.model_id]


def test_deliver__a_run_that_goes_on_is_left_to_itself(tell, client):
    train, export = tell("train", model="best", ends=False), tell("export", origin="train")

    with RunFolder(train).hold():
        assert deliver(export) == (3, [])

    assert read_state(train).run_id is None
    run = client.get_run(read_state(export).run_id)
    assert "checkpoint_run" not in run.data.tags
    assert run.info.status == "FINISHED"


def test_deliver__another_epoch_is_not_the_model(tell, client):
    train, tested = tell("train", model="best"), tell("test", origin="train", is_model=False)

    deliver(tested)

    run = client.get_run(read_state(tested).run_id)
    assert run.data.tags["checkpoint_run"] == read_state(train).run_id
    assert run.inputs.model_inputs == []


def test_deliver__origin_of_another_store_is_a_tag_alone(tell, client, tmp_path):
    folder = tell("train")
    RunFolder(folder).update_run_json(mlflow_run_id="elsewhere")
    (folder / "tracking.json").write_text(json.dumps({"uri": "http://elsewhere", "run_id": "1", "model_id": "m-1"}))
    export = tell("export", origin="train")

    deliver(export)

    run = client.get_run(read_state(export).run_id)
    assert run.data.tags["checkpoint_run"] == "elsewhere"
    assert run.inputs.model_inputs == []


def test_deliver__twice_makes_one_model_and_one_version(tell, client, capsys):
    train = tell("train", model="best")
    export = tell("export", origin="train", model="IR", register="grapes")
    deliver(export)
    before = read_state(export)

    assert deliver_again(export, model_id=None) == (5, [])

    assert read_state(export) == before
    (version,) = client.search_model_versions("name = 'grapes'")
    assert (version.run_id, version.description) == (before.run_id, "about")
    assert version.tags == {"a": "b", "run_id": before.run_id, "model_id": before.model_id}
    assert len(client.search_logged_models([before.experiment_id], f"source_run_id = '{before.run_id}'")) == 1
    run = client.get_run(before.run_id)
    assert [entry.model_id for entry in run.inputs.model_inputs] == [read_state(train).model_id]
    assert [entry.model_id for entry in run.outputs.model_outputs] == [before.model_id]
    assert capsys.readouterr().out == "registered in MLflow: models:/grapes/1\n"


def test_register__for_the_run_that_made_the_model(tell, client):
    ptq = tell("ptq", model="INT8")
    pipeline = tell("pipeline", register="by_pipeline", maker="ptq")

    deliver(pipeline)

    (version,) = client.search_model_versions("name = 'by_pipeline'")
    assert version.run_id == read_state(ptq).run_id
    assert version.tags["model_id"] == read_state(ptq).model_id


def test_register__what_lies_elsewhere_is_not_uploaded(tell, client, tmp_path):
    export = tell("export", model="IR", register="foreign", package="of_the_user")

    _, (refused,) = deliver(export)

    assert refused.endswith("of_the_user is outside of the run's folder")
    assert client.search_model_versions("name = 'foreign'") == []


def test_register__what_is_gone_from_disk_is_said_and_stops_nothing(tell, client, tmp_path):
    export = tell("export", model="IR", register="gone")
    (export / "package" / "MLmodel").unlink()

    delivered, refused = deliver(export)

    assert delivered == 3
    assert refused == [f"register: {export}/package is gone, so gone has no new version: run the stage again"]
    assert client.search_model_versions("name = 'gone'") == []
    assert client.get_run(read_state(export).run_id).info.status == "FINISHED"
