"""Landmark attention for a decoder the user has: it learns one token, and then fetches what it needs from a long text.

Mohtashami and Jaggi, "Random-Access Infinite Context Length for Transformers" (NeurIPS 2023, arXiv 2305.16300), whose
main experiment fine-tunes a LLaMA. A landmark is put after every ``block_size`` tokens and taken out of the answer
(:mod:`foveate.control.landmark_tokens`); attention is the two-level softmax of
:func:`~foveate.ops.landmark_attention.landmark_attention`, by which landmarks learn to stand for their blocks. With
``top_k`` a text is then read as in section 3.2 (:mod:`foveate.mixers.landmark_stream`): chunk by chunk, each token
fetching its best blocks, at positions that stay within what was trained.

:func:`fine_tune_landmarks` trains it, the landmark alone or with the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn

from ..errors import InvalidValue, invalid
from ..mixers.kv_cache import KVCache
from ..mixers.landmark_cache import LandmarkCache, LandmarkState
from ..mixers.landmark_stream import LandmarkStream, Selection, seen_slots
from ..ops.landmark_attention import landmark_attention, landmark_grouped_softmax
from ..registry import register
from .attachment import Attachment
from .base import Adapter
from .decoder_call import DecoderCall
from .decoders import DecoderAttention, decoder_of
from .landmark_tokens import Insert, Remove


@dataclass(frozen=True)
class _Stream(LandmarkStream):
    """A stream whose keys are turned as the user's model turns them."""

    call: DecoderCall | None = None

    def _turn(self, x: Tensor, positions: Tensor) -> Tensor:
        return x if self.call is None else self.call.turned(x, positions[None])


@register("control", "landmark_attention")
class LandmarkAttention(DecoderAttention, Adapter):
    """Landmarks between the tokens of a decoder, and attention that goes by them.

    Texts, labels, logits and ``generate()`` are as ever: landmarks do not count outside. Blocks count slots, padding
    too. ``generate()`` begins with an empty cache that grows (not a static one).

    Args:
        dim: width of the model's embeddings.
        block_size: tokens between landmarks.
        top_k: blocks that a token fetches for each head while the model is in evaluation; None: all blocks are read at
            their places, as always in training.
        chunk: with ``top_k``, tokens of a call that are read together: they see each other, and fetch from what was
            closed before. None: every call is a chunk.
        selection: with ``top_k``, see the mixer of the same name.
        freeze_model: whether the model's own parameters rest while it is attached.
        layers, heads: where, see :class:`~foveate.control.decoders.DecoderAttention`; elsewhere landmarks are tokens
            like others.

    Attributes:
        landmark: the embedding, ``(dim,)``.

    Raises:
        InvalidValue: an illegal option; when attached: a model of another width; when called: a mask that is not 2-D or
            of another length than the text, a cache filled without landmarks.
    """

    def __init__(
        self,
        dim: int,
        *,
        block_size: int = 50,
        top_k: int | None = None,
        chunk: int | None = 250,
        selection: Selection = "per_token_and_head",
        freeze_model: bool = True,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
    ) -> None:
        super().__init__(layers=layers, heads=heads)
        for name, value, none in (
            ("dim", dim, False),
            ("block_size", block_size, False),
            ("top_k", top_k, True),
            ("chunk", chunk, True),
        ):
            if not (none and value is None) and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise invalid(name, value, f"it must be a positive whole number{', or None' if none else ''}")
        if selection not in get_args(Selection):
            raise invalid("selection", selection, f"it must be one of {', '.join(get_args(Selection))}")
        self.block_size, self.top_k, self.chunk = block_size, top_k, chunk
        self.selection: Selection = selection
        self.freeze_model = freeze_model
        self.landmark = nn.Parameter(torch.randn(dim) * 0.02)

    @classmethod
    def for_model(cls, model_or_pipeline: Any, **options: Any) -> Self:
        """Of the model's width; the landmark begins as the mean of its tokens' embeddings."""
        weight = model_or_pipeline.get_input_embeddings().weight
        adapter = cls(weight.shape[1], **options)
        with torch.no_grad():
            adapter.landmark.copy_(weight.float().mean(0))
        return adapter.to(weight.device)

    def check(self, model: nn.Module) -> None:
        """As :meth:`DecoderAttention.check`; the landmark must be as wide as the model's embeddings."""
        super().check(model)
        width = decoder_of(model)[1].get_input_embeddings().weight.shape[1]
        if len(self.landmark) != width:
            raise InvalidValue(
                f"dim={len(self.landmark)} is not possible: {type(model).__name__} has embeddings of {width}; make the "
                f"adapter with for_model."
            )

    def install(self, attachment: Attachment) -> None:
        """Put landmarks into the text, and :meth:`attend` into the chosen layers."""
        prefix, decoder = decoder_of(attachment.model)
        attachment.claim(prefix, ["tokens"])
        attachment.hook(prefix, Insert(self, attachment, decoder), before=True)
        super().install(attachment)
        attachment.hook(prefix, Remove(attachment))
        attachment.changes[:] = [f"a landmark after every {self.block_size} tokens", *attachment.changes[1:-1]]

    def attend(self, call: DecoderCall) -> Tensor:
        """See :meth:`DecoderAttention.attend`."""
        groups = call.q.shape[1] // call.k.shape[1]
        if self.top_k is not None and not call.module.training:
            return self._fetching(call, groups)
        k, v = call.k.repeat_interleave(groups, 1), call.v.repeat_interleave(groups, 1)
        seen = None if call.mask is None else seen_slots(call.mask, self.block_size + 1)
        if not call.cached:
            return landmark_attention(call.q, k, v, block_size=self.block_size, mask=seen, scale=call.scale)
        scores = (call.q @ k.transpose(-1, -2)) * call.scale
        is_landmark = torch.arange(k.shape[2], device=k.device) % (self.block_size + 1) == self.block_size
        visible = None if seen is None else seen[:, None, None]
        return landmark_grouped_softmax(scores, is_landmark, visible=visible).to(v.dtype) @ v

    def _fetching(self, call: DecoderCall, groups: int) -> Tensor:
        """The stream: the text so far lies with the user's cache, in closed blocks and an open one."""
        q, k = call.unrotated()
        q = q * (call.scale * math.sqrt(q.shape[-1]))
        k, v = k.repeat_interleave(groups, 1), call.v.repeat_interleave(groups, 1)
        stream = _Stream(
            width=self.block_size + 1,
            top_k=self.top_k or 1,
            chunk=self.chunk,
            selection=self.selection,
            released=False,
            rope_base=1.0,  # any: the model's own angles are used
            softmax="grouped",
            call=call,
        )
        state = call.state.get("text")
        if state is None:
            state = self._empty(call, k, v)
            if call.cached:  # read without this control, or taken back since
                known = None if call.mask is None else call.mask[:, : call.cached]
                local = state.local.extend(k[:, :, : call.cached], v[:, :, : call.cached], known)
                state = stream.close(LandmarkState(local, state.blocks, None, call.cached))
        k, v, outputs, at = k[:, :, call.cached :], v[:, :, call.cached :], [], 0
        while at < q.shape[2]:
            end = stream.chunk_end(state.read) or state.read + q.shape[2] - at
            here = slice(at, min(at + end - state.read, q.shape[2]))
            real = None if call.mask is None else call.mask[:, call.cached :][:, here]
            out, state = stream.read_on(q[:, :, here], k[:, :, here], v[:, :, here], real, state)
            outputs.append(out)
            if state.read == end:
                state = stream.close(state)
            at = here.stop
        call.state["text"] = state
        return torch.cat(outputs, 2)

    def _empty(self, call: DecoderCall, k: Tensor, v: Tensor) -> LandmarkState:
        local = KVCache.empty(k.shape[0], k.shape[1], k.shape[3], k.device, k.dtype)
        sizes = (k.shape[0], k.shape[1], self.block_size + 1, k.shape[3])
        blocks = LandmarkCache.empty(*sizes, k.device, k.dtype, None, "memory", None)
        return LandmarkState(local, blocks, None, 0)


