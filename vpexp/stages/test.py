"""``stage=test``: measure a model on a split, beside two baselines."""

from pathlib import Path

from vpexp.console import say
from vpexp.inference.build import build_model
from vpexp.inference.checkpoint import load_checkpoint_model, read_checkpoint
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.models.sam import Sam
from vpexp.stages.assessment import assess, choose_device, record_unreadable, save_overlays, summarize, tell_result
from vpexp.stages.context import RunContext, StageResult, name_data
from vpexp.stages.data import load_configured_dataset


def run(context: RunContext) -> StageResult:
    """Test a checkpoint, or the model as it came."""
    cfg = context.cfg
    split = cfg.stage.split
    predictor = TorchPredictor(_load(context).to(choose_device(cfg)))
    dataset = load_configured_dataset(context, (split,))
    result = assess(
        context,
        predictor,
        dataset,
        split,
        description=f"testing on {split}",
        baselines=cfg.stage.controls,
        overlays=cfg.stage.overlays,
    )
    tell_result(f"{cfg.model.name} on {name_data(cfg)}/{split}", "model", result)
    save_overlays(context, result, split)
    metrics, details = summarize(result, split)
    record_unreadable(context, details)
    artifacts = {"overlays": context.folder.overlays} if result.kept else {}
    return StageResult(metrics, artifacts, context.folder.path, details)


def _load(context: RunContext) -> Sam:
    cfg = context.cfg
    if cfg.checkpoint is None:
        say(f"testing {cfg.model.name} as it came (model.weights={cfg.model.weights})")
        return build_model(cfg.model, seed=cfg.seed, cache_dir=context.cache_dir)
    checkpoint = read_checkpoint(Path(cfg.checkpoint))
    say(f"testing {checkpoint.path}")
    return load_checkpoint_model(checkpoint, cfg.model, seed=int(checkpoint.cfg.seed), cache_dir=context.cache_dir)
