"""The control of benchmarks/scenes.py: the network of ``psa_hrnet`` without polarized self-attention.

A file of its own, because a comparison goes on only as long as its contestants' files stay as they are.
"""

from __future__ import annotations

from typing import Any

from foveate.models.vision.polarized_self_attention.hrnet import PolarizedHRNet


class PlainHRNet(PolarizedHRNet):
    """The same branches and blocks, without gates."""

    @classmethod
    def small(cls, info: Any) -> dict[str, Any]:
        """As small as ``psa_hrnet``."""
        return {**super().small(info), "gates": "none"}
