"""Another attention in transformers' decoders, whatever the family, the cache and the padding; nothing stays behind."""

from __future__ import annotations

import copy
import gc
import itertools
import random
import sys
import weakref
from typing import Any

import pytest
import torch
from tiny_decoders import DECODERS, decoder, fingerprint, padded, same, texts, transformers
from torch import Tensor

from foveate.control import DecoderAttention, DecoderCall, attachments, attention_paths
from foveate.errors import InvalidType, InvalidValue, MissingExtra


class Dense(DecoderAttention):
    """Softmax attention written down: what every family has of its own."""

    keeps_window = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.calls: list[DecoderCall] = []

    def attend(self, call: DecoderCall) -> Tensor:
        self.calls.append(call)
        groups = call.q.shape[1] // call.k.shape[1]
        k, v = call.k.repeat_interleave(groups, 1), call.v.repeat_interleave(groups, 1)
        keys = torch.arange(k.shape[2])
        age = (call.cached + torch.arange(call.q.shape[2]))[:, None] - keys
        visible = ((age >= 0) & (age < (call.window or len(keys))))[None, None]
        if call.mask is not None:
            visible = visible & call.mask[:, None, None]
        scores = (call.q @ k.transpose(-1, -2)) * call.scale
        return scores.masked_fill(~visible, -1e30).softmax(-1) @ v


class Zero(Dense):
    """Attention that says nothing."""

    def attend(self, call: DecoderCall) -> Tensor:
        return torch.zeros_like(call.q) + 0 * super().attend(call)


class Plain(DecoderAttention):
    """Keeps no window of the model's."""

    def attend(self, call: DecoderCall) -> Tensor:
        return call.q


class Counts(Dense):
    """Sums keys in its state: as many as a call's queries saw before, or the state is not true."""

    def attend(self, call: DecoderCall) -> Tensor:
        sums = call.state.get("sums", torch.zeros(len(call.k), 1))
        torch.testing.assert_close(sums[:, 0], call.k[:, 0, : call.cached, 0].sum(1))
        call.state["sums"] = sums + call.k[:, 0, call.cached :, :1].sum(1)
        call.state["more"] = {"text": "not a tensor", "list": [sums]}
        return super().attend(call)


def answers(model: Any, ids: Tensor, generated: bool = True) -> dict[str, Tensor]:
    """All the ways to run a decoder; of padding, answers at real tokens."""
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        found["plain"] = model(ids).logits
        found["no cache"] = model(ids, use_cache=False).logits
        for name, mask in (("left", padded(ids, left=4)), ("right", padded(ids, right=4))):
            found[name] = model(ids, attention_mask=mask).logits[mask.bool()]
        mask = padded(ids, left=4)
        cache = transformers.DynamicCache(config=model.config)
        for start, end in ((0, 5), (5, 9), (9, 10), (10, 12)):  # a prompt in pieces
            piece = model(ids[:, start:end], attention_mask=mask[:, :end], cache=cache).logits
            found[f"piece {start}"] = piece[mask[:, start:end].bool()]
        told = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
        scored = {"return_dict_in_generate": True, "output_scores": True}
        for name, options in (
            ("greedy", {}),
            ("beams", {"num_beams": 2}),
            ("static", {"cache_implementation": "static"}),
            ("pieces", {"prefill_chunk_size": 5}),
        )[: 4 * generated]:
            out = model.generate(ids, **told, **scored, **options)
            found[name], found[f"{name} scores"] = out.sequences, torch.stack(out.scores)
    return found


