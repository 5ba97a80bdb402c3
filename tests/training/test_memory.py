"""Freed memory: a process that was told to keep it takes it again without asking the kernel."""

import subprocess
import sys

import pytest

from altgrad.training.memory import keep_freed_memory

FAULTS = """
import resource, torch
from altgrad.training.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(1 << 22)  # 16 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
told = keep_freed_memory()
faults()  # glibc 2.36 needs some pieces until the next one fits
print(int(told), given_back, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is told")
def test_memory_that_was_freed_is_taken_again_without_new_pages() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    told, given_back, kept = map(int, done.stdout.split())
    if not told:
        pytest.skip("this C library has no mallopt")
    assert given_back > 100  # 20 x 4,096 pages of 4 KiB, or 20 x 8 of 2 MiB
    assert kept < given_back / 4


def test_a_model_that_fills_the_machine_is_left_alone() -> None:
    assert not keep_freed_memory(parameters=10**12)
