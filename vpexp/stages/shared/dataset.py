"""The data set that a configuration names: read, reported in a table, and recorded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from vpexp.config.saved import name_data
from vpexp.console import PlainTable, console, say
from vpexp.data.annotations import AnnotatedDataset, Split
from vpexp.data.dataset import load_dataset
from vpexp.data.prompts import PromptRecipe
from vpexp.data.skipped import order_by_count
from vpexp.errors import ConfigError
from vpexp.stages.shared.context import RunContext
from vpexp.synthetic.dataset import write_synthetic_dataset


def load_configured_dataset(
    context: RunContext, splits: tuple[str, ...], *, keep_boxes: bool = False, keep_empty: bool = False
) -> AnnotatedDataset:
    """Read the splits that a stage needs; report what was found and skipped, on the terminal and in ``run.json``.

    Args:
        context: the run.
        splits: their names.
        keep_boxes: take objects that are annotated by a box alone too.
        keep_empty: take a split without objects as it is, instead of raising an error.
    """
    dataset = read_configured_dataset(context, splits, keep_boxes=keep_boxes, keep_empty=keep_empty)
    report_dataset(dataset)
    record = {name: _describe(dataset, name) for name in dataset.splits}
    data = {"format": dataset.format, "root": str(dataset.root), "categories": list(dataset.categories)}
    context.folder.update_run_json(data=data, splits=record)
    for name, description in record.items():
        profile = description | {"categories": data["categories"]}
        context.tracker.log_dataset(name_data(context.cfg), str(dataset.root), name, profile)
    return dataset


def read_configured_dataset(
    context: RunContext, splits: tuple[str, ...], *, keep_boxes: bool = False, keep_empty: bool = False
) -> AnnotatedDataset:
    """Read splits without a word; see ``load_configured_dataset``."""
    cfg = context.cfg.data
    format_, root = cfg.format, cfg.root
    if format_ == "synthetic":
        format_, root = "coco", _write_synthetic(context)
    if root is None:
        raise ConfigError(f"data.root is not set: say where the data set lies, data.root=<folder> (data={cfg.name})")
    dataset = load_dataset(
        format=format_,
        root=Path(root).expanduser(),
        train_split=cfg.train_split,
        val_split=cfg.val_split,
        test_split=cfg.test_split,
        val_fraction=cfg.val_fraction,
        seed=context.cfg.seed,
        instances=cfg.instances,
        strict=cfg.strict,
        keep_boxes=keep_boxes,
        splits=splits,
        cache_dir=context.cache_dir,
        keep_empty=keep_empty,
        crowd=cfg.crowd,
        allow_outside=cfg.allow_outside,
    )
    return _limit(dataset, cfg.limit_images)


def build_prompt_recipe(cfg: DictConfig) -> PromptRecipe:
    """Build the recipe of prompts from its section."""
    return PromptRecipe(**{str(key): value for key, value in cfg.items()})


def _write_synthetic(context: RunContext) -> Path:
    settings = OmegaConf.to_container(context.cfg.data.synthetic, resolve=True)
    assert isinstance(settings, dict)
    named: dict[str, Any] = {str(key): value for key, value in settings.items()}
    root = context.cfg.data.root or context.cache_dir / "synthetic"
    return write_synthetic_dataset(Path(root).expanduser(), **named)


def _limit(dataset: AnnotatedDataset, count: int | None) -> AnnotatedDataset:
    """Take the first images of each split, for a trial."""
    if count is None:
        return dataset
    splits = {name: replace(split, images=split.images[:count]) for name, split in dataset.splits.items()}
    notes = (*dataset.notes, f"data.limit_images={count}: the first {count} images of each split")
    return replace(dataset, splits=splits, notes=notes)


def _describe(dataset: AnnotatedDataset, name: str) -> dict[str, Any]:
    split = dataset.splits[name]
    return {
        "source": split.source,
        "images": len(split.images),
        "objects": split.object_count,
        "skipped": dict(split.skipped),
    }


def report_dataset(dataset: AnnotatedDataset) -> None:
    """Print the images and objects of each split, everything that was skipped by reason, and the notes."""
    count = len(dataset.categories)
    noun = "category" if count == 1 else "categories"
    say(f"{dataset.root} ({dataset.format}, {count} {noun})")
    console.print(build_table(dataset))
    for note in dataset.notes:
        say(f"  {note}")


def build_table(dataset: AnnotatedDataset) -> Table:
    """Build the table: one row a split, followed by one row a reason for skipping, with the first example."""
    table = PlainTable()
    table.add_column("split")
    table.add_column("images", justify="right")
    table.add_column("objects", justify="right")
    table.add_column("skipped", justify="right")
    table.add_column("reason and first example", overflow="fold")
    for split in dataset.splits.values():
        _add_rows(table, split)
    return table


def _add_rows(table: Table, split: Split) -> None:
    name = split.name if split.source == split.name else f"{split.name} ({split.source})"
    total = sum(split.skipped.values())
    table.add_row(name, str(len(split.images)), str(split.object_count), str(total), "")
    for reason, count in order_by_count(split.skipped):
        table.add_row("", "", "", str(count), f"{reason}: {split.examples[reason]}")
