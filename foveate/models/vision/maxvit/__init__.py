"""MaxViT (Tu et al. 2022, arXiv 2204.01697): convolutions, attention in blocks and over grids in every stage."""

from .blocks import MaxViTBlock, PartitionAttention
from .mbconv import MBConv
from .network import MaxViT

__all__ = ["MBConv", "MaxViT", "MaxViTBlock", "PartitionAttention"]
