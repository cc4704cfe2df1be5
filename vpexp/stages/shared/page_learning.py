"""How the labelling page learns: a training as the configuration describes it, on the data set of a round."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vpexp.config import save_config
from vpexp.config.schema import StageConfig
from vpexp.console import log_line
from vpexp.demo.learning import Learner, start_process
from vpexp.demo.ordering import Ordering
from vpexp.demo.rounds import OUTPUT
from vpexp.demo.session import LabelSession
from vpexp.demo.store import LabelStore
from vpexp.inference.exported import FORMATS
from vpexp.inference.predictor import Predictor
from vpexp.stages.shared.context import RunContext
from vpexp.stages.shared.model import load_stage_model

GIVES_WAY = 19
"""How much a round gives way to other processes: as much as can be."""
FROZEN = ("image_encoder", "prompt_encoder")
"""Parts that a round leaves as they are: embeddings that the page holds stay those of the model."""


def build_learner(
    context: RunContext, session: LabelSession, store: LabelStore, nice: int = GIVES_WAY
) -> Learner | None:
    """Build what learns while people label, and take up what was learnt when the page was served before; None: nothing does.

    Args:
        context: the run.
        session: takes models up.
        store: what is kept.
        nice: how much a round gives way to other processes, 0 to 19.
    """
    cfg = context.cfg
    if not cfg.demo.learn:
        return None
    if cfg.checkpoint is not None and Path(cfg.checkpoint).suffix in FORMATS:
        log_line("this model is exported, and does not learn while you label: give the .ckpt that it was made from")
        return None

    def load(checkpoint: Path | None) -> Predictor:
        asked = cfg.copy()
        asked.checkpoint = str(checkpoint) if checkpoint else cfg.checkpoint
        return load_stage_model(asked).predictor

    def start_round(folder: Path, root: Path, checkpoint: Path | None, number: int) -> "subprocess.Popen[bytes]":
        folder.mkdir(parents=True, exist_ok=True)
        save_config(_build_config(context, folder, root, checkpoint, number), folder / "config.yaml")
        command = [sys.executable, "-m", "vpexp.demo.worker", str(os.getpid()), str(nice)]
        command += ["-cp", str(folder), "-cn", "config"]
        return start_process(command, folder / OUTPUT)

    learner = Learner(
        session,
        store,
        start=f"{cfg.model.name} {cfg.model.weights} {cfg.checkpoint}",
        every=cfg.demo.learn_every,
        folder=context.folder.path.resolve() / "rounds",
        start_round=start_round,
        load=load,
    )
    predictor = learner.load_last()
    if predictor is not None:
        session.take_up(predictor)
        log_line(f"labelling with what was learnt here before: {learner.checkpoint}")
    return learner


def _build_config(context: RunContext, folder: Path, root: Path, checkpoint: Path | None, number: int) -> DictConfig:
    """Build the configuration of a round: the page's own, for a training on what is kept."""
    cfg = context.cfg.copy()
    cfg.stage = OmegaConf.structured(StageConfig(name="train", controls=False, overlays=0))
    cfg.checkpoint = str(checkpoint) if checkpoint else context.cfg.checkpoint
    cfg.source = cfg.prompts = None
    cfg.data.update(
        {
            "name": "labels",
            "format": "coco",
            "root": str(root.absolute()),
            "_target_": None,
            "options": {},
            "synthetic": None,
        }
    )
    cfg.data.update(
        {"train_split": "train", "val_split": "val", "test_split": "test", "limit_images": None, "num_workers": 0}
    )
    cfg.data.unannotated = "keep"  # of the images without masks only those are in it that are marked as done
    cfg.model.freeze, cfg.model.tune = list(dict.fromkeys([*cfg.model.freeze, *FROZEN])), "none"
    cfg.adapter.kind = "none"
    cfg.trainer.max_epochs = cfg.demo.learn_epochs
    cfg.trainer.logger = False
    cfg.trainer.threads = cfg.trainer.threads or max(1, (os.cpu_count() or 2) // 2)
    cfg.optimizer.lr = cfg.demo.learn_lr
    cfg.prompter.steps = cfg.demo.learn_steps
    cfg.prompter.evaluate_every = max(1, min(cfg.prompter.evaluate_every, cfg.demo.learn_steps // 4))
    if "progress" in cfg.callbacks:
        cfg.callbacks.progress = None
    cfg.tracking.parent = str(context.folder.path.resolve())
    cfg.tracking.run_name = f"round {number}"
    cfg.tracking.register = None
    cfg.tracking.uri = str(context.cfg.tracking.uri)  # before the folder that it may name changes
    cfg.paths.output_dir = str(folder.absolute())
    return cfg


@contextlib.contextmanager
def work_beside(ordering: Ordering, learner: Learner | None) -> Iterator[None]:
    """Order images and learn while the page is served."""
    ordering.start()
    if learner is not None:
        learner.run_thread()
    try:
        yield
    finally:
        ordering.end()
        if learner is not None:
            learner.end()
