"""Files of a run that are damaged, or that somebody made up: one line that names the file, in no time."""

import json

import pytest
import torch
from omegaconf import OmegaConf

from vpexp.config import compose_config, load_config, save_config
from vpexp.errors import CheckpointError, VpexpError
from vpexp.inference.exported import find_exported, read_metadata
from vpexp.inference.torch_model import apply_checkpoint, find_checkpoint, read_checkpoint
from vpexp.models.registry import build_sam_debug
from vpexp.models.weights import load_weights
from vpexp.resolve import complete
from vpexp.runfolder import RunFolder, append_metrics, read_metrics
from vpexp.sweeps.record import SweepFolder
from vpexp.tracking.journal import ENTRIES, STATE, open_journal, read_begin, read_state

DEEP = 100_000
NO_JSON = ["", "{", b"\xff\xfe\xff", "[" * DEEP, '{"a":' * DEEP, '{"stage": ' + "9" * 5000 + "}"]
NO_OBJECT = ["[]", "3", "null", '"text"', "[{}]", "1e999"]
RECORDS = [
    {"stage": []},
    {"stage": "../../mine"},
    {"status": 3},
    {"best_checkpoint": ["a"]},
    {"best_checkpoint": {"a": 1}},
    {"before": [1]},
    {"before": {"val": 3}},
    {"steps": 1},
    {"steps": {"train": "x"}},
    {"mlflow_run_id": 3},
    {"epochs": "many"},
    {"values": [1]},
    {"sweep": [1]},
    {"encoder_passes": "x"},
    {"cache": 3},
]
METRICS = [
    "[]",
    "{}",
    '{"metrics": []}',
    '{"metrics": {"val/f1-score": "x"}}',
    '{"metrics": {}, "details": 3}',
    "[" * DEEP,
]
BOMB = "a0: &a0 [1,1]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
CONFIGS = {
    "list": ("- 1", "its top level must be keys"),
    "number": ("3", "config.yaml"),
    "broken": ("data: [", "line 1"),
    "no text": (b"seed: \xff\n", "not text in UTF-8"),
    "flow": ("data: " + "[" * 5000 + "]" * 5000, "deep"),
    "unclosed": ("data: " + "[" * 5000, "deep"),
    "braces": ("data: " + "{a: " * 5000 + "}" * 5000, "deep"),
    "blocks": ("".join(" " * n + "a:\n" for n in range(500)), "deep"),
    "bomb": (BOMB, "200000 values"),
    "cycle": ("data: &a [*a]", "config.yaml"),
    "merge cycle": ("data: &a\n  <<: *a\n", "config.yaml"),
    "huge number": ("seed: " + "9" * 5000, "config.yaml"),
    "hexadecimal": ("seed: 0x" + "f" * 5000, "bits"),
    "object": ("seed: !!python/object/apply:os.system ['true']", "config.yaml"),
    "twice": ("seed: 1\nseed: 2", "seed"),
    "another shape": ("data: [1, 2]", "must hold keys"),
    "a key that is a list": ("? [1, 2]\n: 3", "config.yaml"),
    "date": ("seed: !!timestamp 2020-01-01", "config.yaml"),
    "set": ("seed: !!set {a, b}", "config.yaml"),
}


