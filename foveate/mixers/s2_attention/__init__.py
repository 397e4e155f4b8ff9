"""S2-Attention (arXiv 2407.17678): heads that read different shards of the context, and a cache that keeps no more."""

from .attention import S2Attention
from .cache import S2State, ShardCache

__all__ = ["S2Attention", "S2State", "ShardCache"]
