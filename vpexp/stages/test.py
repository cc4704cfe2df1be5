"""``stage=test``: measure a model on a split, beside two baselines."""

import time
from pathlib import Path

from vpexp.config.saved import name_data
from vpexp.console import say
from vpexp.inference.exported import find_exported, is_exported_reference
from vpexp.inference.load import open_exported
from vpexp.inference.predictor import Predictor
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.stages.shared.context import RunContext, StageResult
from vpexp.stages.shared.dataset import load_configured_dataset
from vpexp.stages.shared.embeddings import prepare_embeddings
from vpexp.stages.shared.evaluate import assess, choose_device, record_unreadable, save_overlays, summarize, tell_result
from vpexp.stages.shared.model import load_configured_model

FLOAT_BYTES = 4
TIMED_IMAGES = 3  # encoded though their embeddings are stored: encoder_time is a number of this test


def run(context: RunContext) -> StageResult:
    """Test a checkpoint, an exported model, or the model as it came."""
    cfg = context.cfg
    split = cfg.stage.split
    started = time.perf_counter()
    predictor, size_mb = _open_predictor(context)
    load_time = time.perf_counter() - started
    dataset = load_configured_dataset(context, (split,))
    encoder = None
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
    tell_result(f"{cfg.model.name} on {name_data(cfg)}/{split}", "model", result)
    say(f"{size_mb:.1f} MB, loaded in {load_time:.2f} s")
    save_overlays(context, result, split)
    if encoder:
        encoder.record(context)
    metrics, details = summarize(result, split)
    metrics |= {f"{split}/load_time": load_time, f"{split}/size_mb": size_mb}
    record_unreadable(context, details)
    artifacts = {"overlays": context.folder.overlays} if result.kept else {}
    return StageResult(metrics, artifacts, context.folder.path, details)


def _open_predictor(context: RunContext) -> tuple[Predictor, float]:
    """Open what is tested; also say its size in 10^6 bytes, of a torch model that of its float32 weights."""
    cfg = context.cfg
    if cfg.checkpoint is not None and is_exported_reference(Path(cfg.checkpoint)):
        model = find_exported(Path(cfg.checkpoint))
        say(f"testing {model.decoder}")
        return open_exported(model, threads=cfg.trainer.threads), model.size_mb
    sam, _ = load_configured_model(context, "testing")
    size_mb = FLOAT_BYTES * sum(parameter.numel() for parameter in sam.parameters()) / 1e6
    return TorchPredictor(sam.to(choose_device(cfg))), size_mb
