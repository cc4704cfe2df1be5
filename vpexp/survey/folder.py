"""What lies in a folder that cannot be read as a data set: so that its user sees what vpexp saw."""

from collections import Counter
from pathlib import Path, PurePosixPath

from vpexp.data.folder import list_files
from vpexp.survey.types import DataTable

MOST_ROWS = 12
MOST_KINDS = 4
NO_SUFFIX = "without an ending"


def build_folder_table(root: Path) -> DataTable | None:
    """Build a table of the files of a folder: how many of each kind in each of its folders; None where there are none."""
    if not root.is_dir():
        return None
    kinds: dict[str, Counter[str]] = {}
    for name in list_files(root):
        path = PurePosixPath(name)
        kinds.setdefault(path.parent.as_posix(), Counter())[path.suffix.lower() or NO_SUFFIX] += 1
    if not kinds:
        return None
    rows = tuple((folder, _join_kinds(counts)) for folder, counts in list(kinds.items())[:MOST_ROWS])
    more = f"and {len(kinds) - MOST_ROWS} more folders" if len(kinds) > MOST_ROWS else ""
    return DataTable(f"What is in {root}", ("folder", "files"), rows, more)


def _join_kinds(counts: Counter[str]) -> str:
    named = [f"{count:,} {kind}" for kind, count in counts.most_common(MOST_KINDS)]
    rest = sum(counts.values()) - sum(count for _, count in counts.most_common(MOST_KINDS))
    return ", ".join(named + ([f"{rest:,} others"] if rest else []))
