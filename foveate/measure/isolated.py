"""Peak memory of a piece of work in a process of its own, where nothing else has raised the high-water mark."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
{setup}
from foveate.measure.meter import MemoryMeter
meter = MemoryMeter()
{work}
print(meter.peak_bytes())
"""


def peak_bytes_of(work: str, setup: str = "") -> int:
    """Bytes that ``work`` adds to a fresh process at its peak.

    Args:
        work: Python statements, measured; ``torch`` is imported, with one thread and seed 0.
        setup: Python statements that run before and are not measured (imports, inputs).

    Raises:
        RuntimeError: the process failed; its error output is in the message.
    """
    program = _PROGRAM.format(setup=setup, work=work)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"the measured process failed: {run.stderr.strip()}")
    return int(run.stdout.split()[-1])
