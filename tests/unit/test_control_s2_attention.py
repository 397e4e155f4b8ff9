"""S2-Attention on transformers' decoders: against a mask of pairs, with padding, caches and chosen heads."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from tiny_decoders import decoder, fingerprint, padded, same, texts
from torch import Tensor

from foveate.control import DecoderAttention, DecoderCall
from foveate.control.s2_attention import S2Attention
from foveate.errors import InvalidValue

OPTIONS: list[dict[str, Any]] = [
    {"block_size": 2, "local_blocks": 1},
    {"block_size": 3, "local_blocks": 2, "num_dense_heads": 1, "vert_stride": 3},
    {"block_size": 2, "local_blocks": 1, "vert_stride": 3, "head_sliding_offset": 1, "homo_head": True},
    {"block_size": 2, "local_blocks": 1, "heads": [0, 3]},
]


class ByDefinition(DecoderAttention):
    """The same with a mask of all pairs, blocks counted in real tokens."""

    def __init__(self, control: S2Attention) -> None:
        super().__init__(layers=control.layers, heads=control.heads)
        self.control = control

    def attend(self, call: DecoderCall) -> Tensor:
        (batch, heads), keys = call.q.shape[:2], call.k.shape[2]
        pattern, size = self.control.pattern(heads, call.k.shape[1]), self.control.block_size
        group = heads // call.k.shape[1]
        k, v = call.k.repeat_interleave(group, 1), call.v.repeat_interleave(group, 1)
        real = torch.ones(batch, keys, dtype=torch.bool) if call.mask is None else call.mask
        place = (real.cumsum(1) - 1).clamp(min=0)
        blocks = pattern.blocks(keys, keys).expand(heads, -1, -1)
        kept = torch.stack([blocks[:, p // size][:, :, p // size] for p in place])[:, :, call.cached :]
        kept = kept & (torch.arange(keys) <= torch.arange(call.cached, keys)[:, None]) & real[:, None, None]
        scores = (call.q @ k.mT) * call.scale
        return scores.masked_fill(~kept, -1e30).softmax(-1) @ v


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def answers(model: Any, control: DecoderAttention, mask: Tensor) -> dict[str, Tensor]:
    import transformers

    ids, found = texts(21), {}
    with control.attached(model), torch.no_grad():
        found["whole"] = model(ids, attention_mask=mask).logits[mask.bool()]
        cache, parts = transformers.DynamicCache(config=model.config), []
        for start, stop in ((0, 7), (7, 8), (8, 15), (15, 16), (16, 17), (17, 21)):
            piece = model(ids[:, start:stop], attention_mask=mask[:, :stop], cache=cache)
            parts.append(piece.logits)
        found["pieces"] = torch.cat(parts, 1)[mask.bool()]
    return found


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_is_a_mask_of_pairs(family: str, padding: str, options: dict[str, Any]):
    model, control = decoder(family), S2Attention(**options)
    mask = padded(texts(21), **({} if padding == "none" else {padding: 5}))
    found, expected = (answers(model, c, mask) for c in (control, ByDefinition(control)))
    for name, logits in found.items():
        torch.testing.assert_close(logits, expected[name], rtol=1e-3, atol=1e-4)
    if padding != "right":  # in pieces, padding lies between the tokens
        torch.testing.assert_close(found["pieces"], found["whole"], rtol=1e-3, atol=1e-4)


def test_it_differs_from_dense_attention_and_stride_one_does_not():
    model, ids = decoder("llama"), texts(40)
    with torch.no_grad():
        own = model(ids).logits
        with S2Attention(block_size=2, local_blocks=1).attached(model):
            assert not torch.allclose(model(ids).logits, own, rtol=1e-2, atol=1e-2)
        alike: list[dict[str, Any]] = [
            {"vert_stride": 1, "local_blocks": 1},
            {"local_blocks": 20},
            {"num_dense_heads": 2},
        ]
        for options in alike:
            with S2Attention(block_size=2, **options).attached(model):
                torch.testing.assert_close(model(ids).logits, own, rtol=1e-3, atol=1e-4)


def test_prompts_in_a_padded_batch_generate_as_alone_and_with_beams():
    model, ids = decoder("llama"), texts(17)
    mask = padded(ids, left=6)
    options: dict[str, Any] = {"max_new_tokens": 9, "do_sample": False}
    before = fingerprint(model)
    with S2Attention(block_size=2, local_blocks=2).attached(model):
        both = model.generate(ids, attention_mask=mask, **options)
        alone = model.generate(ids[:1, 6:], **options)
        assert both[0, 17:].tolist() == alone[0, 11:].tolist()
        beams = model.generate(ids, attention_mask=mask, num_beams=2, **options)
        assert beams.shape == both.shape
    assert same(fingerprint(model), before)


def test_it_compiles():
    model, ids = decoder("llama"), texts(17)
    with S2Attention(block_size=2, local_blocks=2).attached(model), torch.no_grad():
        expected = model(ids).logits
        torch.compiler.reset()
        found = torch.compile(model, backend="aot_eager")(ids).logits
        torch.compiler.reset()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_it_trains():
    model, ids = decoder("llama"), texts(24)
    with S2Attention(block_size=2, local_blocks=1).attached(model):
        model(ids, labels=ids).loss.backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)


@pytest.mark.filterwarnings("default")
def test_what_no_head_reads_is_told_and_the_default_reads_everything():
    model = decoder("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for heads in (None, [0], [1, 2], [0, 1]):
            S2Attention(heads=heads).attach(model).remove()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        S2Attention(vert_stride=8, head_sliding_step=1).attach(model).remove()
    assert "6 of 8 blocks are on no head's stripes" in str(told[0].message)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"block_size": 0}, "block_size=0 is not possible"),
        ({"local_blocks": 0}, "local_blocks=0 is not possible"),
        ({"vert_stride": 0}, "vert_stride=0 is not possible"),
        ({"num_dense_heads": -1}, "num_dense_heads=-1 is not possible"),
        ({"num_dense_heads": 1, "homo_head": True}, "all heads are alike"),
        ({"num_dense_heads": 3}, "num_dense_heads=3 is not possible: it must lie in 0 ... 2"),
        ({"layers": [3]}, "layers"),
        ({"heads": [4]}, "heads"),
    ],
)
def test_what_is_refused_leaves_the_model_as_it_was(options: dict[str, Any], says: str):
    model = decoder("llama")
    before = fingerprint(model)
    with pytest.raises(InvalidValue, match=re.escape(says)):
        S2Attention(**options).attach(model)
    assert same(fingerprint(model), before)
