"""Keeps the C library from giving freed memory back to the system, which training would ask for again at once.

glibc returns a freed block of megabytes to the kernel, and the next step gets it back page by page, each page a fault
and a clearing. The same few tensors are made in every step, so that costs a fifth of the time of small models. The
price is a higher peak of the memory, by up to a third: what was freed does not always fit what comes next.
"""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Blocks up to this size come from the heap and stay in it: the largest that glibc allows.
LARGEST_BLOCK = 32 * 2**20
#: The heap shrinks when this much is free at its end.
KEPT = 2**30


def keep_freed_memory() -> bool:
    """Do so from now on in this process; False where the C library is another than glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGEST_BLOCK) and mallopt(_M_TRIM_THRESHOLD, KEPT))
