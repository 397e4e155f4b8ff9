"""HiP attention as the paper reads prompts."""

from __future__ import annotations

from typing import ClassVar

from ...ops.hip_search import Rows
from ...registry import register
from ...spec import MixerSpec, Order
from .layer import HipAttention


@register("mixer", "hip_prompt_attention", system="hip_attention")
class HipPromptAttention(HipAttention):
    """HiP attention as the paper reads prompts: all queries of a block decide together what it keeps.

    Later tokens decide for earlier ones, though their values never reach them: it is for prompts that are there, not
    to train language models. A stream reads a piece so, and steps read what the last block keeps until the next begins.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: must be True.
        num_kv_heads: heads of keys and values, which must divide ``num_heads``; None: as many.
        mask_k: keys that a search keeps.
        block_size_q: tokens that share what is kept; decoding searches every so many steps.
        block_size_k: keys, or key groups, that are kept or dropped together.
        key_group: neighbouring keys that are scored by their smallest and largest entries; 1: by themselves.
        window: tokens up to its own that a token reads in any case; at least as many as a block has are read.
        num_sinks: first tokens that every token reads.
        representative: the block of keys that stands for a half of a node: the one in its "center" or its "first".
        head_group: neighbouring heads that share a budget.
        dense_queries: first tokens that read everything before them; None: all do, which is softmax attention.
        dense_layers: first layers of a network whose tokens all do, as in the published models: a layer by itself does
            not know its place, a network's layers do (:meth:`for_layer`).
        position: "rope", rotary embedding (rotate-half convention), or "none".
        rope_base: of the rotary embedding.
        bias: the four projections have biases.

    Raises:
        InvalidValue: as :class:`HipAttention`.
    """

    spec = MixerSpec(
        ranks=(1,),
        causal="values",
        bidirectional=False,
        streaming="own",
        layout=True,
        segments=True,
        order=Order(flops=1.1, memory=1.0),
    )
    rows: ClassVar[Rows] = "block"
