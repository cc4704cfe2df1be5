"""Libraries do not phone home."""

import subprocess
import sys

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
