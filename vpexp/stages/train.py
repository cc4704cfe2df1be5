"""``stage=train``: measure the model, fine-tune it, measure it again."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vpexp.config.saved import name_data
from vpexp.console import format_count, log_line
from vpexp.data.annotations import AnnotatedDataset
from vpexp.devices import choose_device
from vpexp.embeddings.cache import EmbeddingCache
from vpexp.evaluation.evaluator import EvaluationResult
from vpexp.evaluation.pixel_metrics import Gain, ImageSums, compute_gain
from vpexp.files import read_json, write_json
from vpexp.inference.torch_instances import InstanceParts
from vpexp.inference.torch_model import add_instances, apply_checkpoint, load_checkpoint_model, read_checkpoint
from vpexp.inference.torch_predictor import TorchPredictor
from vpexp.models.sam import Sam
from vpexp.runfolder import append_metrics
from vpexp.stages.shared.blend import Blending, build_blending
from vpexp.stages.shared.context import RunContext, StageResult
from vpexp.stages.shared.dataset import (
    build_tiling,
    check_photo,
    list_augmented_places,
    load_configured_dataset,
    report_tiles,
    tile_dataset,
)
from vpexp.stages.shared.distributed import fit_on_devices
from vpexp.stages.shared.embeddings import prepare_embeddings
from vpexp.stages.shared.evaluate import (
    assess,
    print_result,
    print_unreadable,
    record_unreadable,
    save_image_table,
    save_overlays,
    summarize,
)
from vpexp.stages.shared.instances import learn_instances, list_prompter_places, measure_start_instances
from vpexp.stages.shared.other_prompts import (
    Measures,
    build_controls,
    compare_measures,
    list_columns,
    measure_after,
    measure_before,
    report_controls,
    to_metrics,
)
from vpexp.stages.shared.registry import log_checkpoint
from vpexp.stages.shared.run_report import predict_extremes, write_run_report
from vpexp.stages.shared.training_loop import TrainingLoop, build_loop, build_start_model
from vpexp.training.callbacks import save_weights

AssessSplit = Callable[[str, str], EvaluationResult]
"""Evaluates the model as it is on a split; also takes the moment, for the progress bar."""

METRIC = "f1-score"
MONITOR = f"val/{METRIC}"  # by which the best epoch is chosen
START = "start"
FEW_IMAGES = 100


@dataclass(frozen=True, slots=True)
class Start:
    """What was measured before the training.

    Attributes:
        metrics: by split.
        image_sums: by split; empty where a run of an older version goes on.
    """

    metrics: Mapping[str, Mapping[str, float]]
    image_sums: Mapping[str, ImageSums] = field(default_factory=dict)

    def compare(self, split: str, result: EvaluationResult) -> Gain:
        """Compute what was gained on a split since."""
        before = self.metrics.get(split, {}).get(METRIC, float("nan"))
        return compute_gain(before, result.metrics[METRIC], self.image_sums.get(split, {}), result.image_sums)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which weights a training keeps.

    Attributes:
        gain: of the best epoch on val.
        epoch: the best, counted from 1.
        helped: whether the gain is above 0 and above ``min_delta``; also where there is nothing to compare with.
        checkpoint: what is kept.
        share: of the best epoch in the weights that competed with the start; below 1: the rest of them is the start's.
    """

    gain: Gain
    epoch: int
    helped: bool
    checkpoint: Path
    share: float = 1.0

    @property
    def kept(self) -> str:
        """``start``, ``epoch 3``, or ``0.7 of epoch 3``."""
        return START if self.checkpoint.stem == START else f"{self._mixture}epoch {self.epoch}"

    @property
    def _mixture(self) -> str:
        return "" if self.share == 1.0 else f"{self.share:g} of "

    def __str__(self) -> str:
        gain, noise = self.gain, ""
        if gain.is_noise:
            noise = ", within noise (less than two standard errors)"
        return (
            f"fine-tuning {'helped' if self.helped else 'did not help'}: {METRIC} on val before {gain.before:.4f}, "
            f"{self._mixture}best epoch ({self.epoch}) {gain.after:.4f}, difference {gain}{noise}; kept: {self.kept}"
        )

    def to_metrics(self) -> dict[str, float]:
        """List the best epoch's numbers, kept or not."""
        return {
            f"best_epoch/{MONITOR}": self.gain.after,
            f"best_epoch/{MONITOR}_gain": self.gain.difference,
            f"best_epoch/{MONITOR}_gain_se": self.gain.standard_error,
        }


