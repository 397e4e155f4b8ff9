"""NAT, DiNAT and DiNAT_s (arXiv 2204.07143, 2209.15001): backbones of neighborhood attention."""

from .model import DiNAT

__all__ = ["DiNAT"]
