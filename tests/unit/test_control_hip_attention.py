"""HiP attention in transformers' decoders: prompts, decoding with what was found, padding, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_decoders import decoder, fingerprint, padded, same, texts
from torch import Tensor

import foveate
import foveate.control.hip_attention as control
from foveate.control.hip_attention import HipAttention
from foveate.errors import InvalidValue

FAMILIES = ("llama", "qwen3", "mistral", "gpt2", "neox")
SMALL: dict[str, Any] = {"mask_k": 8, "block_size_q": 4, "window": 4, "num_sinks": 2, "refresh": 3}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def logits(model: Any, ids: Tensor, mask: Tensor | None = None, prompt: int | None = None) -> Tensor:
    """Of a text, or of a prompt and then a token at a time."""
    if prompt is None:
        return model(ids, attention_mask=mask).logits
    cache, answers, at = None, [], 0
    for end in range(prompt, ids.shape[1] + 1):
        given = None if mask is None else mask[:, :end]
        out = model(ids[:, at:end], attention_mask=given, past_key_values=cache, use_cache=True)
        cache, at = out.past_key_values, end
        answers.append(out.logits)
    return torch.cat(answers, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_budget_for_everything_is_the_models_own(family: str) -> None:
    model, ids = decoder(family), texts(40, 3)
    mask = padded(ids, left=7)
    before, dense = fingerprint(model), [logits(model, ids), logits(model, ids, mask, 30)]
    generated = model.generate(ids, attention_mask=mask, max_new_tokens=6, num_beams=2, do_sample=False)
    with HipAttention(mask_k=48, window=4, refresh=2).attached(model):
        torch.testing.assert_close(logits(model, ids), dense[0])
        torch.testing.assert_close(logits(model, ids, mask, 30)[mask.bool()], dense[1][mask.bool()])
        again = model.generate(ids, attention_mask=mask, max_new_tokens=6, num_beams=2, do_sample=False)
        assert torch.equal(again, generated)
    assert same(fingerprint(model), before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sides", [{"left": 13}, {"right": 13}])
def test_padding_changes_nothing(family: str, sides: dict) -> None:
    model, ids = decoder(family), texts(60, 2)
    mask, kept = padded(ids, **sides).bool(), slice(13, None) if "left" in sides else slice(None, -13)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with HipAttention(**SMALL).attached(model):
        alone = [logits(model, ids[:1, kept]), logits(model, ids[1:])]
        together = model(ids, attention_mask=mask.long(), position_ids=positions).logits
    torch.testing.assert_close(together[:1, kept], alone[0])
    torch.testing.assert_close(together[1:], alone[1])


def test_padding_changes_nothing_in_decoding() -> None:
    model, ids = decoder("llama"), texts(50, 2)
    mask = padded(ids, left=13)
    options = {"max_new_tokens": 20, "do_sample": False}
    with HipAttention(**SMALL).attached(model):
        together = model.generate(ids, attention_mask=mask, **options)
        alone = [model.generate(ids[i : i + 1, left:], **options) for i, left in ((0, 13), (1, 0))]
    assert torch.equal(together[:1, 50:], alone[0][:, 37:])
    assert torch.equal(together[1:, 50:], alone[1][:, 50:])


def test_decoding_searches_every_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids, calls = decoder("llama"), texts(60, 2), []

    def counted(*given: Any, **options: Any) -> Any:
        calls.append(given[0].shape[2])
        return search(*given, **options)

    search = control.hip_mask
    monkeypatch.setattr(control, "hip_mask", counted)
    with HipAttention(**SMALL, layers=[1]).attached(model):
        some = logits(model, ids, prompt=50)
        assert calls == [1] * 4, "10 steps, a search for the first of every 3"
    monkeypatch.undo()
    with HipAttention(**{**SMALL, "refresh": 1}, layers=[1]).attached(model):
        every = logits(model, ids, prompt=50)
    torch.testing.assert_close(some[:, :50], every[:, :50])
    assert not torch.allclose(some, every)


def test_the_budget_matters_and_layers_and_heads_are_chosen() -> None:
    model, ids = decoder("llama"), texts(60, 2)
    dense, answers = logits(model, ids), []
    for options in ({}, {"layers": [2]}, {"heads": [0, 3]}, {"dense_queries": 60}, {"representative": "random"}):
        with HipAttention(**SMALL, **options).attached(model):
            answers.append(logits(model, ids))
            assert torch.equal(answers[-1], logits(model, ids)), "random representatives are drawn alike"
    torch.testing.assert_close(answers[3], dense)
    for i, answer in enumerate(answers[:3] + answers[4:]):
        assert not torch.allclose(answer, dense), i
        assert all(not torch.allclose(answer, other) for other in answers[:i])
    torch.testing.assert_close(logits(model, ids), dense)


@pytest.mark.slow  # other controls are compiled in every run
def test_compiled() -> None:
    model, ids = decoder("llama"), texts(40, 2)
    mask = padded(ids, left=7)
    with HipAttention(**SMALL).attached(model):
        eager = model(ids, attention_mask=mask, use_cache=False).logits
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        got = compiled(ids, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(got[mask.bool()], eager[mask.bool()])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mask_k": 3}, "mask_k=3"),
        ({"refresh": 0}, "refresh=0"),
        ({"num_sinks": -1}, "num_sinks=-1"),
        ({"dense_queries": 0.5}, "dense_queries=0.5"),
        ({"representative": "middle"}, "representative='middle'"),
        ({"window": -2}, "window=-2"),
    ],
)
def test_options_that_are_not_possible(options: dict, says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        HipAttention(**options)
    with pytest.raises(InvalidValue, match=says):
        foveate.create("hip_attention", kind="control", **options)


def test_what_does_not_fit_leaves_the_model_as_it_was() -> None:
    model = decoder("llama")
    before = fingerprint(model)
    for options, says in (
        ({"layers": [3]}, "layers"),
        ({"heads": [4]}, "heads"),
        ({"head_group": 3}, "head_group=3"),
        ({"head_group": 2, "heads": [1]}, "the 1 heads"),
    ):
        with pytest.raises(InvalidValue, match=says):
            HipAttention(**options).attach(model)
        assert same(fingerprint(model), before)
    with HipAttention(layers=[0]).attached(model), pytest.raises(InvalidValue, match="already"):
        HipAttention().attach(model)
    assert same(fingerprint(model), before)
