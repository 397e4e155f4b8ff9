"""SeerAttention (Gao et al. 2024, arXiv 2410.13276): gates that learn which blocks of an attention matter.

:mod:`.prompt` chooses for blocks of queries, as prompts are read; :mod:`.strict` for each token by itself, as
SeerAttention-R does (arXiv 2506.08889).
"""

from .gate import AttnGate, BlockGrid, Selection
from .prompt import SeerAttention
from .strict import StrictSeerAttention

__all__ = ["AttnGate", "BlockGrid", "SeerAttention", "Selection", "StrictSeerAttention"]
