"""Landmarks among the tokens of a decoder that knows nothing of them: in before it runs, out of what it answers.

See :class:`~foveate.control.landmark_attention.LandmarkAttention`. A landmark follows every ``block_size`` tokens of a
text, so slot ``i`` of the model's cache holds one if ``i % (block_size + 1) == block_size``.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidValue
from ..mixers.landmark_stream import seen_slots
from .attachment import Attachment
from .decoder_call import cache_of


def slots_of(tokens: int, block_size: int) -> int:
    """Slots of so many tokens, landmarks included."""
    return tokens + tokens // block_size


def new_slots(read: int, count: int, block_size: int) -> Tensor:
    """For the slots of ``count`` tokens after ``read`` others: which token each holds, -1 a landmark; int64."""
    slots = torch.arange(slots_of(read, block_size), slots_of(read + count, block_size))
    return torch.where(slots % (block_size + 1) == block_size, -1, slots - slots // (block_size + 1) - read)


class Insert:
    """Before the decoder: tokens become embeddings with landmarks between; mask and positions follow.

    Args:
        owner: has ``block_size`` and ``landmark``, the embedding ``(dim,)``.
        attachment: tells :class:`Remove` where landmarks are.
        decoder: the decoder, for the names of its arguments.
    """

    def __init__(self, owner: Any, attachment: Attachment, decoder: nn.Module) -> None:
        self.owner, self.attachment, self.name = owner, attachment, type(owner).__name__
        self.names = [n for n in inspect.signature(type(decoder).forward).parameters if n != "self"]

    def __call__(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        block, width = self.owner.block_size, self.owner.block_size + 1
        x, mask, cache = given.pop("inputs_embeds", None), given.get("attention_mask"), cache_of(given)
        if x is None:
            x = decoder.get_input_embeddings()(given["input_ids"])
        given.pop("input_ids", None)
        held = 0 if cache is None else int(cache.get_seq_length())
        read, count = held - held // width, x.shape[1]
        if slots_of(read, block) != held:
            raise InvalidValue(
                f"the cache is of another model: its {held} tokens do not end where {self.name} with "
                f"block_size={block} puts landmarks."
            )
        if isinstance(mask, dict) or (mask is not None and mask.ndim != 2):
            raise InvalidValue(f"{self.name} puts tokens in: give a 2-D attention mask, and no static cache.")
        if mask is not None and mask.shape[1] != read + count:
            raise InvalidValue(
                f"attention_mask has {mask.shape[1]} tokens; {read} in the cache and {count} new ones are "
                f"{read + count} for {self.name} (landmarks do not count; generate() begins with an empty cache)."
            )
        source = new_slots(read, count, block).to(x.device)
        landmark = self.owner.landmark.to(x.dtype).expand(x.shape[0], 1, -1)
        given["inputs_embeds"] = torch.cat([x, landmark], 1)[:, source]  # -1 is the landmark behind the last token
        given["position_ids"] = None
        if mask is not None:
            whole = new_slots(0, read + count, block).to(x.device)
            real = torch.cat([mask.bool(), mask.new_ones(mask.shape[0], 1, dtype=torch.bool)], 1)[:, whole]
            real = seen_slots(real, width)
            given["attention_mask"] = real
            given["position_ids"] = (real.cumsum(1) - 1).clamp(min=0)[:, -len(source) :]
        given.pop("foveate", None)  # what an earlier control noted of the call is no longer true
        self.attachment.store["landmarks"] = source < 0
        return (), given


class Remove:
    """After the decoder: what it answers at landmarks is left out."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment

    def __call__(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        landmarks: Tensor = self.attachment.store.pop("landmarks")
        tokens = (~landmarks).nonzero()[:, 0]

        def without(x: Any) -> Any:
            if isinstance(x, tuple):
                return tuple(without(part) for part in x)
            states = isinstance(x, Tensor) and x.ndim == 3 and x.shape[1] == len(landmarks)
            return x[:, tokens] if states else x

        if isinstance(output, tuple):
            return without(output)
        for name in ("last_hidden_state", "hidden_states"):
            if output.get(name) is not None:
                output[name] = without(output[name])
        return output
