"""Generation: prompts are read in chunks, then one token follows the other, with the state that the model carries.

Prompts of different lengths share a batch: where the model takes a mask they are padded in front, otherwise, or where
padding would move what the model puts between the tokens, those of one length go together. Either way each comes out as
it would alone: to float rounding in the logits, by random numbers of its own. A sample that ends leaves the batch.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ..errors import InvalidType, InvalidValue, invalid
from ..mixers.state import samples_of
from .checks import check_prompt, check_state, device_of
from .recompute import Recomputed
from .sampling import Draws, Sampling


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to one sample.

    Attributes:
        sample: number of its prompt.
        token: that was written; None where a stop token came, which is not part of the text.
        reason: why it ended ("length", "stop", "full"); None: it goes on.
    """

    sample: int
    token: int | None
    reason: str | None = None


@dataclass(slots=True)
class Result:
    """What was made of one prompt.

    Attributes:
        tokens: what was written, without the prompt and without a stop token.
        reason: why it ended: "length", "stop" (a token), "stopped" (by :meth:`Generation.stop`), "full" (the model's
            context), or "interrupted".
        state: if it was asked for, the model's state after all of it but the last token, which was not read.
    """

    tokens: list[int] = field(default_factory=list)
    reason: str = "interrupted"
    state: Any = None


@dataclass(slots=True)
class Speed:
    """Time that the model and the choice of tokens took, without loading, reading files and showing text.

    Attributes:
        prompt_tokens: read before the first token of each prompt.
        prefill_seconds: until that token, all prompts together.
        decoded: tokens after the first, of all prompts.
        decode_seconds: of these.
        state_bytes: the largest that the state of a batch was.
        state_samples: samples of that batch.
    """

    prompt_tokens: int = 0
    prefill_seconds: float = 0.0
    decoded: int = 0
    decode_seconds: float = 0.0
    state_bytes: int = 0
    state_samples: int = 0

    @property
    def prefill_rate(self) -> float | None:
        """Prompt tokens a second; None: none was read."""
        return self.prompt_tokens / self.prefill_seconds if self.prompt_tokens else None

    @property
    def decode_rate(self) -> float | None:
        """Written tokens a second, of all samples together; None: only first ones were."""
        return self.decoded / self.decode_seconds if self.decoded else None

    def as_json(self) -> dict[str, float | None]:
        """All of it, rates included."""
        rates = {"prefill_tokens_per_second": self.prefill_rate, "decode_tokens_per_second": self.decode_rate}
        return {**asdict(self), **rates}


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int] | Tensor],
    *,
    max_tokens: int,
    stop: Collection[int] = (),
    sampling: Sampling | None = None,
    seed: int = 0,
    start: int | None = None,
    prefill_chunk: int = 512,
    batch: int = 16,
    state: Any = None,
    keep_states: bool = False,
    recompute: bool = False,
) -> Generation:
    """Continue prompts; nothing runs before the first event is asked for.

    Args:
        model: of tokens, from int64 ``(batch, length)`` to logits ``(batch, length, vocabulary)``, with the streaming
            protocol (:mod:`foveate.mixers.state`). It works in eval mode and is given back as it came. If its
            ``prefill`` has an option ``last_only``, logits are made of the last token alone.
        prompts: token numbers, int64 ``(length,)`` each.
        max_tokens: most that are written after each.
        stop: tokens that end a text.
        sampling: how a token is chosen; None: drawn as the model says.
        seed: sample i is drawn by ``seed + i``.
        start: what an empty prompt begins with: the token between documents; None: an empty prompt is refused.
        prefill_chunk: prompt tokens that are read at once.
        batch: prompts at once.
        state: what was read before, of one sample (before all prompts) or one for each; None: nothing.
        keep_states: give each result its state.
        recompute: read everything again for every token, if the model does not stream. Quadratic, or worse.

    Returns:
        An iterator of :class:`Event`, with ``.finish()``, ``.results`` and ``.speed``.

    Raises:
        InvalidType: the model does not stream, and ``recompute`` is not given, or it says why it cannot write.
        InvalidValue: no prompt, an empty or too long one, a token outside of the vocabulary, an option that is not
            legal, or a state that does not fit.
    """
    for option, value in (("max_tokens", max_tokens), ("prefill_chunk", prefill_chunk), ("batch", batch)):
        if not isinstance(value, int) or value < 1:
            raise invalid(option, value, "a positive whole number is needed")
    if not isinstance(seed, int) or not 0 <= seed < 2**62:
        raise invalid("seed", seed, "a whole number of 0 or more is needed")
    if not prompts:
        raise InvalidValue("there is no prompt: give at least one.")
    read = [check_prompt(prompt, number, start, model) for number, prompt in enumerate(prompts)]
    limit = getattr(model, "longest", None)
    for number, prompt in enumerate(read):
        if limit is not None and len(prompt) > limit:
            raise InvalidValue(
                f"prompt {number} has {len(prompt):,} tokens, and {type(model).__name__} reads at most {limit:,}: "
                f"shorten it, or use a model without a bound."
            )
    stream = _stream(model, recompute)
    if state is not None:
        check_state(stream, model, state, len(read))
    return Generation(
        model,
        stream,
        read,
        max_tokens=max_tokens,
        stop=frozenset(stop),
        sampling=sampling or Sampling(),
        seed=seed,
        prefill_chunk=prefill_chunk,
        batch=batch,
        state=state,
        keep_states=keep_states,
        limit=limit,
    )