def assert_same_answers(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", DECODERS)
def test_the_models_own_attention_written_down_changes_nothing(family: str) -> None:
    model, ids = decoder(family, "sdpa" if family in ("llama", "qwen2-slides") else "eager"), texts()
    own = answers(model, ids)
    before = fingerprint(model)
    for options in ({}, {"heads": [0, 1]}, {"layers": [0, 2], "heads": [1, 2]}):
        control = Dense(**options)
        with control.attached(model) as attachment:
            assert_same_answers(answers(model, ids, generated="heads" not in options), own)
        assert {c.layer for c in control.calls} == set(options.get("layers", range(3)))
        assert all(c.heads == (tuple(options["heads"]) if "heads" in options else None) for c in control.calls)
        assert not attachment.active
    assert same(fingerprint(model), before)
    again = answers(model, ids, generated=False)
    assert all(torch.equal(v, own[k]) for k, v in again.items())


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_only_what_is_chosen_changes(family: str) -> None:
    model, ids = decoder(family), texts()
    seen: dict[str, Tensor] = {}
    out = {"gpt2": "c_proj", "neox": "dense"}.get(family, "o_proj")
    modules = {p: model.get_submodule(p) for p in attention_paths(model)}
    for path, module in modules.items():
        getattr(module, out).register_forward_pre_hook(lambda m, args, p=path: seen.__setitem__(p, args[0]))
    model(ids)
    own = dict(seen)
    with Zero(layers=[1], heads=[1, 3]).attached(model):
        model(ids)
    first, second, third = (seen[p].unflatten(-1, (4, -1)) for p in modules)
    assert torch.equal(first.flatten(2), own[next(iter(modules))])
    assert not second[:, :, [1, 3]].any()
    assert torch.equal(second[:, :, [0, 2]], own[list(modules)[1]].unflatten(-1, (4, -1))[:, :, [0, 2]])
    assert not torch.equal(third.flatten(2), own[list(modules)[2]])


def test_key_heads_come_grouped_where_whole_groups_are_chosen() -> None:
    model, ids = decoder("llama"), texts()
    for heads, count in (([0, 1], 1), ([2, 3], 1), ([1, 2], 2), ([0], 1), (None, 2)):
        control = Dense(heads=heads)
        with control.attached(model):
            model(ids)
        assert control.calls[0].k.shape[1] == control.calls[0].v.shape[1] == count


def test_what_a_call_says() -> None:
    model, ids, control = decoder("mistral-slides"), texts(), Dense(layers=[1])
    mask = padded(ids, left=4)
    with control.attached(model):
        cache = transformers.DynamicCache(config=model.config)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        model(ids[:, :8], attention_mask=mask[:, :8], cache=cache, position_ids=positions[:, :8])
        model(ids[:, 8:], attention_mask=mask, cache=cache, position_ids=positions[:, 8:])
    first, second = control.calls
    assert (first.cached, first.dropped, first.window, first.layer) == (0, 0, 6, 1)
    assert (second.cached, second.dropped, second.window) == (5, 3, 6)
    assert torch.equal(first.mask, mask[:, :8].bool())  # type: ignore[arg-type]
    assert torch.equal(second.mask, mask[:, 3:].bool())  # type: ignore[arg-type]
    assert torch.equal(second.query_positions, positions[:, 8:])
    assert second.scale == pytest.approx(8**-0.5)
    assert first.module is model.model.layers[1].self_attn
    with control.attached(decoder("llama")) as attachment:
        attachment.model(ids, attention_mask=torch.ones_like(ids))
    assert control.calls[-1].mask is None


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral-slides", "gpt2", "neox"])
@pytest.mark.parametrize("told", [False, True], ids=["by slots", "by position_ids"])
def test_queries_and_keys_before_rotation(family: str, told: bool) -> None:
    model, ids, raw = decoder(family), texts(), {}
    mask = padded(ids, left=4)
    if told:
        mask[1, 3:5] = 0  # a hole: padding takes up no position
    positions = (mask.cumsum(1) - 1).clamp(min=0) if told else None
    name = {"qwen3": "k_norm", "gpt2": "c_attn", "neox": "query_key_value"}.get(family, "k_proj")
    getattr(model.get_submodule(attention_paths(model)[0]), name).register_forward_hook(
        lambda m, args, out: raw.__setitem__("k", out)
    )
    whole = Dense(layers=[0])
    with whole.attached(model):
        model(ids, attention_mask=mask, position_ids=positions)
    q, k = whole.calls[0].unrotated()
    expected = raw["k"]
    if family == "gpt2":
        expected = expected.chunk(3, -1)[1]
    if family == "neox":
        expected = expected.unflatten(-1, (4, 3, -1))[..., 1, :]
    expected = expected if expected.ndim == 4 else expected.unflatten(-1, (k.shape[1], -1))
    torch.testing.assert_close(k, expected.transpose(1, 2))
    pieces = Dense(layers=[0])
    with pieces.attached(model):
        cache = transformers.DynamicCache(config=model.config)
        for start, end in ((0, 5), (5, 9), (9, 10), (10, 12)):
            at = None if positions is None else positions[:, start:end]
            model(ids[:, start:end], attention_mask=mask[:, :end], cache=cache, position_ids=at)
    last_q, last_k = pieces.calls[-1].unrotated()
    torch.testing.assert_close(last_q, q[:, :, 10:])
    real = mask[:, -last_k.shape[2] :].bool()[:, None, :, None].expand_as(last_k)
    torch.testing.assert_close(last_k[real], k[:, :, -last_k.shape[2] :][real])


def test_rotary_angles_that_change_with_the_text_cannot_be_undone() -> None:
    model, ids = decoder("llama"), texts()
    model.model.rotary_emb.rope_type = "dynamic"
    control = Dense(layers=[0])
    with control.attached(model):
        cache = model(ids).cache
        model(ids[:, :1], cache=cache)
    with pytest.raises(InvalidValue, match=r"Dense cannot turn keys .* of kind 'dynamic' change with the length"):
        control.calls[-1].unrotated()


# State ----------------------------------------------------------------------------------------------------------------


def test_state_lives_with_the_cache_and_follows_beams() -> None:
    model, ids = decoder("llama"), texts()
    with Counts().attached(model), Counts(layers=[0]).attached(decoder("llama")):
        model.generate(ids, attention_mask=padded(ids, left=3), max_new_tokens=6, num_beams=3, do_sample=False)
        model.generate(ids, max_new_tokens=4, do_sample=False)


def test_state_is_empty_where_it_would_not_be_true() -> None:
    class Asks(Dense):
        asks = True

        def attend(self, call: DecoderCall) -> Tensor:
            if self.asks:
                seen.append(call.state.get("tokens", 0))
                call.state["tokens"] = call.cached + call.q.shape[2]
                assert call.state is call.state
            return super().attend(call)

    model, ids, seen = decoder("llama"), texts(), []
    control = Asks(layers=[0])
    with torch.no_grad(), control.attached(model):
        cache = model(ids[:, :5]).cache
        model(ids[:, 5:8], cache=cache)
        assert seen == [0, 5]
        other = copy.deepcopy(cache)
        model(ids[:, 8:9], cache=other)
        model(ids[:, 8:10], cache=cache)
        assert seen[2:] == [8, 8]
        cache.crop(-4)
        model(ids[:, 6:8], cache=cache)
        assert seen[4:] == [0]
        control.asks = False
        model(ids[:, 8:9], cache=cache)
        control.asks = True
        model(ids[:, 9:10], cache=cache)
        assert seen[5:] == [0]
        cache.batch_repeat_interleave(2)
        model(ids[:, 10:11].repeat_interleave(2, 0), cache=cache)
        assert seen[6:] == [10]
        cache.reset()
        model(ids, cache=cache)
        model(ids, use_cache=False)
        assert seen[7:] == [0, 0]
    with control.attached(model):  # another attachment, another state
        model(ids[:, :1], cache=cache)
        assert seen[9:] == [0]


# Composition and removal ----------------------------------------------------------------------------------------------


def test_controls_of_different_layers_and_heads_compose() -> None:
    model, ids = decoder("qwen2"), texts()
    own, before = model(ids).logits, fingerprint(model)
    first, second = Dense(layers=[0], heads=[0, 1]).attach(model), Dense(layers=[0, 1], heads=[2, 3]).attach(model)
    third = Dense(layers=[2]).attach(model)
    assert attachments(model) == [first, second, third]
    torch.testing.assert_close(model(ids).logits, own, rtol=1e-4, atol=1e-4)
    assert first.changes == ["attention of layers 0, heads 0, 1 is Dense"]
    assert third.changes == ["attention of layers 2 is Dense"]
    first.remove()
    torch.testing.assert_close(model(ids).logits, own, rtol=1e-4, atol=1e-4)
    third.remove()
    second.remove()
    assert same(fingerprint(model), before)
    assert torch.equal(model(ids).logits, own)


@pytest.mark.parametrize(
    ("first", "second"), [({}, {}), ({"layers": [1]}, {"heads": [3]}), ({"heads": [0, 1]}, {"heads": [1, 2]})]
)
def test_two_controls_of_one_head_are_refused(first: dict[str, Any], second: dict[str, Any]) -> None:
    model, ids = decoder("llama"), texts()
    before, own = fingerprint(model), model(ids).logits
    attachment = Dense(**first).attach(model)
    inside = fingerprint(model)
    with pytest.raises(InvalidValue, match=r"Zero cannot change head \d of model.layers.\d.self_attn: Dense already"):
        Zero(**second).attach(model)
    assert same(fingerprint(model), inside)
    attachment.remove()
    assert same(fingerprint(model), before)
    assert torch.equal(model(ids).logits, own)


def test_a_hundred_attachments_in_any_order_leave_every_bit() -> None:
    ids, draw = texts(6), random.Random(0)
    models = {family: decoder(family) for family in DECODERS}
    kept = {family: (fingerprint(model), model(ids).logits) for family, model in models.items()}
    for number, family in zip(range(100), itertools.cycle(DECODERS), strict=False):
        model, (before, own), active = models[family], kept[family], []
        for _ in range(draw.randint(1, 6)):
            if active and draw.random() < 0.4:
                active.pop(draw.randrange(len(active))).remove()
                continue
            layers = draw.choice([None, draw.sample(range(3), draw.randint(1, 3))])
            heads = draw.choice([None, draw.sample(range(4), draw.randint(1, 4))])
            try:
                active.append(draw.choice([Dense, Zero])(layers=layers, heads=heads).attach(model))
            except InvalidValue as error:
                assert "already does" in str(error)  # noqa: PT017 (which draws overlap is not known)
            if draw.random() < 0.3:
                model(ids)
        draw.shuffle(active)
        for attachment in active:
            attachment.remove()
        assert same(fingerprint(model), before), f"draw {number}"
        assert torch.equal(model(ids).logits, own), f"draw {number}"


def test_a_model_saved_while_attached_is_the_users(tmp_path: Any) -> None:
    model = decoder("llama", "sdpa")
    with Zero().attached(model):
        assert model.config._attn_implementation == "sdpa"
        model.save_pretrained(tmp_path)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(texts()).logits, model(texts()).logits)


