"""Routing Transformer (Roy et al. 2021, arXiv 2003.05997): centroids, and layers of routed and local heads."""

from .online_kmeans import OnlineKMeans
from .routing_attention import RoutingAttention
from .strict_routing_attention import StrictRoutingAttention

__all__ = ["OnlineKMeans", "RoutingAttention", "StrictRoutingAttention"]
