"""``metrics.csv``: one row an epoch, columns joined as new metrics appear."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from vpexp.errors import CheckpointError
from vpexp.files import replacing


def append_metrics(path: Path, epoch: int, metrics: Mapping[str, float]) -> None:
    """Add the row of an epoch; a row of the same or a later epoch (from before a resume) is replaced.

    The file is written anew and moved into place, so that it is never half written. A number without meaning (NaN) is
    left empty.
    """
    rows = [row for row in read_metrics(path) if int(row["epoch"]) < epoch]
    numbers = {name: repr(float(value)) if math.isfinite(value) else "" for name, value in sorted(metrics.items())}
    rows.append({"epoch": str(epoch)} | numbers)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Read the rows; none where the file does not exist.

    Raises:
        CheckpointError: it is no table in UTF-8 whose rows begin with the number of an epoch.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, restkey="", restval=""))
        for row in rows:
            int(row["epoch"])
    except (KeyError, ValueError, csv.Error) as error:
        raise CheckpointError(f"{path} is no table of epochs as vpexp writes it: {error}") from error
    if any("" in row for row in rows):
        raise CheckpointError(f"{path} is no table of epochs as vpexp writes it: a row is longer than the head")
    return rows
