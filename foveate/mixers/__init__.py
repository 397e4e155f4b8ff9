"""Token mixers: one mechanism per file, all under the contract of :class:`Mixer`."""

from ..spec import Grid, MixerSpec, Order
from .base import Fuser, Mixer, aux_losses
from .layout import TokenLayout
from .look import Look
from .state import State, Streaming, shared, state

__all__ = [
    "Fuser",
    "Grid",
    "Look",
    "Mixer",
    "MixerSpec",
    "Order",
    "State",
    "Streaming",
    "TokenLayout",
    "aux_losses",
    "shared",
    "state",
]
