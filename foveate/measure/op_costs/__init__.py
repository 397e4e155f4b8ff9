"""What each op must do at least, by its sizes: one formula for each registered op.

A formula counts the definition, not a form: visible pairs of an attention, a rank-one update and a read of the state
for each token of a recurrence. A form that does more (a dense product under a causal mask, the products inside a chunk)
is then less efficient, which is what a place on the roofline should tell. Batch and heads multiply everything, so that
sizes are plain whole numbers; everything is in float32.
"""

from . import attention, sequence, sparse_attention
from .formulas import formula, known_ops, op_cost
from .pairs import visible_pairs

__all__ = ["attention", "formula", "known_ops", "op_cost", "sequence", "sparse_attention", "visible_pairs"]
