"""Whether a training helped: its best epoch against the model that it started from, which competes as epoch 0."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vpexp.console import say
from vpexp.evaluation.evaluator import EvaluationResult
from vpexp.evaluation.gain import Gain, ImageSums, compute_gain
from vpexp.stages.shared.context import RunContext

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
    """

    gain: Gain
    epoch: int
    helped: bool
    checkpoint: Path

    @property
    def kept(self) -> str:
        """``start``, or ``epoch 3``."""
        return START if self.checkpoint.stem == START else f"epoch {self.epoch}"

    def __str__(self) -> str:
        gain, noise = self.gain, ""
        if gain.is_noise:
            noise = ", within noise (less than two standard errors)"
        return (
            f"fine-tuning {'helped' if self.helped else 'did not help'}: {METRIC} on val before {gain.before:.4f}, "
            f"best epoch ({self.epoch}) {gain.after:.4f}, difference {gain}{noise}; kept: {self.kept}"
        )

    def to_metrics(self) -> dict[str, float]:
        """List the best epoch's numbers, kept or not."""
        return {
            f"best_epoch/{MONITOR}": self.gain.after,
            f"best_epoch/{MONITOR}_gain": self.gain.difference,
            f"best_epoch/{MONITOR}_gain_se": self.gain.standard_error,
        }


def judge(context: RunContext, start: Start, best: Path, epoch: int, result: EvaluationResult) -> Verdict:
    """Compare the best epoch with the start, on val.

    Args:
        context: the run.
        start: what was measured before.
        best: the checkpoint of the best epoch.
        epoch: its number, counted from 1.
        result: of the best epoch on val.
    """
    gain = start.compare("val", result)
    min_delta, kept = _get_min_delta(context.cfg), best
    # A run of an older version has not kept its start; a difference of NaN has nothing to compare with.
    if gain.difference <= min_delta and context.folder.start_checkpoint.is_file():
        kept = context.folder.start_checkpoint
    return Verdict(gain, epoch, not gain.difference <= max(min_delta, 0.0), kept)


def record_verdict(context: RunContext, verdict: Verdict) -> None:
    """Print what a training brought and what to try, and write it into ``run.json`` and MLflow."""
    say(str(verdict), style=None if verdict.helped and not verdict.gain.is_noise else "yellow")
    if not verdict.helped:
        say(f"what to try: {'; '.join(_advise(context, verdict))}")
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
