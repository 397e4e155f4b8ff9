"""N-grams with modified Kneser-Ney smoothing: how far counting goes, the baseline of language modelling.

The probability of a token after the last ``n - 1`` is a discounted count, and what discounting frees goes to the same
formula after one token less, down to the uniform distribution (Chen and Goodman, 1999, section 3; the interpolated form
of Kneser and Ney, 1995)::

    p(w | h) = (c(h w) - D(c(h w))) / c(h) + g(h) p(w | h without its oldest token)

For the longest histories ``c`` counts occurrences, for shorter ones the different tokens that stand before ``h w``
(occurrences, where ``h`` begins a document). ``D`` is one of three numbers by ``c`` = 1, 2 or more, from the counts of
counts of the same length; ``g(h)`` is the mass that they free.

Histories are a tree that is walked from the newest token back. Its nodes, and the tokens seen after each, are sorted
arrays of whole numbers: counting is sorting, looking up is a binary search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from ...errors import InvalidType, InvalidValue, invalid
from ...mixers.state import State, state
from ...registry import check_options, register
from ...spec import ModelSpec
from ..base import Model
from .tokens import check_size, check_tokens

_NOWHERE = -1
_NEVER = 2**63 - 1

Rule = Callable[[np.ndarray], tuple[float, float, float]]


@state
class HistoryState(State):
    """The last tokens, int64 ``(batch, order - 1)``, newest last; -1 where there was none yet."""

    tokens: Tensor


@register("model", "ngram")
class NGram(Model):
    """N-grams: discounted counts of what followed the last tokens. Fitted by counting, nothing is trained.

    Args:
        vocabulary: number of different tokens.
        order: n; the ``order - 1`` tokens before one are looked at.
        entries: histories, and pairs of a history and a token, to keep at most; the rarest histories go. Decides the
            memory: 24 bytes each.
        fit_tokens: tokens that are counted at most, the last ones.

    Raises:
        InvalidValue: a size below 1.
    """

    spec = ModelSpec(
        reads="tokens",
        tasks=("language",),
        streaming="exact",
        trains=False,
        baseline=True,
        compile=False,
        export=False,
        export_note="how many counts are looked up depends on the tokens, and a graph has fixed sizes",
    )
    recipe: ClassVar[str] = "foveate.tasks.fit.FitStream"
    edges: Tensor
    starts: Tensor
    rests: Tensor
    words: Tensor
    gains: Tensor

    def __init__(self, vocabulary: int, order: int = 6, entries: int = 1 << 20, fit_tokens: int = 1 << 22) -> None:
        super().__init__()
        sizes = {"vocabulary": vocabulary, "order": order, "entries": entries, "fit_tokens": fit_tokens}
        for option, size in sizes.items():
            check_size(option, size)
        if entries < vocabulary:
            raise invalid("entries", entries, f"it must be at least the vocabulary, {vocabulary}")
        self.vocabulary, self.order, self.entries, self.fit_tokens = vocabulary, order, entries, fit_tokens
        # Node 0 is the empty history; node i + 1 is reached by edge i, parent * vocabulary + token, in ascending order.
        self.register_buffer("edges", torch.full((entries,), _NEVER))
        self.register_buffer("starts", torch.zeros(entries + 2, dtype=torch.int32))  # of each node's words
        self.register_buffer("rests", torch.ones(entries + 1))  # g
        self.register_buffer("words", torch.zeros(entries, dtype=torch.int32))
        self.register_buffer("gains", torch.zeros(entries))  # the discounted share of each

    @classmethod
    def for_task(cls, info: Any, **options: Any) -> Self:
        """The baseline for ``info`` (vocabulary)."""
        settings = {**options, "vocabulary": info.vocabulary}
        check_options(cls.__name__, cls, settings)
        return cls(**settings)

    def fit(self, batch: Mapping[str, Tensor]) -> None:
        """Count, in place of what was counted before.

        Args:
            batch: tokens ``x`` and the ones that follow, ``y``, int64 ``(N, L)``; ``y`` below 0 is not counted; perhaps
                ``segments`` int64 ``(N, L)``, which histories do not cross.
        """
        x, y = (batch[name][:, -self.fit_tokens :].cpu().numpy() for name in ("x", "y"))
        segments = batch["segments"][:, -self.fit_tokens :].cpu().numpy() if "segments" in batch else None
        self.take(count(x, y, segments, self.vocabulary, self.order))

    def take(self, counts: Counts, rule: Rule | None = None) -> None:
        """Make the probabilities of counts, in place of what was there.

        Args:
            counts: of :func:`count`.
            rule: counts of one length of history to the discounts of 1, 2 and more; None: :func:`discounts`.
        """
        counts = counts.kept(self.entries)
        gains, rests = discounted(counts, rule or discounts)
        nodes, pairs = len(counts.edges), len(counts.words)
        self.edges.fill_(_NEVER)[:nodes] = torch.from_numpy(counts.edges)
        self.starts.fill_(pairs)[: nodes + 1] = torch.from_numpy(counts.starts[:-1].astype(np.int32))
        self.rests.fill_(1)[: nodes + 1] = torch.from_numpy(rests.astype(np.float32))
        self.words.fill_(0)[:pairs] = torch.from_numpy(counts.words.astype(np.int32))
        self.gains.fill_(0)[:pairs] = torch.from_numpy(gains.astype(np.float32))

    def forward(self, tokens: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Logarithms of the probabilities of the next token after each.

        Args:
            tokens: int64 ``(batch, length)``.
            mask: bool ``(batch, length)``, True = a real token; others stand in no history.
            segments: int64 ``(batch, length)``: histories do not cross from one number to the next.

        Returns:
            ``(batch, length, vocabulary)``, float32, or float64 where the model is.

        Raises:
            InvalidType, InvalidValue: fractions, another shape, or no tokens.
        """
        check_tokens(type(self).__name__, tokens, 2)
        return self._read(tokens, self.init_state(len(tokens), tokens.device), mask, segments)[0]

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> HistoryState:
        """The state before the first token; ``dtype`` changes nothing."""
        device = self.edges.device if device is None else device
        return HistoryState(torch.full((batch_size, self.order - 1), _NOWHERE, device=device))

    def prefill(
        self, x: Tensor, state: HistoryState, mask: Tensor | None = None, *, last_only: bool = False
    ) -> tuple[Tensor, HistoryState]:
        """Read token numbers ``(batch, length)``; returns ``(batch, length, vocabulary)`` and the new state.

        Args:
            last_only: answer for the last token alone, ``(batch, 1, vocabulary)``: what a text goes on from.
        """
        check_tokens(type(self).__name__, x, 2)
        return self._read(x, state, mask, None, last_only)

    def step(self, x_t: Tensor, state: HistoryState) -> tuple[Tensor, HistoryState]:
        """Read one token number per sample ``(batch,)``; returns ``(batch, vocabulary)`` and the new state."""
        check_tokens(type(self).__name__, x_t, 1)
        y, state = self._read(x_t[:, None], state, None, None)
        return y[:, 0], state

    def _read(
        self,
        x: Tensor,
        past: HistoryState,
        mask: Tensor | None,
        segments: Tensor | None,
        last_only: bool = False,
    ) -> tuple[Tensor, HistoryState]:
        deepest, name = self.order - 1, type(self).__name__
        if not isinstance(past, HistoryState):
            raise InvalidType(f"{name}: its state is a HistoryState, not a {type(past).__name__}.")
        if past.tokens.shape != (len(x), deepest):
            raise InvalidValue(
                f"{name}: tokens of the state has shape {tuple(past.tokens.shape)}; it must be ({len(x)}, {deepest})."
            )
        line = torch.cat([past.tokens, x], 1)
        owner = None if segments is None else torch.cat([past.tokens, segments], 1)
        place = torch.arange(deepest, line.shape[1], device=x.device).expand(len(x), -1)
        if mask is not None:
            # What is masked goes to the front of the line, so that real tokens stand side by side.
            real = torch.cat([past.tokens >= 0, mask], 1)
            order = real.long().argsort(dim=1, stable=True)
            line = line.where(real, _NOWHERE).gather(1, order)
            owner = None if owner is None else owner.gather(1, order)
            place = order.argsort(dim=1).gather(1, place)
        asked = slice(-1 if last_only else None, None)
        y = self._chances(line, place[:, asked], owner).log()
        y = y if mask is None else y.where(mask[:, asked, None], 0)
        return y, HistoryState(line[:, line.shape[1] - deepest :])

    def _chances(self, line: Tensor, place: Tensor, owner: Tensor | None) -> Tensor:
        """Probabilities ``(batch, length, vocabulary)`` after the places of a line of tokens and their documents."""
        shape, size = place.shape, self.vocabulary
        node = torch.zeros(shape, dtype=torch.int64, device=line.device).flatten()
        kind = torch.promote_types(self.gains.dtype, torch.float32)
        p = torch.full((node.numel(), size), 1 / size, device=line.device, dtype=kind)
        at = torch.arange(node.numel(), device=line.device)
        known = self.edges.to(line.device)
        self._add(p, at, node)
        for depth in range(self.order - 1):
            older = (place - depth).clamp_min(0)
            token = line.gather(1, older)
            alive = (place >= depth) & (token >= 0)
            if owner is not None:
                alive &= owner.gather(1, older) == owner.gather(1, place)
            alive = alive.flatten()[at]
            at, node = at[alive], node[alive]
            wanted = node * size + token.flatten()[at]
            found = torch.searchsorted(known, wanted).clamp_max(len(known) - 1)
            there = known[found] == wanted
            at, node = at[there], found[there] + 1
            self._add(p, at, node)
        return p.view(*shape, size)

    def _add(self, p: Tensor, at: Tensor, node: Tensor) -> None:
        """Take rows ``at`` of ``p`` from the next shorter history to ``node``."""
        begin, end = self.starts[node].long(), self.starts[node + 1].long()
        p[at] = p[at] * self.rests[node].to(p.dtype)[:, None]
        lengths = end - begin
        row = torch.repeat_interleave(lengths)
        pair = torch.arange(len(row), device=p.device) - (lengths.cumsum(0) - lengths)[row] + begin[row]
        where = (at[row], self.words[pair].long())
        p[where] = p[where] + self.gains[pair].to(p.dtype)


