"""The selective mixers of MambaMixer (Behrouz et al. 2024, arXiv 2403.19888), over tokens and over channels.

On sequences :class:`SelectiveTokenMixer` and :class:`SelectiveChannelMixer`, which :class:`MambaMixer` joins by learned
averages; on maps :class:`GridTokenMixer`, in one or more orders of the places, and :class:`GridChannelMixer`.
"""

from .grids import CWLinear, GridChannelMixer, GridScan, GridTokenMixer
from .sequences import MambaMixer, SelectiveChannelMixer, SelectiveTokenMixer

__all__ = [
    "CWLinear",
    "GridChannelMixer",
    "GridScan",
    "GridTokenMixer",
    "MambaMixer",
    "SelectiveChannelMixer",
    "SelectiveTokenMixer",
]
