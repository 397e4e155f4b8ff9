"""HiP attention in a decoder of transformers, without training (arXiv 2406.09827).

Prompts are read as the paper reads them: all queries of a block decide together which keys it keeps. In decoding what a
search found serves the next steps too, until the next search. Published models keep their first layers dense: leave
those out with ``layers``::

    control = HipAttention(mask_k=512, layers=range(3, 32))
    with control.attached(model):
        model.generate(**prompt)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..errors import invalid
from ..ops.block_sparse_attention import BlockIndices
from ..ops.hip_attention import hip_attention, hip_mask
from ..ops.hip_search import HipSearch, Representative
from .decoder_call import DecoderCall
from .decoders import DecoderAttention


class HipAttention(DecoderAttention):
    """Causal attention to about ``mask_k`` keys that a tree search finds, to a window and to the first keys.

    Where all keys fit into these, answers are the model's own. Padding is neither searched nor read; a sample behind
    padding may keep other keys than alone, for blocks of keys count from the row's beginning.

    Args:
        mask_k: keys that a search keeps.
        block_size_q: neighbouring queries of a prompt that share what is kept.
        block_size_k: keys, or key groups, that are kept or dropped together.
        key_group: neighbouring keys that are scored by their smallest and largest entries; 1: by themselves.
        window: so many keys up to its own that a query reads in any case.
        num_sinks: first keys that every query reads.
        representative: the block that stands for a half of a node: in its "center", its "first" or one at "random".
        query_stride: of a block's queries one in so many decides.
        head_group: neighbouring heads that share a budget.
        dense_queries: first tokens of a prompt that read everything before them.
        refresh: decoding searches every so many steps.
        seed: of "random" representatives, which are then drawn alike in every call.
        layers, heads: see :class:`~foveate.control.decoders.DecoderAttention`.

    Raises:
        InvalidValue: an option that is not legal.
    """

    def __init__(
        self,
        *,
        mask_k: int = 512,
        block_size_q: int = 32,
        block_size_k: int = 2,
        key_group: int = 1,
        window: int = 128,
        num_sinks: int = 16,
        representative: Representative = "center",
        query_stride: int = 1,
        head_group: int = 1,
        dense_queries: int = 0,
        refresh: int = 8,
        seed: int = 0,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
    ) -> None:
        super().__init__(layers=layers, heads=heads)
        self.search = HipSearch(
            mask_k=mask_k,
            block_size_q=block_size_q,
            block_size_k=block_size_k,
            key_group=key_group,
            window=window,
            representative=representative,
            query_stride=query_stride,
            head_group=head_group,
        )
        for name, value, least in (
            ("num_sinks", num_sinks, 0),
            ("dense_queries", dense_queries, 0),
            ("refresh", refresh, 1),
        ):
            if not isinstance(value, int) or value < least:
                raise invalid(name, value, f"a whole number, {least} or more, is needed")
        self.num_sinks, self.dense_queries, self.refresh, self.seed = num_sinks, dense_queries, refresh, seed
        self.step = replace(self.search, rows="first", block_size_q=refresh, query_stride=1)

    def check(self, model: nn.Module) -> None:
        """Refuse head groups that do not divide the heads, and what the base refuses."""
        super().check(model)
        count = model.config.num_attention_heads if self.heads is None else len(self.heads)
        if count % self.search.head_group:
            raise invalid("head_group", self.search.head_group, f"it must divide the {count} heads that are changed")

    def attend(self, call: DecoderCall) -> Tensor:
        """A prompt, or a piece of one, searches by blocks; a single token reads what an earlier one found."""
        if call.q.shape[2] == 1 and call.cached:
            search, kept = self.step, self._kept(call)
        else:
            search, kept = self.search, None
            call.state.clear()  # the next token searches
        return hip_attention(
            call.q,
            call.k,
            call.v,
            search,
            num_sinks=self.num_sinks,
            dense_queries=self.dense_queries,
            scale=call.scale,
            mask=call.mask,
            kept=kept,
            generator=self._generator(call),
        )

    def _kept(self, call: DecoderCall) -> BlockIndices:
        """What this token reads: found by one of the last ``refresh`` tokens, itself among them."""
        state = call.state
        if state.get("age", self.refresh) >= self.refresh:
            found = hip_mask(call.q, call.k, self.step, mask=call.mask, generator=self._generator(call))
            state["indices"], state["counts"], state["age"] = (*(x.contiguous() for x in found), 0)
        state["age"] += 1
        return BlockIndices(state["indices"], state["counts"])

    def _generator(self, call: DecoderCall) -> torch.Generator | None:
        if self.search.representative != "random":
            return None
        return torch.Generator().manual_seed(self.seed + call.layer)