def assert_one_line(path, function, *arguments, words=""):
    with pytest.raises(VpexpError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert str(path) in message
    assert words in message
    assert "\n" not in message
    assert len(message) < 500


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_run_json__of_another_shape(tmp_path):
    folder = RunFolder(tmp_path)
    for content in [*NO_JSON, *NO_OBJECT, *RECORDS]:
        write(folder.run_json, content)
        assert_one_line(folder.run_json, folder.read_run_json)
        assert_one_line(folder.run_json, folder.update_run_json)
        assert_one_line(folder.run_json, find_checkpoint, str(tmp_path), tmp_path)
    for content in [*NO_JSON, *NO_OBJECT, *METRICS]:
        write(folder.metrics_json, content)
        assert_one_line(folder.metrics_json, folder.read_metrics_json)


def test_sweep_record__of_another_shape(tmp_path):
    folder = SweepFolder(tmp_path)
    whole = {"overrides": ["a=1,2"], "flags": [], "varying": ["a"], "jobs": 2, "stage": "train", "metric": ""}
    whole |= {"direction": "maximize", "cwd": "/", "output_dir": "o", "process": 1, "workers": None, "searches": False}
    write(folder.run_json, {"sweep": whole})
    assert folder.read().overrides == ("a=1,2",)
    for name in whole:
        for value in ({"a": 1}, [3], 1.5):
            write(folder.run_json, {"sweep": {**whole, name: value}})
            assert_one_line(folder.run_json, folder.read)
        write(folder.run_json, {"sweep": {key: value for key, value in whole.items() if key != name}})
        assert_one_line(folder.run_json, folder.read)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.timeout(60)
def test_config__damaged_or_made_to_cost(tmp_path, kind):
    content, words = CONFIGS[kind]
    path = write(tmp_path / "config.yaml", content)
    assert_one_line(path, load_config, path, words=words)
    if isinstance(content, str):
        identity = {"config": content, "frozen": {}, "categories": []}
        torch.save({"vpexp": identity, "state_dict": {}}, tmp_path / "a.ckpt")
        assert_one_line(tmp_path / "a.ckpt", read_checkpoint, tmp_path / "a.ckpt")


@pytest.fixture(scope="module")
def cfg():
    return compose_config(["experiment=debug", "tracking=none"])


def state_of(**changes):
    state = {f"sam.{name}": value for name, value in build_sam_debug(64).state_dict().items() if "decoder" in name}
    return state | changes


FIRST = "mask_decoder.iou_token.weight"
TENSORS = {
    "meta": lambda tensor: torch.empty_like(tensor, device="meta"),
    "sparse": lambda tensor: tensor.to_sparse(),
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    "complex": lambda tensor: tensor.to(torch.complex64),
}


def test_checkpoint__made_up(tmp_path, cfg):
    path = tmp_path / "a.ckpt"
    text = OmegaConf.to_yaml(cfg, resolve=True)
    whole = {"config": text, "frozen": {"image_encoder": "0", "prompt_encoder": "0"}, "categories": ["a"]}

    def check(identity, state, words=""):
        torch.save({"vpexp": identity, "state_dict": state}, path)
        assert_one_line(path, read_checkpoint, path, words=words)

    for frozen in ({"nothing": "0"}, {"__class__": "0"}, {"image_encoder": 3}, {3: "0"}, [1], "image_encoder", 3, None):
        check({**whole, "frozen": frozen}, {})
    for categories in ([1], [None], {"a": 1}.values and 3):
        check({**whole, "categories": categories}, {})
    for change in ("model: 3", "model: {name: a}", "seed: x", "model: {image_size: 1000000}", "model: {_target_: [1]}"):
        changed = OmegaConf.merge(OmegaConf.create(text), OmegaConf.create(change)) if "{" in change else None
        changed = changed or OmegaConf.create({**OmegaConf.create(text), **OmegaConf.create(change)})
        if change == "model: {name: a}":
            del changed.model["_target_"]
        check({**whole, "config": OmegaConf.to_yaml(changed)}, {})
    for state in ({"sam.nothing.weight": torch.ones(1)}, {"sam.mask_decoder.a": 3}, {3: torch.ones(1)}, [1], None):
        check(whole, state)
    tensor = build_sam_debug(64).state_dict()[FIRST]
    for kind, change in TENSORS.items():
        check(
            whole, state_of(**{f"sam.{FIRST}": change(tensor)}), words=f"{kind} tensor" if kind != "quantized" else ""
        )

    torch.save({"vpexp": whole, "state_dict": state_of(**{f"sam.{FIRST}": tensor * float("nan")})}, path)
    assert_one_line(path, apply_checkpoint, build_sam_debug(64), read_checkpoint(path), words="no numbers")


@pytest.mark.parametrize("kind", [*TENSORS, "nan", "infinite", "whole numbers", "bool", "nameless"])
def test_weights__made_up(tmp_path, kind):
    changes = {**TENSORS, "nan": lambda t: t * float("nan"), "infinite": lambda t: t + float("inf")}
    changes |= {"whole numbers": lambda t: t.int(), "bool": lambda t: t.bool()}
    state = build_sam_debug(64).state_dict()
    if kind == "nameless":
        state[3] = state.pop(FIRST)
    else:
        state[FIRST] = changes[kind](state[FIRST])
    torch.save(state, tmp_path / "a.pt")

    assert_one_line(tmp_path / "a.pt", load_weights, build_sam_debug(64), tmp_path / "a.pt")


def test_metrics_csv__damaged(tmp_path, cfg):
    path = tmp_path / "metrics.csv"
    for content in (
        b"epoch,a\n1,\xff\n",
        "a,b\n1,2\n",
        "epoch,a\nx,1\n",
        "epoch,a\n1,2,3\n",
        "epoch\n\x00\n,\n",
        "epoch,a\n,1\n",
    ):
        write(path, content)
        assert_one_line(path, read_metrics, path)
        assert_one_line(path, append_metrics, path, 2, {"a": 1.0})
    (tmp_path / "run.json").write_text('{"stage": "pipeline"}')
    save_config(compose_config(["stage=pipeline"]), tmp_path / "config.yaml")
    asked = ["stage=pipeline", f"resume={tmp_path}"]
    assert_one_line(path, complete, compose_config(asked), asked)


def test_journal__entries_of_wrong_types_are_passed_over(tmp_path, caplog):
    good = {"kind": "tags", "time": 5, "content": {"a": "b"}, "number": 2}
    lines = [json.dumps({**good, name: value}) for name in good for value in (None, [], {"a": []}, "x", 1.5, True)]
    lines = [line for line in lines if json.loads(line) != {**good, "content": {"a": []}} and '"kind": "x"' not in line]
    lines += ["[]", "3", "{}", "[" * DEEP, '{"kind": 1}', json.dumps({**good, "more": 1}), json.dumps(good)]
    write(tmp_path / ENTRIES, "\n".join(lines) + "\n")
    write(tmp_path / STATE, {"uri": "sqlite:///a.db"})

    journal = open_journal(tmp_path)
    assert [entry.content for entry in journal.get_next()] == [{"a": "b"}]
    assert journal.count_waiting() == 1

    whole = {"uri": "u", "run_id": None, "delivered": 0, "set_aside": []}
    bad = [{**whole, name: value} for name in whole for value in ({"a": 1}, 1.5, True)]
    for content in [*bad, {**whole, "set_aside": ["x"]}, {**whole, "delivered": "3"}, *NO_JSON, *NO_OBJECT]:
        write(tmp_path / STATE, content)
        assert read_state(tmp_path) is None
    for line in ('{"time": 1e999}', "[" * DEEP, "[]", '{"time": []}', "\x00"):
        write(tmp_path / ENTRIES, line)
        assert read_begin(tmp_path) == 0


def test_exported__metadata_made_up(tmp_path):
    whole = {"image_size": "64", "label_names": "[]", "model_name": "m", "precision": "FP32", "source_hash": "0"}
    bad = {"image_size": ["", "x", "9" * 5000, "0", "1000000"], "label_names": ["{}", "[1]", "3", "[" * DEEP, ""]}
    for name, values in bad.items():
        for value in values:
            for part in ("image_encoder", "decoder"):
                info = {**whole, "model_type": f"sam_{part}", name: value}
                entries = "".join(f"<{key} value='{text}'/>" for key, text in info.items())
                write(tmp_path / f"m_{part}.xml", f"<net><rt_info><model_info>{entries}</model_info></rt_info></net>")
                write(tmp_path / f"m_{part}.bin", "")
            with pytest.raises(CheckpointError, match=str(tmp_path)):
                read_metadata(find_exported(tmp_path))
