"""``stage=test``: measure a model on a split, beside two baselines."""

import time

from vpexp.config.saved import name_data
from vpexp.console import log_line
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.stages.shared.context import RunContext, StageResult
from vpexp.stages.shared.dataset import load_configured_dataset
from vpexp.stages.shared.embeddings import prepare_embeddings
from vpexp.stages.shared.evaluate import (
    assess,
    print_result,
    record_unreadable,
    save_image_table,
    save_overlays,
    summarize,
)
from vpexp.stages.shared.model import load_stage_model
from vpexp.stages.shared.run_report import predict_extremes, write_run_report

TIMED_IMAGES = 3  # encoded though their embeddings are stored: encoder_time is a number of this test


def run(context: RunContext) -> StageResult:
    """Test a checkpoint, an exported model, or the pretrained model."""
    cfg = context.cfg
    split = cfg.stage.split
    started = time.perf_counter()
    model = load_stage_model(context.cfg, "testing")
    load_time = time.perf_counter() - started
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
