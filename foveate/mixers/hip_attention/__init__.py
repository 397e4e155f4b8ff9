"""HiP attention (arXiv 2406.09827) as layers.

Two forms differ in who decides what a block of queries keeps. :class:`HipPromptAttention` takes the largest score of
all its queries, as the paper does for prompts: later queries decide for earlier ones. :class:`HipAttention` lets the
first query of each block decide for those after it, as the paper does in decoding, where what was found serves the next
steps; so a text is read alike at once, in pieces and token by token.
"""

from .layer import HipAttention, HipState
from .prompt import HipPromptAttention

__all__ = ["HipAttention", "HipPromptAttention", "HipState"]
