"""Checkpoints: what was trained comes back to the bit, and everything else is refused in one line."""

import pickle
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf

from vpexp.config import compose_config
from vpexp.errors import CheckpointError
from vpexp.inference.torch_model import (
    apply_checkpoint,
    find_checkpoint,
    load_checkpoint_model,
    load_sam,
    read_checkpoint,
)
from vpexp.models.registry import get_model_info
from vpexp.models.tuning import Lora, find_trained, plan_tuning
from vpexp.models.weights import compute_state_hash, save_weights
from vpexp.runfolder import RunFolder, create_run_folder, mark_latest

FROZEN = ("image_encoder", "prompt_encoder")


def assert_refused(words, function, *args, **kwargs):
    with pytest.raises(CheckpointError, match=words) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert "weights_only" not in message  # nobody is told to load unsafely
    return message


def load(path, cfg, tmp_path, **changes):
    settings = replace(OmegaConf.to_object(cfg.model), **changes)
    return load_checkpoint_model(read_checkpoint(path), settings, weights_dir=tmp_path)


@pytest.mark.parametrize("freeze", [("image_encoder", "prompt_encoder"), ("prompt_encoder",), ()])
def test_round_trip__to_the_bit(cfg, tmp_path, write_checkpoint, freeze):
    path, sam = write_checkpoint(freeze=freeze)
    checkpoint = read_checkpoint(path)
    trained = {"image_encoder", "prompt_encoder", "mask_decoder"} - set(freeze)
    assert set(checkpoint.parts) == trained
    assert set(checkpoint.frozen) == set(freeze)
    assert checkpoint.categories == ("berry", "leaf")
    assert checkpoint.cfg.model.name == "sam_debug"
    assert checkpoint.cfg.seed == 7
    restored = load(path, cfg, tmp_path)
    assert compute_state_hash(restored) == compute_state_hash(sam)
    assert not restored.training
    fresh = load_sam(OmegaConf.to_object(cfg.model), seed=cfg.seed)
    assert compute_state_hash(fresh) != compute_state_hash(sam)


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4.0, targets=("attention", "mlp"))])
def test_round_trip__of_an_encoder_that_learnt_in_part(cfg, tmp_path, write_checkpoint, lora):
    """The checkpoint is small, and what it gives is a plain model that computes what the trained one does."""
    path, sam = write_checkpoint(tune="last:1", lora=lora)
    whole, _ = write_checkpoint(tmp_path / "whole.ckpt", freeze=("prompt_encoder",))
    checkpoint = read_checkpoint(path)
    assert set(checkpoint.parts) == {"image_encoder", "mask_decoder"}
    held = {name for name in checkpoint.state if name.startswith("image_encoder.")}
    assert held == {f"image_encoder.{name}" for name in find_trained(sam, plan_tuning(sam, FROZEN, "last:1", lora))}
    assert path.stat().st_size < whole.stat().st_size
    restored = load(path, cfg, tmp_path)
    fresh = load_sam(OmegaConf.to_object(cfg.model), seed=cfg.seed)
    assert list(restored.state_dict()) == list(fresh.state_dict())
    images = torch.randn(2, 3, restored.image_size, restored.image_size)
    with torch.no_grad():
        torch.testing.assert_close(restored.encode_image(images), sam.encode_image(images), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(fresh.encode_image(images), sam.encode_image(images), atol=1e-3)


def test_load__the_rest_of_an_encoder_that_learnt_in_part_must_be_the_same(cfg, tmp_path, write_checkpoint):
    path, _ = write_checkpoint(tune="last:1")
    content = torch.load(path, weights_only=True)
    content["vpexp"]["frozen"]["image_encoder"] = "0" * 64
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="trained with another image_encoder"):
        load(path, cfg, tmp_path)


def test_round_trip__frozen_part_of_a_start_checkpoint_comes_along(cfg, tmp_path, write_checkpoint):
    """Decoder fine-tuned on an encoder that was fine-tuned before: the checkpoint must bring both."""
    first, _ = write_checkpoint(tmp_path / "first.ckpt", freeze=("prompt_encoder",))
    start = load_sam(OmegaConf.to_object(cfg.model), seed=cfg.seed)
    apply_checkpoint(start, read_checkpoint(first))
    second, sam = write_checkpoint(tmp_path / "second.ckpt", left_out=("prompt_encoder",))
    assert read_checkpoint(second).parts == ("image_encoder", "mask_decoder")
    assert compute_state_hash(load(second, cfg, tmp_path)) == compute_state_hash(sam)


