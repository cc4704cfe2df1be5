"""The cache in use: stored or encoded, a step and a test get the same bits."""

import numpy as np
import pytest
import torch

from tests.unit.data.test_batch import save_scene
from vpexp.config.schema import PromptConfig
from vpexp.data.batch import EvaluationSet, TrainingSet, collate_training
from vpexp.embeddings.cache import EmbeddingCache, EncoderPasses, _encode_together, encode_images
from vpexp.embeddings.store import EmbeddingStore, StoredEmbeddings, compute_image_key
from vpexp.evaluation.evaluator import evaluate
from vpexp.inference.torch_predictor import TorchPredictor

SIZE = 64


@pytest.fixture
def images(tmp_path):
    return [save_scene(tmp_path / f"{i}.png", width=60 + i) for i in range(4)]


@pytest.fixture(params=["float16", "float32", "int8"])
def precision(request):
    return request.param


@pytest.fixture
def cache(tmp_path, debug_sam, images, precision):
    """Of four images; nothing is stored yet."""
    shape = (debug_sam.embedding_channels, debug_sam.embedding_size, debug_sam.embedding_size)
    store = EmbeddingStore(tmp_path / "embeddings", "ab" * 16, shape, precision)
    keys = {(image.path, False): compute_image_key(image.path.read_bytes(), exif_transpose=False) for image in images}
    return EmbeddingCache(debug_sam, StoredEmbeddings(store, keys))


def build_batch(images, embeddings=None):
    recipe = PromptConfig()
    data = TrainingSet(images, image_size=SIZE, recipe=recipe, resolution="input", seed=0, embeddings=embeddings)
    return collate_training([data[0, index] for index in range(len(images))])


def fill(cache, images):
    for image in images:
        (embedding_CHW,) = encode_images(cache.sam, build_batch([image]).images_B3SS)
        cache.stored.store.write(cache.stored.find_key(image), embedding_CHW.numpy())


def test_gather__stored_or_not_the_same_bits(cache, images):
    plain = build_batch(images)
    encoded = encode_images(cache.sam, plain.images_B3SS)
    rounded = torch.stack([torch.from_numpy(cache.stored.store.round(one.numpy())).float() for one in encoded])
    fill(cache, images[1:3])
    batch = build_batch(images, cache.stored)
    assert batch.stored_places == [1, 2]
    assert torch.equal(batch.images_B3SS, plain.images_B3SS[[0, 3]])
    assert torch.equal(cache.gather(batch), rounded)
    assert cache.encoded == 2
    after = build_batch(images, cache.stored)  # what was missing has been put into the store
    assert after.stored_places == [0, 1, 2, 3]
    assert len(after.images_B3SS) == 0
    assert torch.equal(cache.gather(after), rounded)
    assert cache.encoded == 2
    for name in ("coords_NP2", "labels_NP", "image_index_N", "resized_B2"):
        assert torch.equal(getattr(after, name), getattr(plain, name)), name
    for found, expected in zip(after.targets, plain.targets, strict=True):
        assert torch.equal(found.bits_NX, expected.bits_NX)


def test_gather__a_damaged_entry_is_encoded_and_replaced(cache, images):
    fill(cache, images)
    path = cache.stored.store.find_path(cache.stored.find_key(images[0]))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    batch = build_batch(images, cache.stored)
    assert batch.stored_places == [1, 2, 3]
    cache.gather(batch)
    assert cache.encoded == 1
    assert path.read_bytes() == whole


def test_gather__images_that_have_no_room_are_encoded_each_time(cache, images):
    del cache.stored.keys[images[0].path, False]
    for _ in range(2):
        cache.gather(build_batch(images[:1], cache.stored))
    assert cache.encoded == 2
    assert not list(cache.stored.store.root.rglob("*.emb"))


