"""JSON files of long lists, one object a line, so that people and ``diff`` can read them."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_lines(path: Path, content: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write lists of objects as JSON with one object a line, beside its place, and move it there."""
    parts = []
    for name, values in content.items():
        lines = ",\n".join(json.dumps(value, allow_nan=False) for value in values)
        parts.append(f"{json.dumps(name)}: [\n{lines}\n]" if lines else f"{json.dumps(name)}: []")
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text("{" + ",\n".join(parts) + "}\n", encoding="ascii")
    draft.replace(path)
