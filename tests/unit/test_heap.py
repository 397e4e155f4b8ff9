"""Freed memory that stays in the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from foveate.measure.heap import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()

def step():
    rooms = [torch.ones(1_000_000) for _ in range(8)]  # 4 MB each
    del rooms

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    # glibc's own thresholds move with what the process has freed before, and differ from one start to the next.
    fixed = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    words = [sys.executable, "-c", FAULTS, how]
    ran = subprocess.run(words, env={**os.environ, **fixed}, check=True, stdout=subprocess.PIPE, text=True)
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_the_same_tensors_in_every_step_are_not_asked_for_again():
    assert faults("keep") * 10 < faults("default")
