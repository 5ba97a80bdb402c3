"""Freed memory: a process that was told to keep it takes it again without asking the kernel."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from altgrad.training.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
mapped = faults()
told = keep_freed_memory()
faults()
print(int(told), mapped, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is told")
def test_memory_that_was_freed_is_taken_again_without_new_pages() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    told, mapped, kept = map(int, done.stdout.split())
    if not told:
        pytest.skip("this C library has no mallopt")
    assert mapped > 20  # 16,384 pages of 4 KiB, or 32 of 2 MiB
    assert kept < mapped / 10
