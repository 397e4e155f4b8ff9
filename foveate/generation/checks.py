"""What a generation is given: prompts and states, looked at before anything is computed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidType, InvalidValue
from ..mixers.state import is_another, samples_of


def check_prompt(prompt: Sequence[int] | Tensor, number: int, start: int | None, model: nn.Module) -> list[int]:
    """A prompt as a list.

    Args:
        prompt: token numbers.
        number: of the prompt, for messages.
        start: what an empty one begins with; None: it is refused.
        model: that is to read it.

    Raises:
        InvalidType: something else than token numbers.
        InvalidValue: another shape, no tokens, or a token that the model does not have.
    """
    if isinstance(prompt, Tensor):
        if prompt.ndim != 1 or prompt.is_floating_point():
            raise InvalidValue(
                f"prompt {number} has shape {tuple(prompt.shape)} and type {prompt.dtype}: it must be int64 (length,)."
            )
        prompt = prompt.tolist()
    tokens = list(prompt)
    if any(not isinstance(token, int) for token in tokens):
        raise InvalidType(f"prompt {number} must be token numbers, not {type(tokens[0]).__name__}: encode texts first.")
    if not tokens:
        if start is None:
            raise InvalidValue(
                f"prompt {number} is empty: the model has no token that begins a document, so give it something to "
                f"go on from."
            )
        tokens = [start]
    vocabulary = getattr(model, "vocabulary", None)
    if vocabulary is not None and not 0 <= min(tokens) <= max(tokens) < vocabulary:
        wrong = next(token for token in tokens if not 0 <= token < vocabulary)
        raise InvalidValue(
            f"prompt {number} has the token {wrong}: the model's are 0 ... {vocabulary - 1}; its tokenizer is another."
        )
    return tokens


def check_state(stream: Any, model: nn.Module, state: Any, prompts: int) -> None:
    """Refuse a state of another kind of model, depth or batch; sizes are for its layers to refuse.

    Args:
        stream: what makes states for the model.
        model: the model itself.
        state: what was given.
        prompts: their number.

    Raises:
        InvalidValue: it does not fit.
    """
    own = stream.init_state(1, device="meta")
    if is_another(state, own):
        raise InvalidValue(
            f"the state is of another model: {type(model).__name__} needs one that began with its own init_state."
        )
    if samples_of(state) not in (1, prompts):
        raise InvalidValue(
            f"the state has {samples_of(state)} samples, and there are {prompts} prompts: it must have one, or one for "
            f"each."
        )


def device_of(model: nn.Module) -> torch.device:
    """Where a model is."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device