def test_the_implementation_may_be_changed_meanwhile() -> None:
    model, ids = decoder("llama", "sdpa"), texts()
    with Dense(layers=[0], heads=[0]).attached(model):
        model.set_attn_implementation("eager")
        model(ids)
    assert {model.get_submodule(p).config._attn_implementation for p in attention_paths(model)} == {"eager"}


def test_nothing_keeps_a_model_alive() -> None:
    model = decoder("llama")
    with Counts().attached(model):
        model(texts())
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_attaches_to_the_decoder_itself_and_to_other_heads() -> None:
    model, ids = decoder("llama"), texts()
    own = model.model(ids).last_hidden_state
    with Dense(layers=[1]).attached(model.model) as attachment:
        torch.testing.assert_close(attachment.model(ids, padded(ids)).last_hidden_state, own, rtol=1e-4, atol=1e-4)
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, pad_token_id=0)
    scorer = transformers.GPT2ForSequenceClassification(config).eval()
    own = scorer(ids).logits
    with Dense().attached(scorer):
        torch.testing.assert_close(scorer(ids).logits, own, rtol=1e-4, atol=1e-4)


def test_gradients_pass_and_a_frozen_layer_learns_nothing() -> None:
    model, ids = decoder("llama"), texts()
    expected = torch.autograd.grad(model(ids, labels=ids).loss, model.model.embed_tokens.weight)[0]
    with Dense(heads=[0, 3]).attached(model):
        found = torch.autograd.grad(model(ids, labels=ids).loss, model.model.embed_tokens.weight)[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    model.gradient_checkpointing_enable()
    model.train()
    with Dense(heads=[0, 3]).attached(model):
        found = torch.autograd.grad(model(ids, labels=ids).loss, model.model.embed_tokens.weight)[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_compiled_whole_before_or_after_attaching(family: str) -> None:
    model, ids = decoder(family), texts()
    mask = padded(ids, left=4)
    own = model(ids, attention_mask=mask).logits[mask.bool()]
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        without = compiled(ids, attention_mask=mask, use_cache=False).logits
        control = Zero(layers=[1], heads=[0])
        with control.attached(compiled):
            got = compiled(ids, attention_mask=mask, use_cache=False).logits
            expected = model(ids, attention_mask=mask).logits
            torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-4)
            assert not torch.allclose(got[mask.bool()], own, rtol=1e-3, atol=1e-3)
        assert torch.equal(compiled(ids, attention_mask=mask, use_cache=False).logits, without)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad(), Counting().attached(model):
        cache = transformers.DynamicCache(config=model.config)
        pieces = [
            compiled(ids[:, start:end], attention_mask=mask[:, :end], cache=cache).logits
            for start, end in ((0, 9), (9, 10), (10, 11), (11, 12))
        ]
    torch.testing.assert_close(torch.cat(pieces, 1)[mask.bool()], own, rtol=1e-4, atol=1e-4)


class Counting(Dense):
    """Has a state in compiled code."""

    def attend(self, call: DecoderCall) -> Tensor:
        call.state["tokens"] = call.state.get("tokens", 0) + call.q.shape[2]
        call.unrotated()
        return super().attend(call)


# Bad input ------------------------------------------------------------------------------------------------------------


def refused(model: Any, message: str, call: Any, error: type[Exception] = InvalidValue) -> None:
    before = fingerprint(model)
    with pytest.raises(error, match=message):
        call()
    assert same(fingerprint(model), before)


def test_layers_and_heads_out_of_range_are_refused() -> None:
    model = decoder("llama")
    refused(model, r"layers=\(1, 3\) .* LlamaForCausalLM has layers 0 to 2", lambda: Dense(layers=[1, 3]).attach(model))
    refused(model, r"heads=\(4,\) .* LlamaForCausalLM has heads 0 to 3", lambda: Dense(heads=[4]).attach(model))
    for given in ([], [-1], [1, 1], [0.5], 3, [True]):
        with pytest.raises(InvalidValue, match=r"layers=.* is not possible: give numbers from 0, each once"):
            Dense(layers=given)  # type: ignore[arg-type]


def test_unknown_models_are_refused() -> None:
    config = transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(InvalidType, match="Dense does not know BertModel: it attaches to LlamaPreTrainedModel"):
        Dense().attach(transformers.BertModel(config))
    with pytest.raises(InvalidType, match="Dense attaches to a network or to a pipeline that holds one; str"):
        Dense().attach("gpt2")


def test_a_model_that_attends_both_ways_is_refused() -> None:
    model = decoder("llama")
    model.config.is_causal = False
    refused(model, "Dense is causal; this LlamaForCausalLM is configured", lambda: Dense().attach(model))


def test_weights_are_not_given_in_silence() -> None:
    model, ids = decoder("llama"), texts()
    model(ids, output_attentions=True)  # transformers installs hooks of its own once
    attachment = Dense().attach(model)
    message = "output_attentions=True is not possible: Dense forms no attention weights"
    refused(model, message, lambda: model(ids, output_attentions=True))
    told = {"output_attentions": True, "return_dict_in_generate": True, "max_new_tokens": 2}
    refused(model, message, lambda: model.generate(ids, **told))
    attachment.remove()
    assert len(model(ids, output_attentions=True).attentions) == 3


def test_masks_that_say_more_than_padding_are_refused() -> None:
    model, ids = decoder("llama"), texts()
    causal = torch.ones(12, 12).tril()
    causal[-1, 3] = 0
    four = torch.where(causal.bool(), 0.0, torch.finfo(torch.float32).min)[None, None].expand(2, 1, 12, 12)
    whole = torch.where(torch.ones(12, 12).tril().bool(), 0.0, -1e30)[None, None].expand(2, 1, 12, 12)
    own = model(ids).logits
    with Dense().attached(model):
        refused(model, "this 4-D attention mask is not possible: Dense", lambda: model(ids, attention_mask=four))
        torch.testing.assert_close(model(ids, attention_mask=whole).logits, own, rtol=1e-4, atol=1e-4)
        packed = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7]])
        message = "position_ids without attention_mask and cache may mean packed documents, which Dense cannot"
        refused(model, message, lambda: model(ids, position_ids=packed, use_cache=False))


def test_a_cache_of_another_model_is_refused() -> None:
    model, ids = decoder("llama"), texts()
    cache = decoder("qwen3")(ids).cache
    with Dense().attached(model):
        message = "the cache is of another model: layer 0 holds keys of 2 heads of 16, this model has 2 of 8"
        refused(model, message, lambda: model(ids[:, :1], cache=cache))
        config = transformers.LlamaConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
        )
        short = transformers.LlamaForCausalLM(config)(ids).cache
        message = "the cache is of another model: it holds 2 layers, this LlamaModel has 3"
        refused(model, message, lambda: model(ids[:, :1], cache=short))


def test_a_window_of_the_models_own_is_kept_or_refused() -> None:
    model, ids = decoder("mistral-slides"), texts()
    with Plain().attached(model):
        model(ids[:, :6])
        message = "Plain cannot keep the sliding window of 6 tokens that layer 0 has of its own, and 7 tokens"
        refused(model, message, lambda: model(ids[:, :7]))


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder("llama")
    monkeypatch.setitem(sys.modules, "transformers", None)
    message = r"Dense needs transformers: install it with pip install 'foveate\[llm\]'"
    refused(model, message, lambda: Dense().attach(model), MissingExtra)