def judge(
    context: RunContext, start: Start, best: Path, epoch: int, result: EvaluationResult, *, share: float = 1.0
) -> Verdict:
    """Compare the best epoch with the start, on val.

    Args:
        context: the run.
        start: what was measured before.
        best: the checkpoint of the best epoch, or of its mixture with the start.
        epoch: its number, counted from 1.
        result: of that on val.
        share: of the best epoch in it.
    """
    gain = start.compare("val", result)
    min_delta, kept = _get_min_delta(context.cfg), best
    # A run of an older version has not kept its start; a difference of NaN has nothing to compare with.
    if gain.difference <= min_delta and context.folder.start_checkpoint.is_file():
        kept = context.folder.start_checkpoint
    return Verdict(gain, epoch, not gain.difference <= max(min_delta, 0.0), kept, share)


def record_verdict(context: RunContext, verdict: Verdict) -> None:
    """Print what a training brought and what to try, and write it into ``run.json`` and MLflow."""
    log_line(str(verdict), style=None if verdict.helped and not verdict.gain.is_noise else "yellow")
    if not verdict.helped:
        log_line(f"what to try: {'; '.join(_advise(context, verdict))}")
    context.folder.update_run_json(
        best_checkpoint=str(verdict.checkpoint.resolve().relative_to(context.folder.path)),
        best_epoch=verdict.epoch,
        kept=verdict.kept,
        verdict=str(verdict),
    )
    context.tracker.set_tags({"kept": verdict.kept})
    if verdict.checkpoint != context.folder.start_checkpoint:
        context.folder.start_checkpoint.unlink(missing_ok=True)


def _get_min_delta(cfg: DictConfig) -> float:
    """Take what early stopping counts as a gain, where it looks at the same metric; else anything above 0."""
    stopping: Mapping[str, Any] = cfg.callbacks.get("early_stopping") or {}
    return float(stopping.get("min_delta") or 0.0) if stopping.get("monitor") == MONITOR else 0.0


def _advise(context: RunContext, verdict: Verdict) -> list[str]:
    cfg, record = context.cfg, context.folder.read_run_json()
    rate = cfg.optimizer.get("lr")
    advice = [f"{'a lower' if verdict.gain.difference < 0 else 'another'} optimizer.lr than {rate} (-m sweep=lr_batch)"]
    if verdict.epoch == record["epochs"] and verdict.gain.difference > 0:
        advice.append(f"more epochs than trainer.max_epochs={cfg.trainer.max_epochs}")
    if cfg.prompt.type == "box" and not cfg.prompt.test_jitter:
        advice.append("prompt=loose_box or prompt=point, unless the model will be given exact boxes")
    images = record["splits"]["train"]["images"]
    if images < FEW_IMAGES:
        advice.append(f"more images than {images} in train")
    return [*advice, "stage=data, which looks for faults in the data"]