@register("model", "token_frequencies", system="ngram")
class TokenFrequencies(NGram):
    """Token frequencies: how often each token occurs, whatever stands before; n-grams of order 1.

    Args:
        vocabulary: number of different tokens.

    Raises:
        InvalidValue: a size below 1.
    """

    spec = ModelSpec(
        reads="tokens",
        tasks=("language",),
        streaming="exact",
        trains=False,
        baseline=True,
        compile=False,
        export=False,
        export_note="how many counts are looked up depends on the tokens, and a graph has fixed sizes",
    )

    def __init__(self, vocabulary: int) -> None:
        super().__init__(vocabulary, order=1, entries=vocabulary)


@dataclass(frozen=True, slots=True)
class Counts:
    """Histories, and what was seen after them.

    Attributes:
        edges: int64 ``(nodes - 1,)``, ascending: parent * vocabulary + token; node 0 is the empty history.
        depths, occurrences: int64 ``(nodes,)``: length of each history, and how often it stood before a token.
        starts: int64 ``(nodes + 1,)``: where the pairs of each node begin.
        words, counts: int64 ``(pairs,)``, ascending in node and word.
    """

    edges: np.ndarray
    depths: np.ndarray
    occurrences: np.ndarray
    starts: np.ndarray
    words: np.ndarray
    counts: np.ndarray
    vocabulary: int

    def kept(self, most: int) -> Counts:
        """The same with at most ``most`` histories and pairs: the rarest histories go, the longest of them first."""
        nodes = len(self.depths)
        sizes = np.diff(self.starts)
        if nodes - 1 <= most and len(self.words) <= most:
            return self
        # A history occurs at least as often as the longer ones that it ends: none loses the one it hangs on.
        order = np.lexsort((np.arange(nodes), self.depths, -self.occurrences))
        fits = (np.arange(nodes) <= most) & (sizes[order].cumsum() <= most)
        keep = np.zeros(nodes, bool)
        keep[order[fits]] = True
        number = keep.cumsum() - 1
        parents, tokens = np.divmod(self.edges[keep[1:]], self.vocabulary)
        pairs = np.repeat(keep, sizes)
        return Counts(
            number[parents] * self.vocabulary + tokens,
            self.depths[keep],
            self.occurrences[keep],
            np.append(0, sizes[keep].cumsum()),
            self.words[pairs],
            self.counts[pairs],
            self.vocabulary,
        )


