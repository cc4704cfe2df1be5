"""Sizes and times, before and after."""

import pytest
from rich.console import Console

from vpexp.deploy.benchmark import Cost, build_gain_table, measure_costs
from vpexp.inference.graph_predictor import OpenvinoPredictor


def test_measure_costs__sizes_are_those_of_the_files(debug_ir, calibrate):
    predictor = OpenvinoPredictor(debug_ir, threads=1)
    first, second = measure_costs((debug_ir, debug_ir), (predictor, predictor), calibrate(64, 1).images[0])
    assert first.total_mb == pytest.approx(debug_ir.size_mb)
    assert (first.encoder_mb, first.decoder_mb) == (second.encoder_mb, second.decoder_mb)
    assert min(first.encoder_ms, first.decoder_ms, second.encoder_ms, second.decoder_ms) > 0


def test_build_gain_table__shows_both_and_the_ratio():
    table = build_gain_table(Cost(10, 20, 40, 80), Cost(5, 2.5, 20, 60), ("FP32", "INT8"), prompts=12)
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table)
    lines = capture.get().splitlines()
    both = next(line for line in lines if "both" in line)
    assert "30.00 MB" in both
    assert "7.50 MB" in both
    assert "0.25" in both
    assert any("decoder, 12 prompts" in line and "0.75" in line for line in lines)
