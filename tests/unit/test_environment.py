"""Libraries do not phone home."""

import subprocess
import sys

import pytest

from vpexp.environment import find_thread_limit

TRIAL = """
import sys
from vpexp.environment import quiet_libraries
quiet_libraries()
import openvino
import openvino.tools.ovc.telemetry_utils as ovc
print(ovc.tm.__name__, "openvino_telemetry.main" in sys.modules)
"""


def test_quiet_libraries__openvino_sends_nothing():
    """OpenVINO sends usage data without asking, where its package for that can be imported."""
    result = subprocess.run([sys.executable, "-c", TRIAL], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "False"]


@pytest.mark.parametrize(("said", "limit"), [("3", 3), ("4,2", 4), ("", None), ("0", None), ("many", None)])
def test_find_thread_limit(monkeypatch, said, limit):
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert find_thread_limit() == limit