class Generation:
    """A generation at work: iterate over it, or call :meth:`finish`. Made by :func:`generate`.

    Attributes:
        results: one for each prompt, in their order; what is there so far.
        speed: what it took so far.
    """

    def __init__(
        self,
        model: nn.Module,
        stream: Any,
        prompts: list[list[int]],
        *,
        max_tokens: int,
        stop: frozenset[int],
        sampling: Sampling,
        seed: int,
        prefill_chunk: int,
        batch: int,
        state: Any,
        keep_states: bool,
        limit: int | None,
    ) -> None:
        self.results = [Result() for _ in prompts]
        self.speed = Speed()
        self._model, self._stream, self._prompts = model, stream, prompts
        self._max_tokens, self._stop_tokens, self._sampling, self._seed = max_tokens, stop, sampling, seed
        self._chunk, self._batch, self._limit = prefill_chunk, batch, limit
        self._before, self._keep_states = state, keep_states
        self._device = device_of(model)
        # Not asked of a user's own model that has no such option.
        asked = "last_only" in inspect.signature(stream.prefill).parameters
        self._last_only: dict[str, bool] = {"last_only": True} if asked else {}
        self._events = self._run()

    def __iter__(self) -> Iterator[Event]:
        return self._events

    def __next__(self) -> Event:
        return next(self._events)

    def finish(self) -> list[Result]:
        """Run to the end; returns :attr:`results`."""
        for _ in self._events:
            pass
        return self.results

    def stop(self, sample: int) -> None:
        """End a sample: what it wrote last is its last token (a stop text was found, nobody listens any more)."""
        self.results[sample].reason = "stopped"

    def _run(self) -> Iterator[Event]:
        training = self._model.training
        self._model.eval()
        try:
            for first in range(0, len(self._prompts), self._batch):
                numbers = range(first, min(first + self._batch, len(self._prompts)))
                for rows in self._together(list(numbers)):
                    yield from self._continue(rows)
        finally:
            self._model.train(training)

    def _together(self, numbers: list[int]) -> list[list[int]]:
        """Prompts that are read as one batch: all, if padding is nothing to the model, else those of one length."""
        if getattr(self._model, "pads", getattr(self._model, "masks", False)):
            return [numbers]
        groups: dict[int, list[int]] = {}
        for number in numbers:
            groups.setdefault(len(self._prompts[number]), []).append(number)
        return list(groups.values())

    def _continue(self, rows: list[int]) -> Iterator[Event]:
        draws = Draws([self._seed + row for row in rows])
        clock = time.perf_counter()
        logits, state = self._prefill(rows)
        seen = self._seen(rows, logits)
        tokens = self._choose(logits, draws, seen)
        written = tokens.tolist()
        self.speed.prefill_seconds += time.perf_counter() - clock
        self.speed.prompt_tokens += sum(len(self._prompts[row]) for row in rows)
        self._measure(state)
        while True:
            for row, token in zip(rows, written, strict=True):
                yield self._note(row, token)
            clock = time.perf_counter()
            left = [place for place, row in enumerate(rows) if self.results[row].reason == "interrupted"]
            if len(left) < len(rows):
                self._measure(state)
                if self._keep_states:
                    for place in set(range(len(rows))) - set(left):
                        self.results[rows[place]].state = _free(_rows(state, [place], self._device))
                if not left:
                    return
                rows = [rows[place] for place in left]
                state = _rows(state, left, self._device)
                tokens, seen = tokens[left], None if seen is None else seen[left]
                draws.keep(left)
            logits, state = self._step(tokens, state)
            tokens = self._choose(logits, draws, seen)
            written = tokens.tolist()
            self.speed.decode_seconds += time.perf_counter() - clock
            self.speed.decoded += len(rows)

    def _note(self, row: int, token: int) -> Event:
        """Put a token on record."""
        result = self.results[row]
        if token in self._stop_tokens:
            result.reason = "stop"
            return Event(row, None, "stop")
        result.tokens.append(token)
        read = len(self._prompts[row]) + len(result.tokens)
        if len(result.tokens) >= self._max_tokens:
            result.reason = "length"
        elif self._limit is not None and read > self._limit:  # the last token would have to be read
            result.reason = "full"
        else:
            return Event(row, token)
        return Event(row, token, result.reason)

    @torch.inference_mode()
    def _prefill(self, rows: list[int]) -> tuple[Tensor, Any]:
        """Logits ``(rows, vocabulary)`` after the prompts, and the state."""
        prompts = [self._prompts[row] for row in rows]
        longest = max(map(len, prompts))
        # In front, so that all samples have their last token in the last column.
        padded = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
        tokens = torch.tensor(padded, dtype=torch.int64, device=self._device)
        spare = torch.tensor([longest - len(prompt) for prompt in prompts], device=self._device)
        mask = torch.arange(longest, device=self._device) >= spare[:, None]
        if self._before is None:
            state = self._stream.init_state(len(rows), self._device)
        else:
            shared = samples_of(self._before) == 1
            state = _rows(self._before, [0] * len(rows) if shared else rows, self._device)
        logits = torch.empty(0)
        for begin in range(0, longest, self._chunk):
            piece = slice(begin, begin + self._chunk)
            real = None if begin >= int(spare.max()) else mask[:, piece]
            logits, state = self._stream.prefill(tokens[:, piece], state, real, **self._last_only)
        return logits[:, -1], state

    @torch.inference_mode()
    def _step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self._stream.step(tokens, state)

    @torch.inference_mode()
    def _choose(self, logits: Tensor, draws: Draws, seen: Tensor | None) -> Tensor:
        uniform = None if self._sampling.greedy else draws.next().to(logits.device)
        tokens = self._sampling.choose(logits, uniform, seen)
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)
        return tokens

    def _seen(self, rows: list[int], logits: Tensor) -> Tensor | None:
        """bool ``(rows, vocabulary)``: the tokens of each prompt; None: nobody asks."""
        if not self._sampling.remembers:
            return None
        seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        for place, row in enumerate(rows):
            seen[place, self._prompts[row]] = True
        return seen

    def _measure(self, state: Any) -> None:
        if state.nbytes > self.speed.state_bytes:
            self.speed.state_bytes, self.speed.state_samples = state.nbytes, samples_of(state)


def _stream(model: nn.Module, recompute: bool) -> Any:
    """What carries the text: the model itself, or what calls it again and again."""
    barred: str = getattr(model, "cannot_write", "")
    if barred:
        raise InvalidType(f"{type(model).__name__} cannot write text: {barred}.")
    init_state: Callable[[int], Any] | None = getattr(model, "init_state", None)
    try:
        if init_state is None:
            raise InvalidType(f"{type(model).__name__} has no streaming form.")
        init_state(1)
    except InvalidType as error:
        if recompute:
            return Recomputed(model)
        raise InvalidType(
            f"{error} It can read the whole text again for every token, slower the longer it gets: ask for it with "
            f"recompute (--recompute)."
        ) from error
    return model


@torch.inference_mode()
def _rows(state: Any, places: Sequence[int], device: torch.device) -> Any:
    return state.reorder(torch.tensor(places, dtype=torch.int64, device=device))


@torch.no_grad()
def _free(state: Any) -> Any:
    """The state in tensors that may be used outside of inference mode."""
    return _pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, state)
