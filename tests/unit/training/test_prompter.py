"""The prompter learns where objects are: its targets say what its boxes should be, and its training goes on to the same numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vpexp.config.schema import PrompterConfig
from vpexp.data.annotations import AnnotatedImage, ImagePlace, Region
from vpexp.data.masks import compute_box, encode_mask
from vpexp.data.tiles import Tiling
from vpexp.evaluation.instances import compute_box_ious
from vpexp.models.prompter import Prompter, choose_cell
from vpexp.training.prompter import PrompterTrainer, measure_boxes
from vpexp.training.prompter_targets import (
    SWAPPED_SIDES,
    Targets,
    View,
    build_targets,
    compute_log_iou,
    list_views,
)

SIZE = 64
CELLS = (4, 16)
SETTINGS = PrompterConfig(steps=12, batch_size=2, evaluate_every=4, patience=9, width=32, depth=0, limit=20)


def build_view(*boxes, number=0):
    place = ImagePlace(Path(f"{number}.png"), exif_transpose=True)
    return View(place, np.array(boxes, np.float32).reshape(-1, 4), (SIZE, SIZE))


class Oracle(Prompter):
    """A prompter whose maps are given."""

    def __init__(self, targets):
        super().__init__(8, width=32, depth=0, limit=20)
        self.targets = targets

    def compute_maps(self, embeddings_BCEE, images_B3SS):
        return [(torch.logit(one.heat_BGG.clamp(1e-4, 1 - 1e-4))[:, None], one.distances_B4GG) for one in self.targets]


def find_boxes(targets):
    boxes_1K4, scores_1K = Oracle(targets)(None, None)
    return boxes_1K4[0][scores_1K[0] > 0.99].numpy()


sides = st.tuples(st.floats(1, 40), st.floats(1, 40))
boxes = st.tuples(st.floats(0, 60), st.floats(0, 60), sides).map(
    lambda drawn: (drawn[0], drawn[1], min(drawn[0] + drawn[2][0], SIZE), min(drawn[1] + drawn[2][1], SIZE))
)


@settings(max_examples=40, deadline=None)
@given(boxes)
def test_build_targets__are_found_again_as_the_box(box):
    found_k4 = find_boxes(build_targets([build_view(box)], SIZE, CELLS))
    np.testing.assert_allclose(found_k4, [box], atol=1e-3)


def test_build_targets__keep_objects_apart_that_touch():
    touching = [(4, 4, 20, 20), (20, 4, 36, 20), (4, 20, 20, 60), (40, 40, 44, 44)]
    found_k4 = find_boxes(build_targets([build_view(*touching)], SIZE, CELLS))
    np.testing.assert_allclose(sorted(found_k4.tolist()), sorted(map(list, touching)), atol=1e-3)


def test_build_targets__every_object_counts_the_same():
    small = [(8 + 12 * column, 20, 14 + 12 * column, 26) for column in range(4)]
    targets = build_targets([build_view((0, 0, 64, 64), *small)], SIZE, CELLS)
    assert [float(one.weights_BGG.sum()) for one in targets] == pytest.approx([4, 1])
    assert len(find_boxes(targets)) == 5


def test_build_targets__share_objects_out_by_their_size():
    below, above, flat = (0, 0, 40, 40), (8, 8, 60, 60), (0, 50, 64, 54)
    fine, coarse = build_targets([build_view(below, above, flat)], SIZE, CELLS)
    assert sorted(map(tuple, (fine.heat_BGG == 1).nonzero().tolist())) == [(0, 5, 5), (0, 13, 8)]
    assert (coarse.heat_BGG == 1).nonzero().tolist() == [[0, 2, 2]]


def test_compute_log_iou__equals_the_iou_and_pulls_boxes_of_all_sizes_alike():
    rng = np.random.default_rng(0)
    first_B4, second_B4 = rng.uniform(0.2, 30, (2, 50, 4))

    def place(sides_B4):
        return np.concatenate([50 - sides_B4[:, :2], 50 + sides_B4[:, 2:]], axis=1)

    expected_B = np.diag(compute_box_ious(place(first_B4), place(second_B4)))
    maps = (torch.from_numpy(sides_B4)[:, :, None, None] for sides_B4 in (first_B4, second_B4))
    np.testing.assert_allclose(compute_log_iou(*maps).flatten().exp(), expected_B, rtol=1e-5)
    wanted_B4 = torch.tensor([[20.0] * 4, [200.0] * 4])[:, :, None, None]
    logarithms_B4 = torch.full((2, 4, 1, 1), np.log(2.0), requires_grad=True)  # too small 10 and 100 times
    compute_log_iou(logarithms_B4.exp(), wanted_B4).sum().backward()
    torch.testing.assert_close(logarithms_B4.grad[0], logarithms_B4.grad[1])
    assert (logarithms_B4.grad > 0.4).all()


@pytest.mark.parametrize("how", SWAPPED_SIDES)
def test_targets_mirror__are_those_of_the_mirrored_boxes(how):
    box_4 = np.array([5, 9, 31, 50], np.float32)
    x0, y0, x1, y1 = box_4
    mirrored = {
        "columns": (SIZE - x1, y0, SIZE - x0, y1),
        "rows": (x0, SIZE - y1, x1, SIZE - y0),
    }
    expected = build_targets([build_view(mirrored[how])], SIZE, CELLS)
    got = [one.mirror(how) for one in build_targets([build_view(box_4)], SIZE, CELLS)]
    for name in Targets.__slots__:
        for got_one, expected_one in zip(got, expected, strict=True):
            torch.testing.assert_close(getattr(got_one, name), getattr(expected_one, name), atol=1e-4, rtol=0)


def build_image(height, width, *boxes_xyxy):
    masks = []
    for left, top, right, bottom in boxes_xyxy:
        mask_HW = np.zeros((height, width), bool)
        mask_HW[top:bottom, left:right] = True
        masks.append(encode_mask(mask_HW))
    return AnnotatedImage(
        image_id="a.png",
        path=Path("a.png"),
        height=height,
        width=width,
        masks=tuple(masks),
        boxes_N4=np.array([compute_box(mask) for mask in masks], np.float32).reshape(-1, 4),
        labels_N=np.zeros(len(masks), np.int64),
        object_ids=tuple(map(str, range(len(masks)))),
    )


def test_list_views__shows_each_tile_what_lies_in_it_and_images_without_objects():
    image = build_image(100, 200, (10, 10, 30, 30), (95, 40, 115, 60), (150, 90, 200, 100))
    tiles = list_views([image, build_image(50, 50)], Tiling(100, 0.0), SIZE)
    assert [view.place.window for view in tiles] == [Region(0, 0, 100, 100), Region(0, 100, 100, 200), None]
    scale = SIZE / 100
    np.testing.assert_allclose(tiles[0].boxes_N4, np.array([[10, 10, 30, 30], [95, 40, 100, 60]]) * scale, atol=1e-5)
    np.testing.assert_allclose(tiles[1].boxes_N4, np.array([[0, 40, 15, 60], [50, 90, 100, 100]]) * scale, atol=1e-5)
    assert len(tiles[2].boxes_N4) == 0
    (whole,) = list_views([image], None, SIZE)
    assert (whole.place.window, whole.resized_hw) == (None, (32, 64))


def draw_views(count):
    """Bright rectangles on a dark ground, whose embedding is noise: all is in the pixels."""
    rng, views, pixels = np.random.default_rng(0), [], {}
    for number in range(count):
        image_HW3 = rng.integers(0, 40, (SIZE, SIZE, 3)).astype(np.uint8)
        corners = [(6, 6), (38, 8), (10, 40), (40, 40)][: int(rng.integers(0, 5))]
        found = []
        for x, y in corners:
            wide, high = rng.integers(8, 20, 2).tolist()
            image_HW3[y : y + high, x : x + wide] = 220
            found.append((x, y, x + wide, y + high))
        view = build_view(*found, number=number)
        views.append(view)
        pixels[view.place] = rng.standard_normal((8, 4, 4)).astype(np.float32), image_HW3
    return views, pixels.__getitem__


def build_trainer(folder, views, read, config=SETTINGS, encoder_hash="a"):
    torch.manual_seed(0)
    prompter = Prompter(8, width=config.width, depth=config.depth, limit=config.limit)
    looks = []
    trainer = PrompterTrainer(
        prompter,
        views[4:],
        views[:4],
        read,
        config,
        seed=3,
        state_path=folder / "state.ckpt",
        encoder_hash=encoder_hash,
        report=lambda *look: looks.append(look),
    )
    return trainer, looks


def test_prompter_trainer__goes_on_to_the_same_numbers(tmp_path):
    views, read = draw_views(9)
    whole, looks = build_trainer(tmp_path, views, read)
    whole.fit(lambda _: None)
    (tmp_path / "state.ckpt").unlink()

    def stop_at_6(step):
        if step == 6:
            raise KeyboardInterrupt

    stopped, first = build_trainer(tmp_path, views, read)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(stop_at_6)
    resumed, second = build_trainer(tmp_path, views, read)
    resumed.fit(lambda _: None)
    assert [look[0] for look in first] == [4]
    assert [*first, *second] == looks
    for name, value in whole.prompter.state_dict().items():
        assert torch.equal(value, resumed.prompter.state_dict()[name]), name
    other, again = build_trainer(tmp_path, views, read, encoder_hash="b")
    other.fit(lambda _: None)
    assert [look[0] for look in again] == [4, 8, 12]


def test_prompter_trainer__learns_from_pixels_and_stops_early(tmp_path):
    views, read = draw_views(24)
    config = PrompterConfig(
        steps=800, batch_size=4, lr=5e-3, evaluate_every=50, patience=2, width=32, depth=0, limit=20
    )
    trainer, looks = build_trainer(tmp_path, views, read, config)
    trainer.fit(lambda _: None)
    assert trainer.best_score > 0.5  # of boxes from an IoU of 0.5 to 0.9
    assert measure_boxes(trainer.prompter, views[:4], read, torch.device("cpu")) == trainer.best_score
    assert trainer.step < 800
    assert trainer.step - trainer.best_step == 100
    assert [look[3] for look in looks[-2:]] == [False, False]


@pytest.mark.parametrize(("image_size", "cell"), [(256, 4), (512, 4), (1024, 8)])
def test_prompter__its_cells_are_wider_in_a_large_input(image_size, cell):
    assert choose_cell(image_size) == cell
    prompter = Prompter(8, cell=cell, width=32, depth=0, limit=20).eval()
    embeddings, images = torch.randn(1, 8, SIZE // 16, SIZE // 16), torch.randn(1, 3, SIZE, SIZE)
    cells = [SIZE // cell, SIZE // (4 * cell)]
    maps = prompter.compute_maps(embeddings, images)
    assert [logits.shape for logits, _ in maps] == [(1, 1, count, count) for count in cells]
    targets = build_targets([build_view((9, 3, 50, 33))], SIZE, prompter.cells)
    assert [one.heat_BGG.shape for one in targets] == [(1, count, count) for count in cells]
    again = Prompter(**prompter.settings).eval()
    again.load_state_dict(prompter.state_dict())
    assert torch.equal(again(embeddings, images)[0], prompter(embeddings, images)[0])