def test_load__other_frozen_weights_are_refused(cfg, tmp_path, write_checkpoint):
    path, _ = write_checkpoint()
    other = save_weights(load_sam(OmegaConf.to_object(cfg.model), seed=8), tmp_path / "other.pth")
    assert_refused("trained with another image_encoder.*seed=7", load, path, cfg, tmp_path, weights=str(other))


def test_load__another_model_is_refused(cfg, tmp_path, write_checkpoint):
    path, _ = write_checkpoint()
    assert_refused("is of model sam_debug, not sam_micro", load, path, cfg, tmp_path, name="sam_micro")


def test_load__another_image_size_is_refused_where_the_encoder_depends_on_it(cfg, tmp_path, write_checkpoint):
    path, _ = write_checkpoint()
    assert_refused("model.image_size=64", load, path, cfg, tmp_path, image_size=128)


def test_apply__other_layers_are_refused(cfg, tmp_path, write_checkpoint):
    path, _ = write_checkpoint()
    target = "vpexp.models.registry.build_sam_micro"
    assert_refused("does not fit the model's mask_decoder", load, path, cfg, tmp_path, _target_=target)


class Exploit:
    """What a malicious file would do when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_read__a_file_with_code_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "ran"
    torch.save({"vpexp": {}, "state_dict": {}, "x": Exploit(marker)}, tmp_path / "bad.ckpt")
    assert_refused("bad.ckpt cannot be read as a checkpoint", read_checkpoint, tmp_path / "bad.ckpt")
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps(Exploit(marker)))
    assert_refused("old.ckpt cannot be read as a checkpoint", read_checkpoint, tmp_path / "old.ckpt")
    assert not marker.exists()


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_read__truncated_file(tmp_path, write_checkpoint, keep):
    path, _ = write_checkpoint()
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    assert_refused("some.ckpt cannot be read as a checkpoint", read_checkpoint, path)


def test_read__what_is_no_checkpoint_of_vpexp(cfg, tmp_path):
    torch.save(load_sam(OmegaConf.to_object(cfg.model), seed=0).state_dict(), tmp_path / "weights.pth")
    assert_refused(r"no checkpoint of vpexp; .*model\.weights=", read_checkpoint, tmp_path / "weights.pth")
    torch.save([1, 2], tmp_path / "list.ckpt")
    assert_refused("no checkpoint of vpexp", read_checkpoint, tmp_path / "list.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    assert_refused("text.ckpt cannot be read", read_checkpoint, tmp_path / "text.ckpt")
    assert_refused("does not exist", read_checkpoint, tmp_path / "missing.ckpt")
    assert_refused("cannot be read", read_checkpoint, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {"vpexp": {}, "state_dict": {}},
        {"vpexp": None, "state_dict": {}},
        {"vpexp": {"config": "a: [1", "frozen": {}, "categories": []}, "state_dict": {}},
        {"vpexp": {"config": "a: 1", "frozen": {}, "categories": []}},
        {"vpexp": {"config": "a: 1", "frozen": {}, "categories": 3}, "state_dict": {}},
    ],
)
def test_read__changed_content_is_one_line(tmp_path, content):
    torch.save(content, tmp_path / "odd.ckpt")
    assert_refused("no whole checkpoint of vpexp", read_checkpoint, tmp_path / "odd.ckpt")


def make_run(output_dir, *names, best=None):
    folder = create_run_folder(output_dir, "train")
    folder.checkpoints.mkdir()
    for name in names:
        (folder.checkpoints / name).write_bytes(b"x")
    if best:
        folder.update_run_json(best_checkpoint=f"checkpoints/{best}")
    return folder


def test_find__best_of_a_run_folder(tmp_path):
    noted = make_run(tmp_path, "epoch_001.ckpt", "epoch_004.ckpt", "last.ckpt", best="epoch_001.ckpt")
    assert find_checkpoint(str(noted.path), tmp_path).name == "epoch_001.ckpt"
    newest = make_run(tmp_path, "epoch_001.ckpt", "epoch_004.ckpt", "last.ckpt")
    assert find_checkpoint(str(newest.path), tmp_path).name == "epoch_004.ckpt"
    moved = make_run(tmp_path, "last.ckpt", best="epoch_001.ckpt")
    assert find_checkpoint(str(moved.path), tmp_path).name == "last.ckpt"


@pytest.mark.parametrize("best", ["/{other}", "../other.ckpt", "checkpoints/../../other.ckpt"])
def test_find__best_lies_in_the_run_folder(tmp_path, best):
    folder = create_run_folder(tmp_path, "train", tmp_path / "run")
    (tmp_path / "other.ckpt").touch()
    folder.checkpoints.mkdir()
    folder.last_checkpoint.touch()
    folder.update_run_json(best_checkpoint=best.format(other=str(tmp_path / "other.ckpt").lstrip("/")))

    assert find_checkpoint(str(folder.path), tmp_path) == folder.last_checkpoint


def test_find__best_job_of_a_sweep_and_the_training_of_a_pipeline(tmp_path, capsys):
    sweep, jobs = RunFolder(tmp_path), [RunFolder(tmp_path / name) for name in "01"]
    sweep.update_run_json(stage="sweep", sweep={"metric": ""})
    for job in (jobs[0], RunFolder(jobs[1].path / "train")):
        job.checkpoints.mkdir(parents=True)
        job.last_checkpoint.touch()
    jobs[1].update_run_json(stage="pipeline", job_name="lr=1e-4")

    with pytest.raises(
        CheckpointError, match=r"is a sweep, and names no best job: give one of its jobs, checkpoint=.*/0$"
    ):
        find_checkpoint(str(tmp_path), tmp_path)
    sweep.update_run_json(best_job=0)
    assert find_checkpoint(str(tmp_path), tmp_path) == jobs[0].last_checkpoint.resolve()
    sweep.update_run_json(best_job=1)
    assert find_checkpoint(str(tmp_path), tmp_path) == (jobs[1].path / "train" / "checkpoints" / "last.ckpt").resolve()
    assert f"of the sweep, its best job is taken: {jobs[1].path.resolve()} (lr=1e-4)" in capsys.readouterr().out


def test_find__latest_and_file(tmp_path):
    first, second = (make_run(tmp_path, f"epoch_00{i}.ckpt") for i in range(2))
    for folder in (second, first):
        mark_latest(tmp_path, "train", folder)
    assert find_checkpoint("latest", tmp_path) == first.checkpoints / "epoch_000.ckpt"
    assert find_checkpoint(str(tmp_path), tmp_path / "elsewhere") == first.checkpoints / "epoch_000.ckpt"
    file = second.checkpoints / "epoch_001.ckpt"
    assert find_checkpoint(str(file), tmp_path) == file


def test_find__nothing_there_is_told(tmp_path):
    assert_refused("nothing was trained yet", find_checkpoint, "latest", tmp_path)
    assert_refused("does not exist", find_checkpoint, str(tmp_path / "a.ckpt"), tmp_path)
    empty = make_run(tmp_path)
    assert_refused("holds no checkpoint", find_checkpoint, str(empty.path), tmp_path)
    assert isinstance(empty, RunFolder)


@pytest.mark.parametrize("freeze", ["image_encoder", "nothing"])
def test_load__a_checkpoint_of_the_former_packaged_weights_says_which_they_were(tmp_path, write_checkpoint, freeze):
    former = get_model_info("sam_micro").weights.former
    biases = {"image_encoder.layers.1.blocks.0.attn.attention_biases": torch.zeros(2, 49)}  # of windows of 7 x 7
    checkpoint = replace(
        read_checkpoint(write_checkpoint()[0]),
        cfg=compose_config(["model=sam_micro"]),
        frozen={"image_encoder": former.encoder_hash} if freeze == "image_encoder" else {},
        state={} if freeze == "image_encoder" else biases,
    )
    words = f"was trained on the former weights of sam_micro .*sha256 {former.sha256}.*vpexp 0.1 had"
    assert_refused(words, load_checkpoint_model, checkpoint)
