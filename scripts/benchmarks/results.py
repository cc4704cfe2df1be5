"""What was measured: a table for people, JSON for tools."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from scripts.benchmarks.duel import BenchmarkError, Comparison

ABOUT = {
    "train_step": "2 images x 12 objects after the fill: read, encode (plain), decode, loss, backward, Adam",
    "train_step_peer": "the same against OTX (its own loss, transforms and Adam; data read in its process)",
    "tune_last_1": "the step where the encoder's last block learns too: from what is kept before it, against all of the encoder",
    "tune_last_2": "the same of its last two blocks",
    "tune_last_2_memory": "peak of a process of such steps",
    "first_epoch": "an epoch over images never seen, the filling of the cache included",
    "decoder": "12 boxes, forward + backward",
    "decoder_forward": "12 boxes, forward",
    "ir_decoder": "12 prompts in one call, against 12 calls of the original graph; masks at 2048 x 1365",
    "ir_decoder_low_res": "the same without enlarging the masks",
    "test_image": "file to metrics, torch against torch",
    "test_image_ir": "file to metrics, our IR against plain torch",
    "test_image_int8": "file to metrics, our INT8 against plain torch",
    "test_image_peer": "file to metrics, torch against OTX's torch",
    "sweep": "9 jobs from start to end; plain: one job times nine",
    "sweep_encoder_passes": "images through the encoder in the whole sweep",
    "memory": "peak of a process of training steps, batch 2 x 12 objects",
    "click": "a box sent to the labelling page's server, until its mask is there; the embedding is there before",
    "click_point": "the same of a point, which has three masks",
    "click_decoder": "of it, the decoder",
    "click_mask": "of it, enlarging the mask, compressing it, and waiting",
    "click_http": "of it, HTTP and JSON, both ends in this process",
    "click_beside_encoding": "the same while another image is encoded",
    "click_beside_search": "the same while 50 boxes are decoded in another image",
    "memory_500_objects": "the same, one image with 500 objects; plain would need tens of GB",
}


def read_results(path: Path) -> dict[str, Any]:
    """Read what a file holds of earlier measurements; nothing where there is none.

    Raises:
        BenchmarkError: it holds something else, or could not be written.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise BenchmarkError(f"--json {path} holds no results: {error}; delete it, or name another file") from error
    if not isinstance(content, dict):
        raise BenchmarkError(f"--json {path} holds no results; delete it, or name another file")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise BenchmarkError(f"--json {path} cannot be written")
    return content


def merge(path: Path, measured: Mapping[str, Comparison]) -> None:
    """Write comparisons by ``work/model`` into a JSON file; what it holds of others stays."""
    content = read_results(path)
    content |= {name: asdict(comparison) for name, comparison in measured.items()}
    path.write_text(json.dumps(content, indent=2) + "\n")


def build_table(measured: Mapping[str, Comparison], threads: int) -> Table:
    """Build the table that is printed; narrow enough for 80 columns."""
    models = ", ".join(sorted({key.partition("/")[2] for key in measured}))
    table = Table(title=f"{models}: medians of interleaved rounds, {threads} thread(s) a side")
    table.add_column("work")
    for name in ("ours", "plain", "plain / ours", "by CPU", "rounds"):
        table.add_column(name, justify="right", no_wrap=True)
    for key, row in measured.items():
        spread = f" ({row.low:.2f}-{row.high:.2f})" if row.low is not None and row.high is not None else ""
        table.add_row(
            key.partition("/")[0],
            _format(row.ours, row.unit),
            "-" if row.plain is None else _format(row.plain, row.unit),
            "-" if row.ratio is None else f"{row.ratio:.2f}{spread}",
            "-" if row.cpu_ratio is None else f"{row.cpu_ratio:.2f}",
            str(row.rounds),
        )
    return table


def describe(measured: Mapping[str, Comparison]) -> list[str]:
    """Say of each row what is counted, and how both sides were found to compute the same."""
    lines = []
    for key, row in measured.items():
        work = key.partition("/")[0]
        checked = f" [checked: {row.checked}]" if row.checked else ""
        lines.append(f"{work}: {ABOUT.get(work, '')}{checked}")
    return lines


def _format(value: float, unit: str) -> str:
    return f"{value:.0f} {unit}" if unit == "images" else f"{value:.3g} {unit}"
