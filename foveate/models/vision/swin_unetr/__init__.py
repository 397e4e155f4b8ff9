"""Swin UNETR (Hatamizadeh et al. 2021, arXiv 2201.01266): a transformer encoder and a convolutional decoder."""

from .encoder import PatchMerging, SwinEncoder, VolumeBlock
from .network import SwinUNETR

__all__ = ["PatchMerging", "SwinEncoder", "SwinUNETR", "VolumeBlock"]
