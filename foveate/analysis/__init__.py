"""Understanding models: what their operators cost, over which lengths they attend, and which places of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .looking import Looked, look

__all__ = ["Looked", "look"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import looking

        return getattr(looking, name)
    raise AttributeError(f"module 'foveate.analysis' has no attribute {name!r}")
