"""The training of the packaged model: what it shows to the model, and that it goes on to the same numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scripts.sam_micro import held_out, trainer
from scripts.sam_micro.scenes import Drawings, Photos, ViewMaker
from scripts.sam_micro.step import KINDS, build_batch, draw_first_prompt
from scripts.sam_micro.trainer import MicroTrainer, Settings, build_start, take_over
from vpexp.config.schema import SyntheticConfig
from vpexp.inference.load import load_model
from vpexp.models.mask_decoder import MaskDecoder
from vpexp.models.registry import _build_sam
from vpexp.models.tiny_vit import TinyViT
from vpexp.synthetic.dataset import write_synthetic_dataset

SIZE = 128


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Stand-ins for photographs: a COCO data set with splits train and val."""
    return write_synthetic_dataset(tmp_path_factory.mktemp("photos"), SyntheticConfig(train=4, val=2, test=0))


@pytest.fixture(scope="module")
def views(photos) -> ViewMaker:
    return ViewMaker(Drawings(0, {"shapes": 1.0}), Photos(photos), 0.5, 0.35, objects=4)


@pytest.mark.parametrize("seed", range(6))
def test_views__show_whole_objects_of_some_size_and_are_the_same_again(views, seed):
    first, again = (views.make(np.random.default_rng(seed), SIZE) for _ in range(2))
    assert max(first.image_hw3.shape[:2]) == SIZE
    assert 1 <= len(first.covers_Khw) <= 4
    assert first.covers_Khw.shape[1:] == first.image_hw3.shape[:2]
    assert ((first.covers_Khw >= 128).sum((1, 2)) >= 3).all()
    assert np.array_equal(first.image_hw3, again.image_hw3)
    assert np.array_equal(first.covers_Khw, again.covers_Khw)


@pytest.mark.parametrize("seed", range(4))
def test_prompts__points_lie_on_the_object_and_boxes_hold_it(seed):
    rng = np.random.default_rng(seed)
    mask_hw = np.zeros((90, 120), bool)
    mask_hw[rng.integers(5, 40) : 70, rng.integers(5, 60) : 110] = True
    mask_hw[45:60, 70:90] = False
    rows, columns = np.nonzero(mask_hw)
    tight = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    for _ in range(20):
        coords, labels = draw_first_prompt(mask_hw, "point", rng)
        assert labels.tolist() == [1, -1]
        assert mask_hw[int(coords[0, 1]), int(coords[0, 0])]
    coords, labels = draw_first_prompt(mask_hw, "exact", rng)
    assert (coords.ravel().tolist(), labels.tolist()) == (tight.tolist(), [2, 3])
    coords, _ = draw_first_prompt(mask_hw, "loose", rng)
    assert (coords[0] <= tight[:2]).all()
    assert (coords[1] >= tight[2:]).all()
    assert (coords >= 0).all()
    assert (coords[1] <= (120, 90)).all()


def test_batches__hold_every_kind_of_first_prompt(views):
    rng = np.random.default_rng(0)
    labels = torch.cat([build_batch([views.make(rng, SIZE)], SIZE, rng).labels_NP for _ in range(60)])
    points = float((labels[:, 0] == 1).float().mean())
    assert points == pytest.approx(KINDS["point"], abs=0.12)


def make_settings(folder: Path, photos: Path, **changed) -> Settings:
    values = {
        "output": folder / "sam_micro.safetensors",
        "start": "packaged",
        "photos": photos,
        "photo_share": 0.5,
        "whole_share": 0.35,
        "scenes": {"shapes": 1.0},
        "steps": 3,
        "small_share": 0.7,
        "images": 2,
        "objects": 2,
        "learning_rate": 1e-3,
        "measure_every": 100,
        "seed": 0,
        "threads": 1,
        "device": "cpu",
    }
    folder.mkdir()
    return Settings(**values | changed)


@pytest.mark.slow
def test_training__stopped_and_called_again_ends_with_the_same_weights_and_leaves_a_curve(
    photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(held_out, "IMAGES", 2)
    monkeypatch.setattr(trainer.signal, "signal", lambda *_: None)
    MicroTrainer(make_settings(tmp_path / "whole", photos)).train()
    settings = make_settings(tmp_path / "stopped", photos)
    first = MicroTrainer(settings)
    make_step = first._make_step

    def stop_after_the_second():
        found = make_step()
        if first.step == 2:
            first._note_stop()
        return found

    first._make_step = stop_after_the_second
    first.train()
    assert first.step == 2
    MicroTrainer(settings).train()
    whole, stopped = (load_file(tmp_path / name / "sam_micro.safetensors") for name in ("whole", "stopped"))
    packaged = load_model("sam_micro").state_dict()
    assert whole.keys() == packaged.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    name = "image_encoder.neck.0.weight"
    assert not torch.equal(whole[name].float(), packaged[name])
    lines = [json.loads(line) for line in (tmp_path / "whole" / "sam_micro.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3]
    assert all(0 < lines[0][f"photos/{name}"] < 1 for name in ("exact", "loose", "1", "5"))
    assert list((tmp_path / "whole" / "overlays" / "step_3").glob("*.png"))


def test_take_over__new_blocks_pass_their_input_on():
    """A model with more blocks, of the same windows, starts with the answers of the one whose weights it takes."""

    def build(depths):
        torch.manual_seed(1)
        encoder = TinyViT(channels=(16, 32, 32, 320), depths=depths, heads=(1, 1, 1, 10), window_sizes=(8, 8, 16, 16))
        return _build_sam(encoder, 128, MaskDecoder(mlp_channels=32))

    small, large = build((1, 1, 1, 1)), build((1, 1, 3, 1))
    take_over(large, small.state_dict())
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        assert torch.allclose(small.encode_image(image), large.encode_image(image), atol=1e-5)


def test_start__from_nothing_is_another_model():
    assert not torch.equal(
        build_start("nothing").mask_decoder.iou_token.weight, load_model("sam_micro").mask_decoder.iou_token.weight
    )
