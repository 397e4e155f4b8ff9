"""Sliding windows, sigmoid and landmark attention on transformers' decoders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_decoders import decoder, fingerprint, padded, same, texts, transformers
from torch import Tensor

import foveate
from foveate.control import (
    DecoderAttention,
    DecoderCall,
    LandmarkAttention,
    SigmoidAttention,
    SlidingWindow,
    fine_tune_landmarks,
)
from foveate.control import window_attention as sliding
from foveate.errors import InvalidType, InvalidValue
from foveate.ops.landmark_attention import landmark_grouped_softmax

FAMILIES = ["llama", "qwen3", "gpt2", "neox"]


class ByRow(DecoderAttention):
    """One query at a time, over its row's real keys: slow, and plain to read."""

    keeps_window = True

    def attend(self, call: DecoderCall) -> Tensor:
        groups = call.q.shape[1] // call.k.shape[1]
        self.call, out = call, torch.zeros_like(call.q)
        k, v = call.k.repeat_interleave(groups, 1), call.v.repeat_interleave(groups, 1)
        raw_q, raw_k = call.unrotated()
        self.raw = raw_q, raw_k.repeat_interleave(groups, 1)
        for sample in range(len(k)):
            real = torch.ones(k.shape[2], dtype=torch.bool) if call.mask is None else call.mask[sample]
            for i in range(call.q.shape[2]):
                seen = [j for j in range(call.cached + i + 1) if real[j]]
                if real[call.cached + i]:
                    out[sample, :, i] = self.answer(sample, i, seen, k, v)
        return out

    def answer(self, sample: int, i: int, seen: list[int], k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError


class WindowByRow(ByRow):
    def __init__(self, window: int, sinks: int, positions: str) -> None:
        super().__init__()
        self.window, self.sinks, self.positions = window, sinks, positions

    def answer(self, sample: int, i: int, seen: list[int], k: Tensor, v: Tensor) -> Tensor:
        window = min(self.window, self.call.window or self.window)
        kept = sorted({*seen[: self.sinks], *seen[-window:]})
        q, keys = self.call.q[sample, :, i : i + 1], k[sample, :, kept]
        if self.positions == "cache":  # turned anew, to their places among what is kept
            at = torch.arange(len(kept))[None]
            keys = self.call.turned(self.raw[1][sample : sample + 1, :, kept], at)[0]
            q = self.call.turned(self.raw[0][sample : sample + 1, :, i : i + 1], at[:, -1:])[0]
        weights = ((q @ keys.transpose(-1, -2)) * self.call.scale).softmax(-1)
        return (weights @ v[sample, :, kept])[:, 0]


class SigmoidByRow(ByRow):
    def __init__(self, bias: float | None) -> None:
        super().__init__()
        self.bias = bias

    def answer(self, sample: int, i: int, seen: list[int], k: Tensor, v: Tensor) -> Tensor:
        seen = seen[-self.call.window :] if self.call.window else seen
        scores = (self.call.q[sample, :, i : i + 1] @ k[sample, :, seen].transpose(-1, -2)) * self.call.scale
        bias = -math.log(len(seen)) if self.bias is None else self.bias
        return ((scores + bias).sigmoid() @ v[sample, :, seen])[:, 0]


def pieces(model: Any, ids: Tensor, mask: Tensor, cuts: tuple[int, ...] = (0, 5, 9, 10, 11, 20)) -> Tensor:
    """Logits of a text read in pieces with a cache."""
    cache = transformers.DynamicCache(config=model.config)
    ends = (*cuts[1:], ids.shape[1]) if cuts[-1] < ids.shape[1] else cuts[1:]
    return torch.cat(
        [
            model(ids[:, start:end], attention_mask=mask[:, :end], cache=cache).logits
            for start, end in zip(cuts, ends, strict=False)
        ],
        1,
    )


@torch.no_grad()
def assert_attends_as(model: Any, control: DecoderAttention, expected: DecoderAttention, length: int = 20) -> None:
    ids = texts(length)
    for mask in (padded(ids), padded(ids, left=6), padded(ids, right=6)):
        with expected.attached(model):
            right = model(ids, attention_mask=mask).logits
        with control.attached(model):
            whole = model(ids, attention_mask=mask).logits
            cut = pieces(model, ids, mask)
        real = mask.bool()
        torch.testing.assert_close(whole[real], right[real], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(cut[real], right[real], rtol=1e-4, atol=1e-4)


# Sliding window -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("positions", ["text", "cache"])
def test_a_window_with_sinks_is_what_it_says(family: str, positions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if family == "gpt2" and positions == "cache":
        with pytest.raises(InvalidValue, match="positions='cache' is not possible: GPT2LMHeadModel has no rotary"):
            SlidingWindow(positions="cache").attach(decoder("gpt2"))
        return
    monkeypatch.setattr(sliding, "PIECE", 3)
    model = decoder(family)
    for window, sinks in ((5, 2), (1, 0)) if family == "llama" else ((4, 3),):
        assert_attends_as(
            model, SlidingWindow(window, sinks, positions=positions), WindowByRow(window, sinks, positions)
        )


def test_a_window_as_long_as_the_text_is_the_models_own_attention() -> None:
    model, ids = decoder("llama"), texts()
    own = model(ids).logits
    for window, sinks in ((12, 0), (12, 4), (10, 2), (100, 100)):
        with SlidingWindow(window, sinks).attached(model):
            torch.testing.assert_close(model(ids).logits, own, rtol=1e-5, atol=1e-5)


def test_the_smaller_of_two_windows_holds() -> None:
    model = decoder("mistral-slides")  # its own is 6
    assert_attends_as(model, SlidingWindow(4, 0), WindowByRow(4, 0, "text"))
    assert_attends_as(model, SlidingWindow(9, 0), WindowByRow(9, 0, "text"))
    with SlidingWindow(4, 2).attached(model):
        model(texts(6))
        with pytest.raises(InvalidValue, match="sinks=2 is not possible in layer 0: its cache slides over 6 tokens"):
            model(texts(7))


def test_a_window_generates_and_has_gradients() -> None:
    model, ids = decoder("llama"), texts()
    with SlidingWindow(4, 1, positions="cache").attached(model):
        told = {"attention_mask": padded(ids, left=3), "max_new_tokens": 5, "do_sample": False}
        both = model.generate(ids, **told, num_beams=2)
        alone = model.generate(ids[:1, 3:], max_new_tokens=5, do_sample=False, num_beams=2)
        assert torch.equal(both[:1, 3:], alone)
        model(ids, labels=ids).loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_illegal_windows_are_refused() -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"window": 0}, "window=0 is not possible: it must be a whole number of at least 1"),
        ({"sinks": -1}, "sinks=-1 is not possible: it must be a whole number of at least 0"),
        ({"positions": "here"}, "positions='here' is not possible: it must be one of text, cache"),
    )
    for options, message in cases:
        with pytest.raises(InvalidValue, match=message):
            SlidingWindow(**options)


