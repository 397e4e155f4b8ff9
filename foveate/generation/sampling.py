"""From logits to the next token: temperature, top-k, top-p, min-p, and a penalty on repetition.

The order is fixed: penalty, temperature, then the filters, each on what the one before has left::

    l = penalised logits / temperature          p = softmax(l)
    top_k    keeps the k largest                (Fan et al. 2018, arXiv 1805.04833)
    top_p    keeps the fewest that sum to p     (nucleus; Holtzman et al. 2019, arXiv 1904.09751)
    min_p    keeps p_i >= min_p * max p         (Nguyen et al. 2024, arXiv 2407.01082)

and one of what is left is drawn. All are functions of logits ``(batch, vocabulary)`` without memory; every sample has
random numbers of its own, so that what is drawn for it does not depend on the others of its batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidValue, invalid

#: Tokens among which the nucleus is looked for first: to sort a large vocabulary takes longer than many a model.
_LIKELY = 512
#: Numbers drawn at once for a sample.
_BLOCK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: logits are divided by it: below 1 likely tokens become more likely; 0: always the likeliest.
        top_k: of the k likeliest only (and what is as likely as the last of them); None: of all.
        top_p: of the fewest that have this probability together, and what is as likely as the last of them; None: of
            all.
        min_p: of those that have at least this share of the likeliest one's probability; None: of all.
        repetition_penalty: positive logits of tokens that were read or written before are divided by it, negative ones
            multiplied (Keskar et al. 2019, arXiv 1909.05858, section 4.1); 1: none.

    Raises:
        InvalidValue: a value that is not legal.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise invalid("temperature", self.temperature, "it must be 0 (always the likeliest token) or more")
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise invalid("top_k", self.top_k, "a positive whole number is needed")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise invalid("top_p", self.top_p, "it must be above 0 and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise invalid("min_p", self.min_p, "it must be in 0 ... 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise invalid("repetition_penalty", self.repetition_penalty, "it must be positive; 1 is none")

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    @property
    def remembers(self) -> bool:
        """Whether it matters which tokens came before."""
        return self.repetition_penalty != 1

    def choose(self, logits: Tensor, uniform: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """The next token of each sample.

        Args:
            logits: ``(batch, vocabulary)``.
            uniform: float64 ``(batch,)`` in [0, 1), one number for each sample; not read if :attr:`greedy`.
            seen: bool ``(batch, vocabulary)``, tokens that came before; read if :attr:`remembers`.

        Returns:
            int64 ``(batch,)``.

        Raises:
            InvalidValue: logits that are no numbers.
        """
        if self.remembers and seen is not None:
            logits = penalise(logits, seen, self.repetition_penalty)
        if self.greedy:
            best, token = logits.max(-1)
            _check(best)
            return token
        logits = heat(logits, self.temperature)
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None and self.top_p < 1:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p:
            logits = keep_min_p(logits, self.min_p)
        if uniform is None:
            raise InvalidValue("uniform is missing: to draw a token a random number is needed for each sample.")
        return draw(logits, uniform)


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make what was seen less likely: positive logits over ``penalty``, negative ones times it."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def heat(logits: Tensor, temperature: float) -> Tensor:
    """Logits over a positive temperature, in float64 and up to a constant: the largest becomes 0, so none overflows."""
    logits = logits.double()
    return (logits - logits.amax(-1, keepdim=True)) / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """All but the k largest become -inf; those that equal the last of the k stay."""
    least = logits.topk(min(k, logits.shape[-1]), -1).values[..., -1:]
    return logits.masked_fill(logits < least, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """All but the fewest that have probability ``p`` together become -inf; those that equal the last of them stay."""
    probability, size = logits.softmax(-1), min(_LIKELY, logits.shape[-1])
    likely = probability.topk(size, -1).values
    while size < logits.shape[-1] and bool((likely.sum(-1) < p).any()):
        size = min(8 * size, logits.shape[-1])
        likely = probability.topk(size, -1).values
    last = (likely.cumsum(-1) - likely < p).sum(-1, keepdim=True) - 1
    return logits.masked_fill(probability < likely.gather(-1, last.clamp(min=0)), -math.inf)


def keep_min_p(logits: Tensor, least: float) -> Tensor:
    """What is less likely than ``least`` times the likeliest becomes -inf."""
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(least), -math.inf)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """One token of each sample by its probability, by inversion of the distribution function.

    Args:
        logits: ``(batch, vocabulary)``; -inf is never drawn.
        uniform: float64 ``(batch,)`` in [0, 1).

    Returns:
        int64 ``(batch,)``.

    Raises:
        InvalidValue: logits that are no numbers.
    """
    sums = logits.double().softmax(-1).cumsum(-1)
    total = sums[:, -1:]
    _check(total)
    return torch.searchsorted(sums, uniform[:, None] * total, right=True)[:, 0]  # below total, rounded or not


def _check(numbers: Tensor) -> None:
    if not bool(torch.isfinite(numbers).all()):
        raise InvalidValue("the model's logits are not finite: it did not learn, or its state has overflowed.")


class Draws:
    """Random numbers of several samples, each from a generator of its own.

    Args:
        seeds: one for each sample.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._numbers, self._next = torch.empty(len(seeds), 0, dtype=torch.float64), 0

    def next(self) -> Tensor:
        """float64 ``(samples,)`` in [0, 1)."""
        if self._next == self._numbers.shape[1]:
            rows = [torch.rand(_BLOCK, generator=g, dtype=torch.float64) for g in self._generators]
            self._numbers, self._next = torch.stack(rows), 0
        self._next += 1
        return self._numbers[:, self._next - 1]

    def keep(self, places: Sequence[int]) -> None:
        """Go on with these samples only."""
        self._generators = [self._generators[place] for place in places]
        self._numbers = self._numbers[list(places)]
