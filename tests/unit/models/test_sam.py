"""Sam against the official packages: one flat batch of any prompts equals the separate official calls."""

import pytest
import torch

from tests.references.official import build_official_sam, build_official_vit, decode_official, randomize
from tests.references.transformers_sam import build_transformers_sam, get_official_state, share_frequencies
from vpexp.models.mask_decoder import ALL_MASKS, THREE_MASKS, MaskDecoder
from vpexp.models.prompt_encoder import PromptEncoder
from vpexp.models.sam import Sam, upscale_logits
from vpexp.models.vit import ImageEncoderViT

SMALL = {"channels": 48, "depth": 2, "heads": 3, "window_size": 4, "global_attention_blocks": (1,)}
SIZE = 128
CORNERS = (2.0, 3.0)


def build_sam(image_size, **encoder):
    prompt_encoder = PromptEncoder(image_size=image_size, embedding_size=image_size // 16)
    return Sam(ImageEncoderViT(image_size=image_size, **encoder), prompt_encoder, MaskDecoder()).eval()


@pytest.fixture(scope="module")
def official():
    return randomize(build_official_sam(build_official_vit(image_size=SIZE, **SMALL), SIZE))


@pytest.fixture(scope="module")
def sam(official):
    model = build_sam(SIZE, **SMALL)
    model.load_state_dict(official.state_dict())
    return model


@pytest.fixture(scope="module")
def embeddings(official):
    with torch.no_grad():
        return official.image_encoder(torch.randn(3, 3, SIZE, SIZE))


def random_boxes(number, size=SIZE):
    corners = torch.rand(number, 2, 2) * size
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


def as_points(boxes_N4):
    return boxes_N4.view(-1, 2, 2), torch.tensor(CORNERS).expand(len(boxes_N4), 2)


def first_image(number):
    return torch.zeros(number, dtype=torch.int64)


def assert_equal(decoded, expected, tolerance=1e-4):
    logits, iou = expected
    torch.testing.assert_close(decoded.low_res_logits_NKHW, logits, atol=tolerance, rtol=0)
    torch.testing.assert_close(decoded.iou_NK, iou, atol=tolerance, rtol=0)


@torch.no_grad()
def test_encode_image__equals_official(sam, official):
    images = torch.randn(2, 3, SIZE, SIZE)
    torch.testing.assert_close(sam.encode_image(images), official.image_encoder(images), atol=1e-4, rtol=0)


def test_sizes__follow_the_prompt_encoder(sam):
    assert (sam.image_size, sam.embedding_size) == (SIZE, SIZE // 16)


@torch.no_grad()
def test_decode__boxes_equal_official(sam, official, embeddings):
    boxes = random_boxes(4)
    points, labels = as_points(boxes)
    decoded = sam.decode(embeddings[:1], first_image(4), points, labels)
    assert_equal(decoded, decode_official(official, embeddings[:1], boxes=boxes))
    assert decoded.low_res_logits_NKHW.shape == (4, 1, SIZE // 4, SIZE // 4)
    # Prompts and image matter: otherwise equality proves nothing.
    assert decoded.low_res_logits_NKHW.std(dim=0).mean() > 1e-2


@pytest.mark.parametrize("labels", [[[1]], [[0]], [[1, 0, 1]], [[1, 1], [0, 1], [1, 0]]])
@torch.no_grad()
def test_decode__points_equal_official(sam, official, embeddings, labels):
    labels = torch.tensor(labels, dtype=torch.float32)
    points = torch.rand(*labels.shape, 2) * SIZE
    decoded = sam.decode(embeddings[:1], first_image(len(labels)), points, labels)
    assert_equal(decoded, decode_official(official, embeddings[:1], points=points, labels=labels))
    decoded = sam.decode(embeddings[:1], first_image(len(labels)), points, labels.to(torch.int64))
    assert_equal(decoded, decode_official(official, embeddings[:1], points=points, labels=labels))


@torch.no_grad()
def test_decode__box_and_points_in_one_prompt_equal_official(sam, official, embeddings):
    boxes, points, labels = random_boxes(3), torch.rand(3, 2, 2) * SIZE, torch.tensor([[1, 0], [1, 1], [0, 0]])
    expected = decode_official(official, embeddings[:1], points=points, labels=labels, boxes=boxes)
    corners, corner_labels = as_points(boxes)
    for order in (1, -1):
        coords = torch.cat([points, corners][::order], dim=1)
        all_labels = torch.cat([labels.float(), corner_labels][::order], dim=1)
        assert_equal(sam.decode(embeddings[:1], first_image(3), coords, all_labels), expected)


@torch.no_grad()
def test_decode__three_masks_and_all_four_equal_official(sam, official, embeddings):
    boxes, points, mask_input = random_boxes(3), torch.rand(3, 1, 2) * SIZE, torch.randn(3, 1, SIZE // 4, SIZE // 4)
    corners, corner_labels = as_points(boxes)
    for (coords, labels, earlier), theirs in (
        ((points, torch.ones(3, 1), None), {"points": points, "labels": torch.ones(3, 1)}),
        ((corners, corner_labels, None), {"boxes": boxes}),
        ((corners, corner_labels, mask_input), {"boxes": boxes, "masks": mask_input}),
    ):
        one, three = (decode_official(official, embeddings[:1], **theirs, multimask=multi) for multi in (False, True))
        found = sam.decode(embeddings[:1], first_image(3), coords, labels, earlier, masks=THREE_MASKS)
        assert_equal(found, three)
        assert found.low_res_logits_NKHW.std(dim=1).mean() > 1e-2  # the three differ
        found = sam.decode(embeddings[:1], first_image(3), coords, labels, earlier, masks=ALL_MASKS)
        assert_equal(found, [torch.cat(parts, dim=1) for parts in zip(one, three, strict=True)])


@pytest.mark.parametrize("masks", [1, 3])
@torch.no_grad()
def test_decode__mask_input_equals_official(sam, official, embeddings, masks):
    boxes, mask_input = random_boxes(3), torch.randn(masks, 1, SIZE // 4, SIZE // 4)
    expected = decode_official(official, embeddings[:1], boxes=boxes, masks=mask_input)
    points, labels = as_points(boxes)
    assert_equal(sam.decode(embeddings[:1], first_image(3), points, labels, mask_input), expected)


@torch.no_grad()
def test_decode__mixed_prompts_of_several_images_equal_separate_official_calls(sam, official, embeddings):
    box, point, points, point_and_box = random_boxes(1), torch.rand(1, 1, 2), torch.rand(1, 3, 2), torch.rand(1, 1, 2)
    point, points, point_and_box = point * SIZE, points * SIZE, point_and_box * SIZE
    nothing = torch.full((1, 1, 2), 7777.0)
    coords = torch.cat(
        [
            torch.cat([box.view(1, 2, 2), nothing], dim=1),
            torch.cat([nothing, point, nothing], dim=1),
            points,
            torch.cat([box.view(1, 2, 2), point_and_box], dim=1),
        ]
    )
    labels = torch.tensor([[2.0, 3, -1], [-1, 1, -1], [1, 0, 1], [2, 3, 0]])
    image_index = torch.tensor([2, 0, 0, 1])
    separate = [
        decode_official(official, embeddings[2:], boxes=box),
        decode_official(official, embeddings[:1], points=point, labels=torch.tensor([[1]])),
        decode_official(official, embeddings[:1], points=points, labels=torch.tensor([[1, 0, 1]])),
        decode_official(official, embeddings[1:2], points=point_and_box, labels=torch.tensor([[0]]), boxes=box),
    ]
    expected = torch.cat([logits for logits, _ in separate]), torch.cat([iou for _, iou in separate])
    assert_equal(sam.decode(embeddings, image_index, coords, labels), expected, tolerance=1e-5)


@torch.no_grad()
def test_decode__filling_of_boxes_alone_changes_nothing(sam, embeddings):
    points, labels = as_points(random_boxes(2))
    plain = sam.decode(embeddings, first_image(2), points, labels)
    filled = sam.decode(
        embeddings,
        first_image(2),
        torch.cat([torch.full((2, 1, 2), torch.nan), points], dim=1),
        torch.cat([torch.full((2, 1), -1.0), labels], dim=1),
    )
    assert_equal(filled, (plain.low_res_logits_NKHW, plain.iou_NK), tolerance=1e-5)


@pytest.mark.parametrize("points", [0, 1, 2])
@pytest.mark.parametrize("with_mask", [False, True])
@torch.no_grad()
def test_decode__no_prompts(sam, embeddings, points, with_mask):
    mask_input = torch.zeros(0, 1, SIZE // 4, SIZE // 4) if with_mask else None
    decoded = sam.decode(embeddings, first_image(0), torch.zeros(0, points, 2), torch.zeros(0, points), mask_input)
    assert decoded.low_res_logits_NKHW.shape == (0, 1, SIZE // 4, SIZE // 4)
    assert decoded.iou_NK.shape == (0, 1)


def test_decode__mixed_prompts_have_finite_gradients(sam, embeddings):
    labels = torch.tensor([[2.0, 3], [1, -1]])
    decoded = sam.decode(embeddings, torch.tensor([0, 1]), torch.rand(2, 2, 2) * SIZE, labels)
    (decoded.low_res_logits_NKHW.square().mean() + decoded.iou_NK.sum()).backward()
    trained = [p.grad for p in sam.mask_decoder.parameters() if p.grad is not None]
    assert trained
    assert all(grad.isfinite().all() for grad in trained)
    sam.zero_grad(set_to_none=True)


@torch.no_grad()
def test_decode__one_exported_graph_serves_boxes_and_points(sam, embeddings):
    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.sam = sam

        def forward(self, embeddings, image_index, coords, labels):
            decoded = self.sam.decode(embeddings, image_index, coords, labels)
            return decoded.low_res_logits_NKHW, decoded.iou_NK

    prompts, points = torch.export.Dim("prompts"), torch.export.Dim("points")
    graph = torch.export.export(
        Decoder(),
        (embeddings[:1], first_image(2), torch.rand(2, 3, 2) * SIZE, torch.tensor([[1.0, 2, 3], [1, 0, -1]])),
        dynamic_shapes=(None, {0: prompts}, {0: prompts, 1: points}, {0: prompts, 1: points}),
    ).module()
    for labels in (torch.tensor([CORNERS] * 3), torch.ones(4, 4), torch.tensor([[2.0, 3, -1]] * 5), torch.zeros(0, 2)):
        inputs = embeddings[:1], first_image(len(labels)), torch.rand(*labels.shape, 2) * SIZE, labels
        assert_equal(sam.decode(*inputs), graph(*inputs), tolerance=1e-5)


@pytest.mark.parametrize(
    ("resized", "original"), [((128, 96), (500, 375)), ((64, 128), (40, 80)), ((128, 128), (128, 128))]
)
@torch.no_grad()
def test_upscale_logits__equals_official(official, resized, original):
    low_res = torch.randn(3, 1, SIZE // 4, SIZE // 4)
    expected = official.postprocess_masks(low_res, resized, original)
    found = upscale_logits(low_res, image_size=SIZE, resized_hw=resized, original_hw=original)
    assert found.shape == (3, *original)
    torch.testing.assert_close(found, expected[:, 0], atol=0, rtol=0)


def test_upscale_logits__no_masks():
    found = upscale_logits(torch.zeros(0, 1, 32, 32), image_size=128, resized_hw=(128, 64), original_hw=(50, 25))
    assert found.shape == (0, 50, 25)


@torch.no_grad()
def test_sam__equals_transformers():
    reference = randomize(build_transformers_sam(image_size=SIZE, **SMALL))
    share_frequencies(reference)
    model = build_sam(SIZE, **SMALL)
    model.load_state_dict(get_official_state(reference))
    images = torch.randn(2, 3, SIZE, SIZE)
    embeddings = model.encode_image(images)
    torch.testing.assert_close(embeddings, reference.get_image_embeddings(images), atol=1e-4, rtol=0)

    boxes = random_boxes(6).view(2, 3, 4)
    points, labels = torch.rand(2, 3, 2, 2) * SIZE, torch.tensor([1, 0]).expand(2, 3, 2)
    image_index = torch.arange(2).repeat_interleave(3)
    box_points, box_labels = as_points(boxes.view(6, 4))
    cases = (
        ({"input_boxes": boxes}, box_points, box_labels),
        ({"input_points": points, "input_labels": labels}, points.flatten(0, 1), labels.flatten(0, 1)),
        (
            {"input_points": points, "input_labels": labels, "input_boxes": boxes},
            torch.cat([points.flatten(0, 1), box_points], dim=1),
            torch.cat([labels.flatten(0, 1).float(), box_labels], dim=1),
        ),
    )
    for prompts, coords, point_labels in cases:
        expected = reference(image_embeddings=embeddings, multimask_output=False, **prompts)
        decoded = model.decode(embeddings, image_index, coords, point_labels)
        assert_equal(decoded, (expected.pred_masks.flatten(0, 1), expected.iou_scores.flatten(0, 1)))


@torch.no_grad()
def test_decode__at_1024_equals_official():
    official = randomize(build_official_sam(torch.nn.Identity(), 1024))
    model = Sam(torch.nn.Identity(), PromptEncoder(image_size=1024, embedding_size=64), MaskDecoder()).eval()
    model.load_state_dict(official.state_dict())
    embedding, boxes = torch.randn(1, 256, 64, 64), random_boxes(2, 1024)
    points, labels = torch.rand(2, 2, 2) * 1024, torch.tensor([[1, 0], [1, 1]])
    corners, corner_labels = as_points(boxes)
    by_box, by_points = (
        decode_official(official, embedding, boxes=boxes),
        decode_official(official, embedding, points=points, labels=labels),
    )
    decoded = model.decode(
        embedding, first_image(4), torch.cat([corners, points]), torch.cat([corner_labels, labels.float()])
    )
    assert_equal(decoded, (torch.cat([by_box[0], by_points[0]]), torch.cat([by_box[1], by_points[1]])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_encoding__computes_in_what_the_encoder_is_set_to_whatever_is_around(sam, dtype):
    seen, before = [], torch.backends.cudnn.allow_tf32
    hook = sam.image_encoder.patch_embed.proj.register_forward_hook(
        lambda *call: seen.append((call[2].dtype, torch.backends.cudnn.allow_tf32))
    )
    sam.encoder_dtype = dtype
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32), sam.encoding():
            sam.encode_image(torch.zeros(1, 3, SIZE, SIZE))
    finally:
        sam.encoder_dtype = torch.float32
        hook.remove()
    assert seen == [(dtype, dtype != torch.float32)]
    assert torch.backends.cudnn.allow_tf32 == before


def test_decode__in_bfloat16_sums_and_weights_stay_float32(sam, embeddings, monkeypatch):
    seen = []
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, *a, **k: seen.append(x.dtype) or softmax(x, *a, **k))
    corners = torch.sort(torch.rand(2, 2, 2) * SIZE, dim=1).values
    prompts = torch.zeros(2, dtype=torch.int64), corners, torch.tensor([CORNERS, CORNERS])
    with torch.no_grad():
        expected = sam.decode(embeddings[:1], *prompts).low_res_logits_NKHW
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16):
            found = sam.decode(embeddings[:1], *prompts).low_res_logits_NKHW.float()
    assert seen
    assert set(seen) == {torch.float32}
    assert (found - expected).abs().mean() < 0.02 * expected.abs().mean()