# Sigmoid --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*FAMILIES, "mistral-slides"])
def test_sigmoid_attention_is_what_it_says(family: str) -> None:
    model = decoder(family)
    assert_attends_as(model, SigmoidAttention(), SigmoidByRow(None))
    if family == "llama":
        assert_attends_as(model, SigmoidAttention(-2.5), SigmoidByRow(-2.5))
        with pytest.raises(InvalidValue, match="bias=inf is not possible: it must be a finite number"):
            SigmoidAttention(math.inf)


# Landmarks ------------------------------------------------------------------------------------------------------------


class LandmarksByHand(DecoderAttention):
    """The two-level softmax over a text that has landmarks in it already."""

    def attend(self, call: DecoderCall) -> Tensor:
        groups = call.q.shape[1] // call.k.shape[1]
        k, v = call.k.repeat_interleave(groups, 1), call.v.repeat_interleave(groups, 1)
        landmark = torch.arange(k.shape[2]) % 5 == 4
        return landmark_grouped_softmax((call.q @ k.transpose(-1, -2)) * call.scale, landmark) @ v


def landmarks(model: Any, **options: Any) -> LandmarkAttention:
    torch.manual_seed(1)
    adapter = LandmarkAttention.for_model(model, block_size=4, **options)
    torch.nn.init.normal_(adapter.landmark)
    return adapter


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_landmarks_go_in_and_come_out(family: str) -> None:
    model, ids = decoder(family), texts(19)
    adapter = landmarks(model)
    x = model.get_input_embeddings()(ids)
    parts = [torch.cat([piece, adapter.landmark.expand(2, 1, -1)], 1) for piece in x.split(4, 1)]
    with LandmarksByHand().attached(model):
        expected = model(inputs_embeds=torch.cat(parts, 1)[:, :-1]).logits
    tokens = torch.arange(expected.shape[1]) % 5 != 4
    with adapter.attached(model) as attachment:
        out = model(ids, output_hidden_states=True)
        torch.testing.assert_close(out.logits, expected[:, tokens], rtol=1e-4, atol=1e-4)
        assert all(h.shape[1] == 19 for h in out.hidden_states)
        torch.testing.assert_close(model(ids, return_dict=False)[0], out.logits)
        torch.testing.assert_close(model(inputs_embeds=x).logits, out.logits)
        assert attachment.changes[:2] == [
            "a landmark after every 4 tokens",
            "attention of all layers is LandmarkAttention",
        ]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_landmarks_with_a_cache_and_generate(family: str) -> None:
    model, ids = decoder(family), texts(19)
    mask = padded(ids, left=7)
    with landmarks(model).attached(model):
        whole = model(ids, attention_mask=mask).logits
        torch.testing.assert_close(pieces(model, ids, mask)[mask.bool()], whole[mask.bool()], rtol=1e-4, atol=1e-4)
        text, seen = ids, mask
        for _ in range(6):
            text = torch.cat([text, model(text, attention_mask=seen, use_cache=False).logits[:, -1:].argmax(-1)], 1)
            seen = torch.nn.functional.pad(seen, (0, 1), value=1)
        told = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
        assert torch.equal(model.generate(ids, **told), text)
        assert torch.equal(model.generate(ids, **told, prefill_chunk_size=7), text)
        beams = model.generate(ids, **told, num_beams=2)
    with landmarks(model, top_k=9).attached(model):
        assert torch.equal(model.generate(ids, **told), text)
        assert torch.equal(model.generate(ids, **told, num_beams=2), beams)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_fetching_all_blocks_is_reading_all(family: str) -> None:
    model, ids = decoder(family), texts(19)
    mask = padded(ids)
    with landmarks(model).attached(model):
        own = model(ids).logits
    with landmarks(model, layers=[1, 2]).attached(model):
        most = model(ids).logits
    for chunk in (None, 5):
        with landmarks(model, top_k=5, chunk=chunk).attached(model):
            torch.testing.assert_close(model(ids).logits, own, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(pieces(model, ids, mask), own, rtol=1e-4, atol=1e-4)
        # In a first layer old landmarks are all alike, and rounding decides between them.
        with landmarks(model, top_k=1, chunk=chunk, layers=[1, 2]).attached(model):
            few = pieces(model, ids, mask)
            assert not torch.allclose(few, most, rtol=1e-2, atol=1e-2)
            if chunk is not None:  # however the text is cut
                torch.testing.assert_close(model(ids).logits, few, rtol=1e-4, atol=1e-4)
    model.train()  # training reads all blocks
    with landmarks(model, top_k=1, chunk=5).attached(model):
        torch.testing.assert_close(model(ids).logits, own, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_text_read_without_fetching_is_fetched_from() -> None:
    model, ids = decoder("llama"), texts(19)
    reading = {"top_k": 1, "chunk": None, "layers": [1]}
    with landmarks(model, **reading).attached(model):
        cache = model(ids[:, :13]).cache
        expected = model(ids[:, 13:], cache=cache).logits
    with landmarks(model, layers=[1]).attached(model):  # one chunk reads all: the same keys
        cache = model(ids[:, :13]).cache
    with landmarks(model, **reading).attached(model):
        torch.testing.assert_close(model(ids[:, 13:], cache=cache).logits, expected, rtol=1e-4, atol=1e-4)


def test_landmarks_compose_with_others_on_other_layers() -> None:
    model, ids = decoder("llama"), texts(19)
    before, own = fingerprint(model), model(ids).logits
    results = []
    for window_first in (True, False):
        window, marks = SlidingWindow(3, 0, layers=[2]), landmarks(model, layers=[0, 1])
        order = (window, marks) if window_first else (marks, window)
        with order[0].attached(model), order[1].attached(model):
            results.append(model(ids, attention_mask=padded(ids, left=5)).logits)
    torch.testing.assert_close(*results)
    with landmarks(model, layers=[0]).attached(model):
        message = "LandmarkAttention cannot change tokens of model: LandmarkAttention already does"
        with pytest.raises(InvalidValue, match=message):
            landmarks(model, layers=[1]).attach(model)
    assert same(fingerprint(model), before)
    assert torch.equal(model(ids).logits, own)


def test_the_landmark_learns_alone_or_with_the_model(tmp_path: Path) -> None:
    model, ids = decoder("llama"), texts(19)
    before = fingerprint(model)
    adapter = landmarks(model)
    start = adapter.landmark.detach().clone()
    losses = fine_tune_landmarks(model, adapter, [ids] * 8, steps=8, learning_rate=0.05)
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    assert not torch.equal(adapter.landmark, start)
    assert same(fingerprint(model), before)
    adapter.save_pretrained(tmp_path)
    again = LandmarkAttention.from_pretrained(tmp_path)
    assert torch.equal(again.landmark, adapter.landmark)
    assert (again.block_size, again.top_k) == (4, None)
    both = landmarks(model, freeze_model=False)
    more = fine_tune_landmarks(model, both, [ids] * 8, steps=8, learning_rate=0.005)
    assert more[-1] < 0.7 * more[0]
    assert not same(fingerprint(model), before)


def test_illegal_landmarks_are_refused() -> None:
    model, ids = decoder("llama"), texts(19)
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"dim": 0}, "dim=0 is not possible"),
        ({"dim": 32, "block_size": 0}, "block_size=0 is not possible"),
        ({"dim": 32, "top_k": 0}, "top_k=0 is not possible: it must be a positive whole number, or None"),
        ({"dim": 32, "selection": "best"}, "selection='best' is not possible: it must be one of per_token_and_head"),
    )
    for options, message in cases:
        with pytest.raises(InvalidValue, match=message):
            LandmarkAttention(**options)
    with pytest.raises(InvalidValue, match="dim=16 is not possible: LlamaForCausalLM has embeddings of 32"):
        LandmarkAttention(16).attach(model)
    before, logits = fingerprint(model), model(ids).logits
    with landmarks(model).attached(model):
        inside = fingerprint(model)
        for call, message in (
            (lambda: model(ids, attention_mask=torch.ones(2, 1, 19, 19)), "puts tokens in: give a 2-D attention mask"),
            (lambda: model(ids, attention_mask=torch.ones(2, 12)), r"attention_mask has 12 tokens; 0 .* and 19 new"),
            (lambda: model(ids[:, 7:], cache=decoder("llama")(ids[:, :9]).cache), "the cache is of another model: its"),
        ):
            with pytest.raises(InvalidValue, match=message):
                call()
            assert same(fingerprint(model), inside)
    assert same(fingerprint(model), before)
    assert torch.equal(model(ids).logits, logits)
    with landmarks(model).attached(model), pytest.raises(InvalidValue, match="no static cache"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static")
    before = fingerprint(model)  # transformers keeps the cache that it made
    for options, message in (
        ({"steps": 0}, "steps=0 is not possible"),
        ({"steps": 1, "warmup": 2.0}, "warmup=2.0 is not possible: it is a share"),
        ({"steps": 3}, "steps=3 is not possible: there are only 2 batches"),
    ):
        with pytest.raises(InvalidValue, match=message):
            fine_tune_landmarks(model, landmarks(model), [ids] * 2, **options)
        assert same(fingerprint(model), before)


# By name --------------------------------------------------------------------------------------------------------------


def test_controls_are_made_by_name() -> None:
    assert {"sliding_window", "sigmoid_attention", "landmark_attention"} <= set(foveate.list_names(kind="control"))
    control = foveate.create("sliding_window", window=3, layers=[0])
    assert isinstance(control, SlidingWindow)
    assert (control.window, control.layers) == (3, (0,))
    assert isinstance(foveate.create("sigmoid_attention", kind="control"), SigmoidAttention)
    with pytest.raises(InvalidType, match="windows"):
        foveate.create("sliding_window", windows=3)
