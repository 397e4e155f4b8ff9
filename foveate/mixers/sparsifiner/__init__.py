"""Sparsifiner (Wei et al. 2023, arXiv 2303.13755): attention to the pairs that a cheap guess of its map picks.

:mod:`.predictor` guesses and picks; :mod:`.attention` computes what was picked.
"""

from .attention import SparsifinerAttention
from .predictor import ConnectivityPredictor, Links

__all__ = ["ConnectivityPredictor", "Links", "SparsifinerAttention"]
