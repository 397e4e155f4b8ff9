"""The attentions of BiFormer (Zhu et al. 2023, arXiv 2303.08810), for grids of any rank.

:class:`BiLevelRoutingAttention` cuts the map into regions, routes each region to the few most alike, and attends to
their tokens; :class:`RegionalRoutingAttention` is the release's later form of it. :class:`LePEAttention` is dense
attention, which stands in the last stage, where the map is small. All add a local convolution, the locally enhanced
position encoding.
"""

from .dense import LePEAttention
from .regional import RegionalRoutingAttention
from .regions import best_regions
from .routing import BiLevelRoutingAttention, Routing

__all__ = ["BiLevelRoutingAttention", "LePEAttention", "RegionalRoutingAttention", "Routing", "best_regions"]
