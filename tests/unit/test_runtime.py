"""Libraries do not phone home."""

import os
import subprocess
import sys
import tempfile
import warnings

import pytest
from PIL import Image

from vpexp.runtime import find_thread_limit, quiet_libraries

TRIAL = """
import sys
from vpexp.runtime import quiet_libraries
quiet_libraries()
import openvino
import openvino.tools.ovc.telemetry_utils as ovc
print(ovc.tm.__name__, "openvino_telemetry.main" in sys.modules)

import io
from PIL import Image
file = io.BytesIO()
Image.new("P", (2, 2)).save(file, "PNG", transparency=bytes(2))
Image.open(file).convert("RGB")
"""


def test_quiet_libraries__openvino_sends_nothing():
    """OpenVINO sends usage data without asking, where its package for that can be imported."""
    result = subprocess.run([sys.executable, "-c", TRIAL], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "False"]
    assert "UserWarning" not in result.stderr  # Pillow's, of a palette with transparency


def test_quiet_libraries__what_the_configuration_states_is_no_warning():
    from torch.utils.data import DataLoader

    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        quiet_libraries()
        DataLoader([0], num_workers=999)
        Image._decompression_bomb_check((20_000, 15_000))
    assert caught == []


@pytest.mark.parametrize(("said", "limit"), [("3", 3), ("4,2", 4), ("", None), ("0", None), ("many", None)])
def test_find_thread_limit(monkeypatch, said, limit):
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert find_thread_limit() == limit


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user that the system does not know")
@pytest.mark.parametrize("home", [None, "/"])
def test_name_user__a_number_without_a_user_has_a_name_and_a_home(home):
    script = """
import getpass, os, sys, tempfile
from pathlib import Path
from vpexp.runtime import name_user
os.chmod(sys.argv[1], 0o777)
tempfile.tempdir = sys.argv[1]
os.setgid(54321)
os.setuid(54321)
for _ in range(2):  # the second time the home is there
    name_user()
    (Path.home() / "note").write_text("kept")
print(getpass.getuser(), Path("~").expanduser())
"""
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    environment |= {"HOME": home} if home else {}
    with tempfile.TemporaryDirectory() as folder:  # not pytest's, into which others do not get
        command = [sys.executable, "-c", script, folder]
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert said.stdout.split() == ["54321", f"{folder}/vpexp_home_54321"], said.stderr
