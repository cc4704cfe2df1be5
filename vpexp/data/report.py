"""The table of what a data set holds and what was left out of it."""

from rich.table import Table

from vpexp.console import PlainTable, console, say
from vpexp.data.ledger import order_by_count
from vpexp.data.types import AnnotatedDataset, Split


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
