"""Peak memory of a piece of work in a process of its own, where nothing else has raised the high-water mark."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

_START = """
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
{setup}
"""

_RESIDENT = """
from foveate.measure.meter import MemoryMeter
meter = MemoryMeter()
{work}
print(meter.peak_bytes())
"""

_ALLOCATED = """
from foveate.measure.allocated import peak_allocated_bytes
def work():
{work}
print(peak_allocated_bytes(work))
"""


def peak_bytes_of(work: str, setup: str = "") -> int:
    """Bytes of resident memory that ``work`` adds to a fresh process at its peak.

    Resident memory is what a machine must have, but it is no exact number: it holds what the allocator has not given
    back, and a system that evicts idle pages of libraries meanwhile makes the work look larger. Runs differ by a
    quarter; for growth with the size of the work use :func:`allocated_bytes_of`.

    Args:
        work: Python statements, measured; ``torch`` is imported, with one thread and seed 0.
        setup: Python statements that run before and are not measured (imports, inputs).

    Raises:
        RuntimeError: the process failed; its error output is in the message.
    """
    return _run(_START.format(setup=setup) + _RESIDENT.format(work=work))[0]


def allocated_bytes_of(works: Sequence[str], setup: str = "") -> list[int]:
    """Bytes of tensors that each of ``works`` holds at its peak: exact, and the same in every run.

    Args:
        works: Python statements, measured one after the other in one fresh process, as in :func:`peak_bytes_of`. Each
            is the body of a function: what it makes is freed at its end.
        setup: Python statements that run before and are not measured.

    Raises:
        RuntimeError: the process failed; its error output is in the message.
    """
    indented = ("\n".join(f"    {line}" for line in work.splitlines()) for work in works)
    return _run(_START.format(setup=setup) + "".join(_ALLOCATED.format(work=work) for work in indented))


def _run(program: str) -> list[int]:
    """The numbers that a program prints, one a line."""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"the measured process failed: {run.stderr.strip()}")
    return [int(line) for line in run.stdout.split()]
