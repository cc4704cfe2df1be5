"""What the user reads after each kind of mistake, through the notebook's door; test_cli goes through the other one."""

import pytest

from vpexp.config import compose_config
from vpexp.config.explain import describe_type, explain
from vpexp.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_sise=2", "unknown key 'data.batch_sise'; did you mean 'data.batch_size'?"),
        ("dat.batch_size=2", "unknown key 'dat.batch_size'; did you mean 'data.batch_size'?"),
        ("dataa=voc", "unknown key 'dataa'; did you mean 'data'?"),
        ("experimant=debug", "unknown key 'experimant'; did you mean 'experiment'?"),
        (
            "prompt.xyzzy=1",
            "unknown key 'prompt.xyzzy' (there are: type, jitter, test_jitter, max_per_image, clicks, first, box_share, ",
        ),
        ("xyzzy=1", "(there are: stage, model, data, prompt,"),
        (
            "optimizer.learning_rate=1e-3",
            "unknown key 'optimizer.learning_rate'; did you mean 'optimizer.lr'? (to add a new key:",
        ),
        ("optimizer.beta=3", "did you mean 'optimizer.betas'? (to add a new key: +optimizer.beta=3)"),
        ("optimizer.amsgrad=true", "unknown key 'optimizer.amsgrad' (to add a new key: +optimizer.amsgrad=true)"),
        ("~callbacks.progres", "unknown key 'callbacks.progres', nothing to delete"),
        ("data.batch_size=two", "data.batch_size=two: must be a whole number"),
        ("data.batch_size=null", "data.batch_size=null: must be a whole number"),
        ("data.batch_size=1.5", "data.batch_size=1.5: must be a whole number"),
        ("data.strict=perhaps", "data.strict=perhaps: must be true or false"),
        ("prompt.jitter=much", "prompt.jitter=much: must be a number"),
        ("prompt.max_per_image=all", "prompt.max_per_image=all: must be a whole number or null"),
        ("trainer.limit_train_batches=all", "must be a number or null"),
        ("demo.learn_every=[0]", "demo.learn_every=[0]: must be a whole number or null"),
        ("model.freeze=image_encoder", "model.freeze=image_encoder: must be a list, as [a,b]"),
        ("data.synthetic=3", "data.synthetic=3: must be a section of keys or null"),
        ("data=cocoo", "data has no option 'cocoo'; did you mean 'coco'? (there are: auto, coco,"),
        (
            "stage=fly",
            "stage has no option 'fly' (there are: data, demo, export, models, pipeline, predict, ptq, sync, test, train)",
        ),
        ("data=3", "data=3: choose an option of data (auto, coco,"),
        ("model=null", "model=null: choose an option of model (openvino_model, sam2_base_plus,"),
        ("+data=voc", "data is chosen twice: write data=... once, without '+'"),
        ("data.batch_size==", "cannot read 'data.batch_size=='"),
        ("data.root=a=b", "a value with special characters needs quotes: 'data.root=\"a=b\"'"),
        ("data.root=[x", "cannot read 'data.root=[x'"),
        ("data.root", "cannot read 'data.root': write key=value"),
        ("export", "cannot read 'export': write stage=export"),
        ("data.root=a,b", "add -m to try each of them, or quote it as one: 'data.root=\"a,b\"'"),
        ("optimizer.lr=range(1,3)", "names several values: add -m to try each of them"),
    ],
)
def test_explain__one_line_with_the_right_name(override, message):
    with pytest.raises(ConfigError) as caught:
        compose_config([override])

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_explain__key_inside_a_null_section():
    with pytest.raises(ConfigError, match="inside a section that is null"):
        compose_config(["data=coco", "data.synthetic.scene=shapes"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format: coco\nroot: [x\nstrict: true\n", ", line 3: "),
        ("format: coco\n\troot: x\n", ", line 2: "),
        ("format: coco\nformat: voc\n", ", line 2: found duplicate key format"),
        ("btach_size: 3\n", ": unknown key 'data.btach_size'; did you mean 'data.batch_size'?"),
        ("batch_size: three\n", ": data.batch_size=three: must be a whole number"),
        ("- a\n", ": must hold keys, as name: value"),
        ("defaults: [cocoo, _self_]\n", ": data has no option 'cocoo'; did you mean 'coco'?"),
        (b"name: \xff\n", ": is not text in UTF-8"),
    ],
)
def test_explain__broken_file_of_the_user_is_named(tmp_path, text, message):
    file = tmp_path / "data" / "mine.yaml"
    file.parent.mkdir()
    file.write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(ConfigError) as caught:
        compose_config(["data=mine"], config_dir=tmp_path)

    assert f"{file}{message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_explain__defects_are_not_explained_away():
    assert explain(TypeError("a defect"), (), ()) is None
    assert explain(KeyError("a defect"), (), ()) is None


def test_describe_type__in_words():
    assert describe_type(int | None) == "a whole number or null"
    assert describe_type(int | float | None) == "a number or null"
    assert describe_type(dict[str, str]) == "a section of keys"
