import subprocess
import sys

import pytest

MEASURE = """
import resource, sys
import torch
from vpexp.runtime import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None
for _ in range(10):
    torch.ones(16, 1024, 1024)  # 64 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(16, 1024, 1024)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def measure(how):
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, how], capture_output=True, text=True, check=True, timeout=120
    )
    kept, faults = found.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' allocators are left alone")
def test_keep_freed_memory__large_tensors_cost_no_page_faults():
    kept, faults = measure("keep")
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    _, usual = measure("usual")
    assert usual > 10 * 10_000  # 16,384 pages each
    assert faults < usual / 10