def run(context: RunContext) -> StageResult:
    """Fine-tune, keep the better of the best epoch and the start, and print before and after."""
    cfg = context.cfg
    origin = build_start_model(context)
    sam = origin.sam
    splits = ("train", "val", "test") if cfg.stage.test else ("train", "val")
    whole, tiling = load_configured_dataset(context, splits, whole=True), build_tiling(context.settings.data)
    dataset = report_tiles(tile_dataset(whole, tiling), tiling) if tiling else whole
    loop = build_loop(context, sam, dataset, origin.brought)
    places = list_prompter_places(whole, tiling) if cfg.prompter.enabled else []
    augmented = list_augmented_places(context, dataset)
    controls = build_controls(context, whole, tiling)
    asked = controls.kept_places if controls else []
    learns = loop.module.tuning.first_block is not None
    if learns:
        log_line(_describe_weights(sam))
    needed = [*([] if learns else places), *asked, *augmented]
    encoder = prepare_embeddings(
        context,
        sam,
        dataset,
        list(dataset.splits),
        needed,
        learning=learns and sam.cut is None,
        precision=loop.precision,
    )
    check_photo(context, encoder.cache is not None)
    loop.use_embeddings(encoder.cache)
    assess_split = _build_assessment(context, sam, dataset, encoder.cache)

    def measure_controls(moment: str, *, background: bool = True) -> Measures:
        assert controls is not None
        return controls.measure(_build_predictor(cfg, sam), encoder.cache, moment, background=background)

    try:
        start = _read_start(context) if cfg.resume else _measure_start(context, loop, assess_split)
        before_prompts = measure_before(context, measure_controls if controls else None)
        before_found = {} if cfg.resume else _find_at_start(context, sam, origin.instances, whole, encoder.cache)
        fit_on_devices(context, loop, dataset, encoder)
        blending = build_blending(context, sam, before_prompts, measure_controls)
        verdict, after = _keep_better(context, loop, start, assess_split, blending)
        if learns:  # what was kept of images was on its way through another encoder
            sam = load_checkpoint_model(
                read_checkpoint(verdict.checkpoint), context.settings.model, weights_dir=context.weights_dir
            )
            encoder = encoder.follow(prepare_embeddings(context, sam, dataset, list(dataset.splits), [*places, *asked]))
            assess_split, after = _build_assessment(context, sam, dataset, encoder.cache), {}
        for split in _list_splits(cfg):
            after[split] = after.get(split) or assess_split(split, "after")
        after_prompts = measure_after(verdict.kept == START, before_prompts, measure_controls if controls else None)
        predictor = _build_predictor(cfg, sam)
        found = before_found | _learn_instances(
            context, predictor, whole, encoder.cache, verdict.checkpoint, start=origin.instances
        )
        extremes = predict_extremes(context, predictor, dataset, split, after[split], cache=encoder.cache)
    finally:
        encoder.record(context)
    result = _conclude(context, start, after, verdict, loop.module.unreadable)
    before = start.metrics.get(split)
    gains = compare_measures(before_prompts, after_prompts)
    findings = [str(verdict), *report_controls(gains)]
    more = list_columns(gains)
    report = write_run_report(context, split, after[split], extremes, findings=findings, before=before, more=more)
    return replace(result, metrics=result.metrics | found | to_metrics(gains), artifacts=result.artifacts | report)


def _build_predictor(cfg: DictConfig, sam: Sam) -> TorchPredictor:
    return TorchPredictor(sam.to(choose_device(cfg.trainer)).eval(), cfg.prompt.multimask)


def _describe_weights(sam: Sam) -> str:
    """Count what learns, of the image encoder and of all."""
    encoder, whole = (
        f"{sum(p.numel() for p in part.parameters() if p.requires_grad) / 1e6:.2f} of "
        f"{sum(p.numel() for p in part.parameters()) / 1e6:.2f} million"
        for part in (sam.image_encoder, sam)
    )
    return f"learns: {encoder} weights of the image encoder, {whole} of the model"


def _learn_instances(
    context: RunContext,
    predictor: TorchPredictor,
    dataset: AnnotatedDataset,
    cache: EmbeddingCache | None,
    checkpoint: Path,
    *,
    start: InstanceParts | None,
) -> dict[str, float]:
    """Learn to find and name objects without prompts, and write that into the checkpoint that is kept."""
    if not context.cfg.prompter.enabled:
        return {}
    tiling = build_tiling(context.settings.data)
    parts, metrics = learn_instances(context, predictor, dataset, tiling, cache, start=start)
    add_instances(checkpoint, parts)
    return metrics


def _find_at_start(
    context: RunContext, sam: Sam, parts: InstanceParts | None, dataset: AnnotatedDataset, cache: EmbeddingCache | None
) -> dict[str, float]:
    """Measure what the start checkpoint finds without prompts; a run that goes on has another decoder by now."""
    predictor = _build_predictor(context.cfg, sam)
    return measure_start_instances(predictor, parts, dataset, build_tiling(context.settings.data), cache)


def _list_splits(cfg: DictConfig) -> list[str]:
    """List what is evaluated: val, and test where it is asked for."""
    return list(dict.fromkeys(["val", cfg.stage.split] if cfg.stage.test else ["val"]))


def _build_assessment(
    context: RunContext, sam: Sam, dataset: AnnotatedDataset, cache: EmbeddingCache | None
) -> AssessSplit:
    """Build what evaluates the model; baselines and overlays only at the end, on the last of the splits."""
    cfg = context.cfg

    def assess_split(split: str, moment: str) -> EvaluationResult:
        final = moment == "after" and split == _list_splits(cfg)[-1]
        return assess(
            context,
            _build_predictor(cfg, sam),
            dataset,
            split,
            description=f"{moment}: {split}",
            baselines=final and cfg.stage.controls,
            overlays=cfg.stage.overlays if final else 0,
            cache=cache,
        )

    return assess_split