def count(x: np.ndarray, y: np.ndarray, segments: np.ndarray | None, vocabulary: int, order: int) -> Counts:
    """Count what follows histories of up to ``order - 1`` tokens; arguments as in :meth:`NGram.fit`."""
    length = x.shape[1]
    begin = np.zeros(x.shape, bool)
    begin[:, 0] = True
    if segments is not None:
        begin[:, 1:] |= segments[:, 1:] != segments[:, :-1]
    since = np.arange(length) - np.maximum.accumulate(np.where(begin, np.arange(length), 0), axis=1)
    asked = np.flatnonzero(y >= 0)
    x, y, reach = x.reshape(-1).astype(np.int64), y.reshape(-1)[asked].astype(np.int64), since.reshape(-1)[asked] + 1
    # Depth by depth: the node that each target's history of this length is.
    node, base = np.zeros(len(y), np.int64), 1
    nodes, edges = [node], []
    occurrences, depths = [np.array([len(y)])], [np.zeros(1, np.int64)]
    for depth in range(1, order):
        deep = reach >= depth
        keys = node[deep] * vocabulary + x[asked[deep] - depth + 1]
        found, inverse, times = np.unique(keys, return_inverse=True, return_counts=True)
        node = np.full(len(y), _NOWHERE, np.int64)
        node[deep] = inverse + base
        base += len(found)
        nodes.append(node)
        edges.append(found)
        occurrences.append(times)
        depths.append(np.full(len(found), depth))
    none = np.zeros(0, np.int64)
    edge = np.concatenate([none, *edges])
    # From the longest histories to the shortest: occurrences, then different tokens before.
    pairs: list[np.ndarray] = []
    times_of: list[np.ndarray] = []
    longer = none
    for depth in reversed(range(order)):
        alone = (nodes[depth] >= 0) if depth == order - 1 else (reach == depth)
        parents, words = np.divmod(longer, vocabulary)
        keys = [edge[parents - 1] // vocabulary * vocabulary + words, (nodes[depth] * vocabulary + y)[alone]]
        longer, times = np.unique(np.concatenate(keys), return_counts=True)
        pairs.insert(0, longer)
        times_of.insert(0, times)
    owners, words = np.divmod(np.concatenate(pairs), vocabulary)
    starts = np.searchsorted(owners, np.arange(base + 1))
    return Counts(
        edge,
        np.concatenate(depths),
        np.concatenate(occurrences),
        starts,
        words,
        np.concatenate(times_of),
        vocabulary,
    )


def discounted(counts: Counts, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """What pairs and nodes weigh: float64 discounted shares ``(pairs,)`` and the freed mass ``(nodes,)``."""
    sizes = np.diff(counts.starts)
    depth = np.repeat(counts.depths, sizes)
    discount = np.zeros(len(counts.counts))
    for d in range(int(counts.depths.max()) + 1):
        at = depth == d
        discount[at] = np.array([0.0, *rule(counts.counts[at])])[counts.counts[at].clip(max=3)]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    total = np.bincount(owner, counts.counts, len(sizes))
    gains = (counts.counts - discount) / total[owner]
    return gains, 1 - np.bincount(owner, gains, len(sizes))


def discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """What is taken from counts of 1, 2 and more: Chen and Goodman's estimates from the counts of counts 1 ... 4.

    Where a count that is needed does not occur, 0.5 is taken.
    """
    n = np.bincount(counts.clip(max=5), minlength=6).astype(float)
    share = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.0
    found = []
    for i in (1, 2, 3):
        exact = i - (i + 1) * share * n[i + 1] / n[i] if n[1] and n[i] and n[i + 1] else 0.5
        found.append(min(max(exact, 0.05), i - 0.05))
    return found[0], found[1], found[2]
