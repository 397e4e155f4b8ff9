"""The attentions of BiFormer (Zhu et al. 2023, arXiv 2303.08810), for grids of any rank.

:class:`BiLevelRoutingAttention` cuts the map into regions, routes each region to the few most alike, and attends to
their tokens. :class:`LePEAttention` is dense attention with a local convolution, which stands in the last stage, where
the map is small. Both add that convolution, the locally enhanced position encoding.
"""

from .dense import LePEAttention
from .routing import BiLevelRoutingAttention, Routing

__all__ = ["BiLevelRoutingAttention", "LePEAttention", "Routing"]
