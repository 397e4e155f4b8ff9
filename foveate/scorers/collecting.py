"""Python's cyclic garbage collector, standing still while hundreds of thousands of objects are made.

Answers, verdicts and figures have no cycles; what is not needed any more goes at once. The collector would go through
all of them again and again, which takes as long as making them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Nothing is collected inside; as a decorator, while the function runs. Afterwards it is as it was."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
