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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import invalid
from ..ops.block_sparse_attention import BlockIndices
from ..ops.hip_attention import hip_attention, hip_mask
from ..ops.hip_search import HipSearch, Representative
from ..registry import register
from .decoder_call import DecoderCall
from .decoders import DecoderAttention


@register("control", "hip_attention")
class HipAttention(DecoderAttention):
    """Causal attention to about ``mask_k`` keys that a tree search finds, to a window and to the first keys.

    Where all keys fit into these, answers are the model's own. Padding on either side changes nothing. After a prompt
    with padding, samples are read one after another; in compiled code they are not, and padding takes sinks' places.

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
        config: Any = model.config
        count = config.num_attention_heads if self.heads is None else len(self.heads)
        if count % self.search.head_group:
            raise invalid("head_group", self.search.head_group, f"it must divide the {count} heads that are changed")

    def attend(self, call: DecoderCall) -> Tensor:
        """A prompt, or a piece of one, searches by blocks; a single token reads what one of the last ones found."""
        if call.mask is None:
            o, kept = self._read(call, call.q, call.k, call.v, None, self._found(call))
        elif not call.cached:
            o, kept = self._read_packed(call, call.mask), None
        elif torch.compiler.is_compiling():
            o, kept = self._read(call, call.q, call.k, call.v, call.mask, self._found(call))
        else:
            return self._read_one_by_one(call, call.mask)
        self._keep(call, kept)
        return o

    def _found(self, call: DecoderCall) -> BlockIndices | None:
        """What one of the last ``refresh`` tokens found; None: this call has to search."""
        state = call.state
        if call.q.shape[2] > 1 or not call.cached or state.get("age", self.refresh) >= self.refresh:
            return None
        return BlockIndices(state["indices"], state["counts"])

    def _keep(self, call: DecoderCall, kept: BlockIndices | None) -> None:
        """Remember what a single token read; after a prompt, that the next token has to search."""
        state = call.state
        if kept is None:
            state.clear()
        elif "age" not in state or state["age"] >= self.refresh:
            state.update(indices=kept.indices.contiguous(), counts=kept.counts.contiguous(), age=1)
        else:
            state["age"] += 1

    def _read(
        self, call: DecoderCall, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kept: BlockIndices | None
    ) -> tuple[Tensor, BlockIndices | None]:
        """Attention, and what was kept for a single token."""
        single = q.shape[2] == 1 and call.cached > 0
        search, generator = self.step if single else self.search, self._generator(call)
        if single and kept is None:
            kept = hip_mask(q, k, search, mask=mask, generator=generator)
        o = hip_attention(
            q,
            k,
            v,
            search,
            num_sinks=self.num_sinks,
            dense_queries=self.dense_queries,
            scale=call.scale,
            mask=mask,
            kept=kept,
            generator=generator,
        )
        return o, kept

    def _read_packed(self, call: DecoderCall, mask: Tensor) -> Tensor:
        """A whole prompt with its padding moved behind the real tokens, where it comes too late."""
        order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)
        back = torch.argsort(order, dim=1)
        real = mask.gather(1, order)
        q, k, v = (_moved(x, order) for x in (call.q, call.k, call.v))
        return _moved(self._read(call, q, k, v, real, None)[0], back)

    def _read_one_by_one(self, call: DecoderCall, mask: Tensor) -> Tensor:
        """What follows a prompt with padding: each sample by itself, without its padding."""
        outputs, lists, found = [], [], self._found(call)
        for sample, real in enumerate(mask):
            one = slice(sample, sample + 1)
            new = real[call.cached :].nonzero()[:, 0]
            there = _stretch(real)
            q, k, v = call.q[one, :, new], call.k[one, :, there], call.v[one, :, there]
            o, kept = torch.zeros_like(call.q[one]), None
            if len(new):
                mine = None if found is None else BlockIndices(found.indices[one], found.counts[one])
                read, kept = self._read(call, q, k, v, None, mine)
                o = o.index_copy(2, new, read)
            outputs.append(o)
            lists.append(kept)
        single = call.q.shape[2] == 1
        self._keep(call, self._together(call, lists) if single else None)
        return torch.cat(outputs)

    def _together(self, call: DecoderCall, lists: list[BlockIndices | None]) -> BlockIndices:
        """Samples' lists at one width; nothing for a sample whose token is padding."""
        heads, most = call.q.shape[1], self.step.most
        none = torch.zeros(1, heads, 1, most, dtype=torch.int32, device=call.q.device)
        indices = [none if x is None else F.pad(x.indices, (0, most - x.indices.shape[-1])) for x in lists]
        return BlockIndices(torch.cat(indices), torch.cat([none[..., 0] if x is None else x.counts for x in lists]))

    def _generator(self, call: DecoderCall) -> torch.Generator | None:
        if self.search.representative != "random":
            return None
        return torch.Generator().manual_seed(self.seed + call.layer)


def _moved(x: Tensor, order: Tensor) -> Tensor:
    """``(batch, heads, tokens, width)`` with each sample's tokens in another order, int64 ``(batch, tokens)``."""
    return x.gather(2, order[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _stretch(real: Tensor) -> slice | Tensor:
    """Where a sample's real tokens stand: a slice, which copies nothing, if there is no padding between them."""
    places = real.nonzero()[:, 0]
    if not len(places) or int(places[-1]) - int(places[0]) + 1 > len(places):
        return places
    return slice(int(places[0]), int(places[-1]) + 1)
