"""PyAV, where it is installed, and what tells a whole video file from one that is cut off."""

from __future__ import annotations

from typing import Any

from .errors import missing_extra

#: A file with fewer frames than this share of what its header names is cut off.
WHOLE = 0.98


def need_pyav(purpose: str) -> Any:
    """The module of PyAV.

    Args:
        purpose: what it is needed for, as the error's sentence begins.

    Raises:
        MissingExtra: it is absent.
    """
    try:
        import av
    except ImportError as error:
        raise missing_extra("PyAV", "video", purpose) from error
    av.logging.set_level(None)  # what is wrong with a file is told in a sentence
    return av
