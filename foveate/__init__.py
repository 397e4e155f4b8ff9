"""foveate: attention over time and space.

Published systems behind a few small contracts, and one main job: an honest leaderboard of them on your own data.
``import foveate`` is light; torch is loaded when something that needs it is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from .registry import cite, create, get_system, list_names, list_systems

if TYPE_CHECKING:
    from .checkpoint import load
    from .exporting import export
    from .models.official import load_official
    from .verification import verify

try:
    __version__ = version("foveate")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_LAZY = {
    "export": "foveate.exporting",
    "load": "foveate.checkpoint",
    "load_official": "foveate.models.official",
    "verify": "foveate.verification",
}

__all__ = [
    "__version__",
    "cite",
    "create",
    "export",
    "get_system",
    "list_names",
    "list_systems",
    "load",
    "load_official",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'foveate' has no attribute {name!r}")