def test_gather__a_folder_that_cannot_be_written_is_said_once(cache, images, capsys):
    cache.stored.store.root.write_text("not a folder")
    for _ in range(2):
        cache.gather(build_batch(images[:2], cache.stored))
    said = capsys.readouterr().out
    assert said.count("cannot be written") == 1
    assert str(cache.stored.store.root) in said
    assert not cache.writable


def test_encode_images__whatever_the_mixed_precision(debug_sam, images):
    images_B3SS = build_batch(images).images_B3SS
    expected = encode_images(debug_sam, images_B3SS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encode_images(debug_sam, images_B3SS), expected)
    assert not expected.requires_grad


def test_encoder_passes__counts_images_not_conversions(debug_sam, images):
    passes = EncoderPasses(debug_sam)
    images_B3SS = build_batch(images).images_B3SS
    encode_images(debug_sam, images_B3SS)
    debug_sam.encode_image(images_B3SS[:1])
    torch.jit.trace(debug_sam.image_encoder, images_B3SS[:1], check_trace=False)
    assert passes.images == 5


def run_evaluation(cache, images, *, stored=True, read_first=0, **options):
    embeddings = cache.stored if stored else None
    samples = EvaluationSet(images, PromptConfig(), embeddings=embeddings, read_first=read_first)
    remember = cache.remember if stored else None
    return evaluate(
        TorchPredictor(cache.sam),
        [samples[i] for i in range(len(images))],
        ("berry",),
        total=len(images),
        remember=remember,
        **options,
    )


def get_numbers(result):
    numbers = {name: value for name, value in result.metrics.items() if "time" not in name}
    return numbers, result.baselines


def test_evaluate__stored_or_not_the_same_numbers(cache, images):
    first = run_evaluation(cache, images, baselines=True)  # fills the store
    assert cache.encoded == 4
    passes = EncoderPasses(cache.sam)
    second = run_evaluation(cache, images, baselines=True, keep=(0,))
    assert passes.images == 0
    np.testing.assert_equal(get_numbers(second), get_numbers(first))
    assert second.baselines["wrong_image"]
    assert np.isnan(second.metrics["encoder_time"])
    assert second.metrics["iter_time"] > 0
    assert second.kept[0].sample.image_HW3 is None
    plain = run_evaluation(cache, images, stored=False)
    assert plain.metrics["f1-score"] == pytest.approx(first.metrics["f1-score"], abs=1e-2)


def test_evaluate__some_images_are_encoded_for_the_time_it_takes(cache, images):
    fill(cache, images)
    passes = EncoderPasses(cache.sam)
    stored, timed = run_evaluation(cache, images), run_evaluation(cache, images, read_first=3)
    assert passes.images == 3
    assert timed.metrics["encoder_time"] > 0
    assert timed.metrics["iter_time"] > timed.metrics["encoder_time"]
    np.testing.assert_equal(get_numbers(timed), get_numbers(stored))


def test_evaluation_set__damaged_pixels_do_not_matter_once_stored_but_are_noticed_when_read(cache, images):
    fill(cache, images[:2])
    samples = EvaluationSet(images, PromptConfig(), embeddings=cache.stored, read_first=1)
    for image in images:
        image.path.write_bytes(b"no image")
    kinds = [type(samples[i]).__name__ for i in range(4)]
    assert kinds == ["UnreadableImage", "EvaluationSample", "UnreadableImage", "UnreadableImage"]


def test_encode_together__in_parts_where_memory_is_short(debug_sam, images, monkeypatch):
    images_B3SS = build_batch(images).images_B3SS
    expected, encode, tried = debug_sam.encode_image(images_B3SS), debug_sam.encode_image, []

    def encode_one(images_M3SS):
        tried.append(len(images_M3SS))
        if len(images_M3SS) > 1:
            raise torch.OutOfMemoryError
        return encode(images_M3SS)

    monkeypatch.setattr(debug_sam, "encode_image", encode_one)
    torch.testing.assert_close(_encode_together(debug_sam, images_B3SS), expected)
    assert tried == [4, 2, 1, 1, 2, 1, 1]