def fine_tune_landmarks(
    model: nn.Module,
    adapter: LandmarkAttention,
    batches: Iterable[Tensor],
    *,
    steps: int,
    learning_rate: float = 2e-5,
    weight_decay: float = 0.1,
    warmup: float = 0.03,
    clip: float = 1.0,
) -> list[float]:
    """The paper's fine-tuning: next tokens of a text with landmarks in it, no landmark predicted.

    AdamW (0.9, 0.95) with a linear warm-up and a cosine down to zero; the defaults are those of LLaMA 7B's 15,000 steps
    of 128 texts of 512 tokens. What learns is the landmark alone if ``adapter.freeze_model``, else the model as well.

    Args:
        model: a causal language model of transformers; changed in place only if it learns.
        adapter: not attached; it is for these steps.
        batches: int64 ``(batch, tokens)`` each, at least ``steps`` of them.
        warmup: share of the steps.
        clip: largest norm of all gradients together.

    Returns:
        The loss of every step, in nats per token.

    Raises:
        InvalidValue: fewer batches than steps, steps below 1, or a share outside [0, 1].
    """
    if not isinstance(steps, int) or steps < 1:
        raise invalid("steps", steps, "a positive whole number is needed")
    if not 0 <= warmup <= 1:
        raise invalid("warmup", warmup, "it is a share of the steps, from 0 to 1")
    losses: list[float] = []
    was = model.training
    with adapter.attached(model):
        learning = [*adapter.parameters(), *(p for p in model.parameters() if p.requires_grad)]
        optimizer = torch.optim.AdamW(learning, learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay)
        rising = max(1, round(warmup * steps))
        falling = max(1, steps - rising)

        def share(step: int) -> float:
            """Of the learning rate."""
            return (step + 1) / rising if step < rising else 0.5 + 0.5 * math.cos(math.pi * (step - rising) / falling)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        model.train()
        try:
            for ids in batches:
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(learning, clip)
                optimizer.step()
                schedule.step()
                losses.append(float(loss.detach()))
                if len(losses) == steps:
                    break
        finally:
            model.train(was)
            optimizer.zero_grad()
    if len(losses) < steps:
        raise InvalidValue(f"steps={steps} is not possible: there are only {len(losses)} batches.")
    return losses
