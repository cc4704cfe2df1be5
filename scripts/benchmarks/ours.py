"""vpexp's own stages, held open at the places that are measured."""

from typing import Any, NoReturn

from omegaconf import DictConfig

from scripts.benchmarks.settings import Settings
from vpexp.config import compose_config
from vpexp.config.compose import quote_value
from vpexp.data.annotations import AnnotatedDataset
from vpexp.inference.torch_model import load_sam
from vpexp.models.sam import Sam
from vpexp.runfolder import create_run_folder
from vpexp.stages.shared.context import RunContext, StageResult
from vpexp.stages.shared.dataset import load_configured_dataset
from vpexp.stages.shared.training_loop import build_loop
from vpexp.tracking.mlflow_run import MlflowRun


def list_overrides(settings: Settings, *asked: str) -> list[str]:
    """List what a user would type to train on the same data with the same weights."""
    return [
        f"model={settings.model}",
        f"model.weights={quote_value(settings.weights)}",
        "data=coco",
        f"data.root={quote_value(settings.data)}",
        f"data.batch_size={settings.batch_size}",
        "data.num_workers=0",
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        f"trainer.threads={settings.threads}",
        "prompt.multimask=never",  # the plain side learns from the mask of token 0 alone
        "callbacks=none",
        "tracking=none",
        f"paths.output_dir={quote_value(settings.folder / 'outputs')}",
        f"paths.cache_dir={quote_value(settings.folder / 'cache')}",
        *asked,
    ]


def open_context(settings: Settings, *asked: str) -> RunContext:
    """Open a training run as ``vpexp.run.run`` does, without a tracker."""
    cfg = compose_config(list_overrides(settings, *asked))
    folder = create_run_folder(settings.folder / "outputs", "train")
    return RunContext(cfg, folder, MlflowRun(), _refuse)


def build_sam(context: RunContext) -> Sam:
    """Build the model that the run starts from."""
    return load_sam(context.settings.model, seed=context.cfg.seed, weights_dir=context.weights_dir)


def open_training(context: RunContext, sam: Sam) -> tuple[Any, AnnotatedDataset]:
    """Build what ``stage=train`` trains by: its module, data and trainer; and the data set."""
    dataset = load_configured_dataset(context, ("train", "val"))
    return build_loop(context, sam, dataset, ()), dataset


def _refuse(cfg: DictConfig, name: str) -> NoReturn:
    del cfg
    raise NotImplementedError(f"a benchmark runs no stage inside another one ({name}) -> {StageResult.__name__}")