def _measure_start(context: RunContext, loop: TrainingLoop, assess_split: AssessSplit) -> Start:
    """Measure and keep the model as it comes to the training: the row of epoch 0."""
    folder = context.folder
    results = {split: assess_split(split, "before") for split in _list_splits(context.cfg)}
    start = Start(
        {split: result.metrics for split, result in results.items()},
        {split: result.image_sums for split, result in results.items()},
    )
    save_weights(loop.module, folder.start_checkpoint)
    write_json(folder.images_before, start.image_sums)
    folder.update_run_json(before=start.metrics)
    val = {f"val/{name}": value for name, value in start.metrics["val"].items()}
    context.tracker.log_epoch(val, 0)
    append_metrics(folder.metrics_csv, 0, val)
    log_line(f"before training: f1-score {start.metrics['val']['f1-score']:.4f} on val")
    return start


def _read_start(context: RunContext) -> Start:
    """Read what was measured when the run that goes on began."""
    log_line(f"going on with {context.cfg.resume}")
    recorded = context.folder.read_run_json().get("before") or {}
    metrics = {
        split: {name: math.nan if value is None else value for name, value in numbers.items()}
        for split, numbers in recorded.items()
    }
    sums = context.folder.images_before
    return Start(metrics, read_json(sums) if sums.is_file() else {})


def _keep_better(
    context: RunContext, loop: TrainingLoop, start: Start, assess_split: AssessSplit, blending: Blending
) -> tuple[Verdict, dict[str, EvaluationResult]]:
    """Load the better of the start and the best epoch, or its mixture with the start, and give what it reaches on val."""
    best, epoch = _find_best(context, loop)
    best, share = blending(best)
    apply_checkpoint(loop.module.sam, read_checkpoint(best))
    after = {"val": assess_split("val", "after")}
    verdict = judge(context, start, best, epoch, after["val"], share=share)
    if verdict.checkpoint != best:
        apply_checkpoint(loop.module.sam, read_checkpoint(verdict.checkpoint))
        after["val"] = assess_split("val", "after")
    return verdict, after


def _find_best(context: RunContext, loop: TrainingLoop) -> tuple[Path, int]:
    """Find the checkpoint of the best epoch, and its number, counted from 1."""
    cfg, trainer = context.cfg, loop.trainer
    if trainer.current_epoch < cfg.trainer.max_epochs:
        log_line(
            f"stopped early after {format_count(trainer.current_epoch, 'epoch')}: {cfg.trainer.max_epochs} were allowed"
        )
    last = context.folder.last_checkpoint
    if not last.is_file():  # trainer.extra.fast_dev_run keeps nothing
        save_weights(loop.module, last)
    best = Path(loop.best.best_model_path or last)
    context.folder.update_run_json(epochs=trainer.current_epoch)
    epoch = trainer.current_epoch if best == last else int(best.stem.rpartition("_")[2]) + 1
    log_line(f"best epoch: {epoch} of {trainer.current_epoch}, kept in {best}")
    return best, epoch


def _conclude(
    context: RunContext, start: Start, after: dict[str, EvaluationResult], verdict: Verdict, unreadable: dict[str, str]
) -> StageResult:
    cfg = context.cfg
    print_unreadable("train", unreadable)
    metrics = verdict.to_metrics()
    details: dict[str, Any] = {"train": {"unreadable": unreadable}, "kept": verdict.kept}
    tables: dict[str, Path] = {}
    for split, result in after.items():
        print_result(f"{cfg.model.name} on {name_data(cfg)}/{split}", "after", result, start.metrics.get(split))
        numbers, about = summarize(result, split)
        metrics |= numbers
        details |= about
        metrics |= {f"before/{split}/{name}": value for name, value in start.metrics.get(split, {}).items()}
        save_overlays(context, result, split)
        tables |= save_image_table(context, result, split)
        if split != "val" and verdict.helped:
            log_line(f"f1-score on {split}, which chose nothing: difference {start.compare(split, result)}")
    record_unreadable(context, details)
    record_verdict(context, verdict)
    log_checkpoint(context, verdict.checkpoint)
    artifacts = {"best_checkpoint": verdict.checkpoint, "last_checkpoint": context.folder.last_checkpoint}
    return StageResult(metrics, artifacts | tables, context.folder.path, details)
