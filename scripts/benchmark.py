#!/usr/bin/env python3
"""Compare vpexp with a plain implementation of the same work: ``.venv/bin/python scripts/benchmark.py --help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, in which scripts and tests are packages
    from scripts.benchmarks.command import main

    main()
