"""``stage=test``: measure a model on a split, beside two baselines; ``prompt=auto``: by the objects that it finds itself."""

import time

from vpexp.config.saved import name_data
from vpexp.console import log_line
from vpexp.errors import CheckpointError, ConfigError
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.reporting.instances import AUTO
from vpexp.stages.shared.context import RunContext, StageResult
from vpexp.stages.shared.dataset import build_tiling, load_configured_dataset
from vpexp.stages.shared.embeddings import prepare_embeddings
from vpexp.stages.shared.evaluate import (
    assess,
    print_result,
    record_unreadable,
    save_image_table,
    save_overlays,
    summarize,
)
from vpexp.stages.shared.instance_report import print_instances, write_instances
from vpexp.stages.shared.instance_test import compare_ways
from vpexp.stages.shared.instances import ImageEmbeddings, list_prompter_places
from vpexp.stages.shared.model import StageModel, load_stage_model
from vpexp.stages.shared.run_report import predict_extremes, write_run_report

TIMED_IMAGES = 3  # encoded though their embeddings are stored: encoder_time is a number of this test


def run(context: RunContext) -> StageResult:
    """Test a checkpoint, an exported model, or the pretrained model."""
    cfg = context.cfg
    split = cfg.stage.split
    started = time.perf_counter()
    model = load_stage_model(context.cfg, "testing")
    load_time = time.perf_counter() - started
    if cfg.prompt.type == AUTO:
        return _test_without_prompts(context, model, load_time)
    dataset = load_configured_dataset(context, (split,))
    predictor, encoder = model.predictor, None
    if isinstance(predictor, TorchPredictor):  # exported models are tested whole
        encoder = prepare_embeddings(context, predictor.sam, dataset, (split,))
    result = assess(
        context,
        predictor,
        dataset,
        split,
        description=f"testing on {split}",
        baselines=cfg.stage.controls,
        overlays=cfg.stage.overlays,
        cache=encoder.cache if encoder else None,
        timed_images=TIMED_IMAGES,
    )
    print_result(f"{cfg.model.name} on {name_data(cfg)}/{split}", "model", result)
    log_line(f"{model.size_mb:.1f} MB, loaded in {load_time:.2f} s")
    save_overlays(context, result, split)
    artifacts = save_image_table(context, result, split)
    if result.kept:
        artifacts["overlays"] = context.folder.overlays
    if encoder:
        encoder.record(context)
    extremes = predict_extremes(context, predictor, dataset, split, result, cache=encoder.cache if encoder else None)
    artifacts |= write_run_report(context, split, result, extremes)
    metrics, details = summarize(result, split)
    metrics |= {f"{split}/load_time": load_time, f"{split}/size_mb": model.size_mb}
    record_unreadable(context, details)
    return StageResult(metrics, artifacts, context.folder.path, details)


def _test_without_prompts(context: RunContext, model: StageModel, load_time: float) -> StageResult:
    """Test how well a model finds and names objects; without a prompter the controls alone, where they are asked for."""
    cfg, split, predictor = context.cfg, context.cfg.stage.split, model.predictor
    auto = cfg.prompter.enabled
    if not auto and not cfg.stage.controls:
        raise ConfigError(
            "prompter=none leaves the grid and the annotated boxes to test, and stage.controls=false neither"
        )
    if auto and predictor.instances is None:
        raise CheckpointError(
            f"{f'checkpoint={cfg.checkpoint}' if cfg.checkpoint else 'the pretrained model'} has no prompter, and finds nothing "
            "without prompts: stage=train learns one (prompter=default), stage=export takes it along; prompter=none measures "
            "the grid alone"
        )
    dataset, tiling = load_configured_dataset(context, (split,), whole=True), build_tiling(context.settings.data)
    images, encoder = dataset.splits[split].images, None
    if isinstance(predictor, TorchPredictor):
        places = list_prompter_places(dataset, tiling, (split,))
        encoder = prepare_embeddings(context, predictor.sam, dataset, (), places)
    found = compare_ways(
        ImageEmbeddings(predictor, encoder.cache if encoder else None),
        images,
        dataset.categories,
        tiling,
        context.settings.predict,
        auto=auto,
        controls=cfg.stage.controls,
        overlays=cfg.stage.overlays,
    )
    passes = encoder.passes.images if encoder else found.passes
    print_instances(context, dataset.categories, found)
    log_line(f"encoder passes: {passes}, all columns together")
    log_line(f"{model.size_mb:.1f} MB, loaded in {load_time:.2f} s")
    if encoder:
        encoder.record(context)
    artifacts = write_instances(context, found)
    metrics = {f"{split}/load_time": load_time, f"{split}/size_mb": model.size_mb}
    for way, numbers in found.metrics.items():
        metrics |= {f"{split}/{way}/{name}": value for name, value in numbers.items()}
    for name, by_class in found.per_class.items():
        metrics |= {f"{split}/{AUTO}/{name}/{label}": value for label, value in by_class.items()}
    details = {
        "images": found.images,
        "objects": found.objects,
        "unreadable": dict(found.unreadable),
        "encoder_passes": passes,
        "categories": list(found.categories),
        "confusion": found.results[AUTO].confusion.tolist() if auto else [],
    }
    record_unreadable(context, {split: details})
    return StageResult(metrics, artifacts, context.folder.path, {split: details})
