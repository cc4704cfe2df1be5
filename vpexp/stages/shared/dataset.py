"""The data set that a configuration names: read, reported in a table, and recorded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from vpexp.config.saved import name_data
from vpexp.config.schema import DataConfig
from vpexp.console import PlainTable, console, format_count, log_line
from vpexp.data.annotations import AnnotatedDataset, ImagePlace, Split, list_places, with_objects
from vpexp.data.dataset import load_dataset
from vpexp.data.skipped import order_by_count
from vpexp.data.tiles import TiledImages, Tiling
from vpexp.data.variants import PHOTO, list_variant_places, list_variants
from vpexp.errors import ConfigError
from vpexp.stages.shared.context import RunContext
from vpexp.synthetic.dataset import write_synthetic_dataset


def load_configured_dataset(
    context: RunContext,
    splits: tuple[str, ...],
    *,
    whole: bool = False,
    keep_boxes: bool = False,
    keep_empty: bool = False,
) -> AnnotatedDataset:
    """Read the splits that a stage needs; report what was found and skipped, on the terminal and in ``run.json``.

    Args:
        context: the run.
        splits: their names.
        whole: leave the images whole; otherwise they are cut into tiles where ``data.tile`` says so.
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
    tiling = build_tiling(context.settings.data)
    return dataset if whole or tiling is None else report_tiles(tile_dataset(dataset, tiling), tiling)


def report_tiles(dataset: AnnotatedDataset, tiling: Tiling) -> AnnotatedDataset:
    """Print how many tiles each split was cut into, and how many objects no tile holds; return the data set."""
    for split in dataset.splits.values():
        assert isinstance(split.images, TiledImages)
        line = f"  {split.name}: {format_count(len(split.images), 'tile')} of {tiling.side} px with objects"
        cut = split.images.cut_objects
        log_line(f"{line}; {cut} of {split.object_count} objects are cut: no tile holds all of them" if cut else line)
    return dataset


def build_tiling(settings: DataConfig) -> Tiling | None:
    """Build how images are cut; None where they are not."""
    return None if settings.tile is None else Tiling(settings.tile, settings.tile_overlap)


def tile_dataset(dataset: AnnotatedDataset, tiling: Tiling) -> AnnotatedDataset:
    """Cut the images of all splits; those without objects are left out."""
    splits = {
        name: replace(split, images=TiledImages.cut(with_objects(split.images), tiling))
        for name, split in dataset.splits.items()
    }
    return replace(dataset, splits=splits)


def list_augmented_places(context: RunContext, dataset: AnnotatedDataset) -> list[ImagePlace]:
    """List what ``data.augment`` makes of the train split beside the images as they are, and print how much that is."""
    variants = list_variants(context.settings.data.augment)
    places = list_variant_places(list_places(with_objects(dataset.splits["train"].images)), variants)
    if places:
        log_line(
            f"data.augment: {len(variants)} variants of each image of train, {len(places)} embeddings beside those of the images as they are"
        )
    return places


def check_photo(context: RunContext, is_cached: bool) -> None:
    """Refuse colours that change in each epoch where what an encoder makes of an image is kept.

    Raises:
        ConfigError: says what to do.
    """
    if is_cached and PHOTO in context.settings.data.augment:
        raise ConfigError(
            f"data.augment: {PHOTO} changes each image in each epoch, and the cache keeps what the encoder makes of it: set cache=none "
            "(the encoder then runs in each step), or take flip and turn alone"
        )


def read_configured_dataset(
    context: RunContext, splits: tuple[str, ...], *, keep_boxes: bool = False, keep_empty: bool = False
) -> AnnotatedDataset:
    """Read splits without a word, images whole; see ``load_configured_dataset``."""
    settings = context.settings.data
    if settings.format == "synthetic":
        assert settings.synthetic is not None
        root = Path(settings.root or context.cache_dir / "synthetic").expanduser()
        settings = replace(settings, format="coco", root=str(write_synthetic_dataset(root, settings.synthetic)))
    dataset = load_dataset(
        settings,
        seed=context.cfg.seed,
        splits=splits,
        keep_boxes=keep_boxes,
        keep_empty=keep_empty,
        cache_dir=context.cache_dir,
    )
    return _limit(dataset, settings.limit_images)


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
    log_line(f"{dataset.root} ({dataset.format}, {count} {noun})")
    console.print(build_table(dataset))
    for note in dataset.notes:
        log_line(f"  {note}")


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
