"""HiP attention: the search against its definition, streams and documents, the control, and what is refused."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from foveate.errors import FoveateError, InvalidType, InvalidValue
from foveate.measure.flops import count_flops
from foveate.measure.memory import saved_bytes
from foveate.mixers import TokenLayout
from foveate.mixers.hip_attention import HipAttention, HipPromptAttention
from foveate.mixers.softmax_attention import SoftmaxAttention
from foveate.models.language.language_model import LanguageModel
from foveate.ops import backend
from foveate.ops.block_sparse_attention import BlockIndices, indices_to_blocks
from foveate.ops.hip_attention import attention_flops, hip_attention, hip_flops, hip_mask, reference
from foveate.ops.hip_search import HipSearch
from foveate.ops.softmax_attention import softmax_attention


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def qkv(length: int, keys: int | None = None, heads: int = 4, key_heads: int = 2) -> tuple[Tensor, ...]:
    keys = length if keys is None else keys
    return tuple(
        torch.randn(2, h, n, 8, dtype=torch.float64) for h, n in ((heads, length), (key_heads, keys), (key_heads, keys))
    )


def lists(kept: BlockIndices, sample: int, head: int) -> list[list[int]]:
    return [
        row[:count].tolist() for row, count in zip(kept.indices[sample, head], kept.counts[sample, head], strict=True)
    ]


def test_the_worked_tree() -> None:
    # The numbers of the specification: halves scored .2, 1, .2, .8, then keys 2 and 3 and 6 and 7.
    k = torch.tensor([0.1, 0.2, 0.9, 1.0, 0.3, 0.2, 0.4, 0.8]).view(1, 1, 8, 1)
    search = HipSearch(mask_k=2, block_size_q=1, block_size_k=1, window=0)
    assert lists(hip_mask(torch.ones(1, 1, 1, 1), k, search), 0, 0) == [[2, 3]]


@pytest.mark.parametrize("rows", ["block", "first"])
@pytest.mark.parametrize("key_group", [1, 3])
@pytest.mark.parametrize("block_size_k", [1, 3])
def test_the_search_is_its_definition(rows: str, key_group: int, block_size_k: int) -> None:
    unit = key_group * block_size_k
    for representative, nodes, stride, (length, keys), window in itertools.product(
        ("center", "first"), ("even", "draft"), (1, 2), ((70, 70), (37, 131), (1, 100)), (0, 5)
    ):
        search = HipSearch(
            mask_k=3 * unit,
            block_size_q=8,
            block_size_k=block_size_k,
            key_group=key_group,
            window=window,
            representative=representative,
            rows=rows,
            query_stride=stride,
            nodes=nodes,
        )
        q, k, _ = qkv(length, keys)
        kept = hip_mask(q, k, search)
        for sample, head in ((0, 0), (1, 3)):
            assert lists(kept, sample, head) == reference(q[sample, head], k[sample, head // 2], search), search


def test_random_representatives_follow_the_generator() -> None:
    q, k, _ = qkv(100)
    search = HipSearch(mask_k=8, block_size_q=4, window=0, representative="random")
    drawn = [hip_mask(q, k, search, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(drawn[0].indices, drawn[1].indices)
    assert not torch.equal(drawn[0].indices, drawn[2].indices)
    assert (drawn[0].counts[..., 4:] == 4).all()
    blocks = indices_to_blocks(drawn[0], 50).any((0, 1, 2))
    assert blocks.float().mean() > 0.9, "any block may be found"


def test_head_groups_share_a_budget() -> None:
    q, k, _ = qkv(1, 200, key_heads=4)
    q[:, 1] *= 100  # its scores are the highest, or the lowest
    k[:, 1] = k[:, 1].abs() * q[:, 1].sign()
    search = HipSearch(mask_k=8, block_size_q=1, block_size_k=2, window=0, head_group=2)
    kept = hip_mask(q, k, search)
    assert kept.counts[:, :, 0].tolist() == [[0, 8, 4, 4], [0, 8, 4, 4]] or kept.counts[:, :2, 0].sum(1).tolist() == [
        8,
        8,
    ]
    assert (kept.counts[:, 1, 0] > 4).all()
    assert (kept.counts[:, :2].sum(1) == 8).all()
    assert (kept.counts[:, 2:].sum(1) == 8).all()


def test_padding_is_neither_searched_nor_decides() -> None:
    q, k, v = qkv(96)
    mask = torch.ones(2, 96, dtype=torch.bool)
    mask[0, :32], mask[1, 80:] = False, False
    for rows, group in (("block", 1), ("first", 1), ("block", 2)):
        search = HipSearch(mask_k=8, block_size_q=8, block_size_k=2, key_group=group, window=8, rows=rows)
        kept = hip_mask(q, k, search, mask=mask)
        blocks = indices_to_blocks(kept, 48 // group)
        assert not blocks[0, :, :, : 16 // group].any()
        assert not blocks[1, :, :, 40 // group :].any()
        # A block of queries in front of the padding, and one behind it, as in a sample without.
        alone = hip_mask(q[:1, :, 32:], k[:1, :, 32:], search)
        shifted = indices_to_blocks(alone, 32 // group)
        assert torch.equal(blocks[:1, :, 4:, 16 // group :], shifted)
        short = hip_mask(q[1:, :, :80], k[1:, :, :80], search)
        assert torch.equal(blocks[1:, :, :10, : 40 // group], indices_to_blocks(short, 40 // group))
        other_q, other_k = (torch.where(mask[:, None, :, None], x, 1e3) for x in (q, k))
        o, other = (hip_attention(a, b, v, search, mask=mask) for a, b in ((q, k), (other_q, other_k)))
        assert torch.equal(o[mask[:, None].expand(-1, 4, -1)], other[mask[:, None].expand(-1, 4, -1)])


@pytest.mark.parametrize("rows", ["block", "first"])
@pytest.mark.parametrize("key_group", [1, 3])
@pytest.mark.parametrize(("length", "keys"), [(50, 50), (13, 50), (1, 50), (1, 1), (3, 3)])
def test_a_budget_for_everything_is_dense_attention(rows: str, key_group: int, length: int, keys: int) -> None:
    q, k, v = qkv(length, keys)
    search = HipSearch(mask_k=60, block_size_q=4, key_group=key_group, window=3, rows=rows)
    expected = softmax_attention(q, *(x.repeat_interleave(2, 1) for x in (k, v)), causal=True)
    torch.testing.assert_close(hip_attention(q, k, v, search, num_sinks=0), expected, rtol=0, atol=1e-12)


def test_dense_queries_read_everything() -> None:
    q, k, v = qkv(90, 100)
    search = HipSearch(mask_k=4, block_size_q=8, window=4)
    sparse, some = (hip_attention(q, k, v, search, num_sinks=0, dense_queries=n) for n in (0, 40))
    dense = softmax_attention(q, *(x.repeat_interleave(2, 1) for x in (k, v)), causal=True)
    torch.testing.assert_close(some[:, :, :32], dense[:, :, :32])
    torch.testing.assert_close(some[:, :, 32:], sparse[:, :, 32:])
    assert not torch.allclose(sparse[:, :, 20:32], dense[:, :, 20:32])
    kept = hip_mask(q, k, search)
    torch.testing.assert_close(hip_attention(q, k, v, search, num_sinks=0, dense_queries=40, kept=kept), some)


def test_one_query_is_read_as_many_are() -> None:
    for keys, window, sinks in ((100, 8, 3), (100, 0, 0), (5, 8, 3), (12, 8, 9)):
        q, k, v = qkv(1, keys)
        search = HipSearch(mask_k=8, block_size_q=4, window=window, rows="first")
        mask = torch.rand(2, keys) < 0.7
        mask[1] = False
        for given in (None, mask):
            answers = []
            for form in ("reference", "torch"):
                with backend(form):
                    answers.append(hip_attention(q, k, v, search, num_sinks=sinks, mask=given))
            torch.testing.assert_close(*answers)
    assert (answers[1][1] == 0).all()


def test_gradients_reach_what_was_kept() -> None:
    q, k, v = (x.requires_grad_() for x in qkv(24))
    search = HipSearch(mask_k=4, block_size_q=4, window=3)
    kept = hip_mask(q, k, search)
    assert gradcheck(lambda *t: hip_attention(*t, search, num_sinks=1, kept=kept), (q, k, v), fast_mode=True)
    hip_attention(q, k, v, search, num_sinks=0)[:, :, -1].sum().backward()
    read = indices_to_blocks(kept, 12)[:, :, -1].repeat_interleave(2, -1)
    read[..., -search.reach :] = True
    assert torch.equal(v.grad.abs().sum(-1) > 0, read.unflatten(1, (2, 2)).any(2))


def test_flops_are_those_counted() -> None:
    for options in ({}, {"rows": "first"}, {"key_group": 2}, {"query_stride": 3}, {"head_group": 2}):
        search = HipSearch(**{"mask_k": 16, "block_size_q": 8, "block_size_k": 2, "window": 8, **options})
        with torch.device("meta"), backend("torch"):
            q, k = torch.empty(2, 4, 300, 16), torch.empty(2, 2, 333, 16)
            counted = count_flops(lambda s=search, q=q, k=k: hip_mask(q, k, s))
            assert counted == hip_flops(search, 300, 333, 4, 16, 2) > 0
            kept = hip_mask(q, k, search)
            counted = count_flops(lambda s=search, q=q, k=k, m=kept: hip_attention(q, k, k, s, num_sinks=5, kept=m))
        assert counted == attention_flops(search, 300, 333, 5, 4, 16, 2)


OPTIONS = {"num_heads": 4, "mask_k": 8, "block_size_q": 4, "window": 4, "num_sinks": 1}


@pytest.mark.parametrize("more", [{}, {"num_kv_heads": 2}, {"key_group": 3, "mask_k": 12}, {"dense_queries": 30}])
def test_streams_of_a_small_budget_equal_the_whole(more: dict) -> None:
    mixer = HipAttention(32, **{**OPTIONS, **more}).double().eval()
    x = torch.randn(2, 60, 32, dtype=torch.float64)
    with torch.no_grad():
        whole = mixer(x)
        for pieces in ([7, 1, 1, 1, 1, 30, 3, 16], [1] * 60, [60]):
            state, outputs, at = mixer.init_state(2, dtype=torch.float64), [], 0
            for piece in pieces:
                y, state = mixer.prefill(x[:, at : at + piece], state)
                outputs.append(y)
                at += piece
            torch.testing.assert_close(torch.cat(outputs, 1), whole)


def test_a_small_budget_is_strictly_causal() -> None:
    mixer = HipAttention(32, **OPTIONS).eval()
    x = torch.randn(1, 70, 32)
    y = mixer(x)
    for t in (0, 3, 4, 30, 31, 32, 33, 68):
        other = x.clone()
        other[:, t + 1 :] = 5 * torch.randn(1, 69 - t, 32)
        assert torch.equal(mixer(other)[:, : t + 1], y[:, : t + 1])


def test_prompts_let_later_queries_decide() -> None:
    mixer = HipPromptAttention(32, **OPTIONS).eval()
    x = torch.randn(1, 70, 32)
    other = x.clone()
    other[:, -1] = 5 * torch.randn(32)
    changed = (mixer(other) != mixer(x)).any(-1)[0]
    assert changed[68], "the block's last query decides for the one before it"
    assert not changed[:68].any()
    with pytest.raises(InvalidValue, match="strictly causal"):
        LanguageModel("hip_prompt_attention", vocabulary=8, dim=16, depth=1)


@pytest.mark.parametrize("cls", [HipAttention, HipPromptAttention])
def test_documents_are_read_one_by_one(cls: type[HipAttention]) -> None:
    mixer = cls(32, **OPTIONS).eval()
    x = torch.randn(2, 80, 32)
    lengths = ([30, 1, 40, 9], [80])
    segments = torch.stack([torch.repeat_interleave(torch.arange(len(n)) % 2, torch.tensor(n)) for n in lengths])
    y = mixer(x, layout=TokenLayout((80,), segments=segments))
    positions = torch.cat([torch.arange(n) for n in lengths[0]])
    turned = mixer(x, layout=TokenLayout((80,), segments=segments, positions=positions))[0]
    alone = torch.cat([mixer(part) for part in x[:1].split(lengths[0], 1)], 1)[0]
    torch.testing.assert_close(turned, alone)
    torch.testing.assert_close(y[0], alone, msg="RoPE knows differences of positions alone")
    torch.testing.assert_close(y[1:], mixer(x[1:]))


def test_weights_of_softmax_attention_fit() -> None:
    dense, mixer = SoftmaxAttention(32, num_heads=4, causal=True, position="rope"), HipAttention(32, **OPTIONS)
    mixer.load_state_dict(dense.state_dict())
    x = torch.randn(1, 12, 32)
    torch.testing.assert_close(mixer(x), dense(x))
    every = HipAttention(32, **{**OPTIONS, "dense_queries": None})
    every.load_state_dict(dense.state_dict())
    x = torch.randn(2, 100, 32)
    torch.testing.assert_close(every(x), dense(x))
    assert not torch.allclose(mixer(x), dense(x))


def test_the_first_layers_may_be_dense() -> None:
    model = LanguageModel(
        "hip_attention", vocabulary=8, dim=16, depth=3, mixer_options={"dense_layers": 2, "mask_k": 8, "window": 4}
    )
    assert [layer.mixer.dense_queries for layer in model.stack.layers] == [None, None, 0]


def test_what_is_kept_for_the_backward_pass_is_linear() -> None:
    mixer = HipAttention(32, **OPTIONS)
    kept = [saved_bytes(mixer, torch.randn(1, n, 32, requires_grad=True)) for n in (500, 1000)]
    assert kept[1] < 2.1 * kept[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mask_k": 5}, "mask_k=5 .* multiple of a block's 2 keys"),
        ({"mask_k": 2}, "mask_k=2 .* two or more"),
        ({"mask_k": 0}, "mask_k=0 .* positive whole number"),
        ({"mask_k": 8.0}, "mask_k=8.0 .* positive whole number"),
        ({"window": -1}, "window=-1 .* not negative"),
        ({"representative": "last"}, "representative='last' .* center, first, random"),
        ({"rows": "last"}, "rows='last' .* block, first"),
        ({"nodes": "odd"}, "nodes='odd' .* even, draft"),
        ({"query_stride": 33}, "query_stride=33 .* a block has 32 queries"),
        ({"block_size_q": 0}, "block_size_q=0 .* positive whole number"),
    ],
)
def test_searches_that_are_not_possible(options: dict, says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        HipSearch(**options)


def test_what_the_op_refuses() -> None:
    q, k, v = qkv(20)
    search = HipSearch(mask_k=8, block_size_q=4)
    mask = torch.ones(2, 20, dtype=torch.bool)
    cases = [
        (lambda: hip_mask(q, k[:, :, :10], search), InvalidValue, "as many keys as queries"),
        (lambda: hip_mask(q, k[..., :4], search), InvalidValue, "q and k in width"),
        (lambda: hip_attention(q, k, v[:, :, :19], search), InvalidValue, "k and v in heads and length"),
        (lambda: hip_mask(q[:, :3], k, search), InvalidValue, "must divide those of q"),
        (lambda: hip_mask(q[0], k[0], search), InvalidValue, "4 axes"),
        (lambda: hip_mask(q, k.float(), search), InvalidType, "one floating dtype"),
        (lambda: hip_mask(q, k, search, mask=mask.long()), InvalidType, "mask must be bool"),
        (lambda: hip_mask(q, k, search, mask=mask[:, :9]), InvalidValue, "mask has shape (2, 9)"),
        (lambda: hip_mask(q, k, replace(search, head_group=3)), InvalidValue, "head_group=3"),
        (lambda: hip_attention(q, k, v, search, num_sinks=-1), InvalidValue, "num_sinks=-1"),
        (lambda: hip_attention(q, k, v, search, dense_queries=1.5), InvalidValue, "dense_queries=1.5"),
        (
            lambda: hip_mask(q.requires_grad_(), k, replace(search, representative="random")),
            InvalidValue,
            "needs a generator",
        ),
    ]
    for call, error, says in cases:
        with pytest.raises(error, match=re.escape(says)):
            call()


@pytest.mark.parametrize(
    "options",
    [
        {"num_kv_heads": 3},
        {"head_group": 3},
        {"num_sinks": -1},
        {"dense_queries": -1},
        {"position": "alibi"},
        {"rope_base": 0.0},
        {"mask_k": 1},
        {"causal": False},
    ],
)
def test_options_that_are_not_possible(options: dict) -> None:
    with pytest.raises(InvalidValue, match=next(iter(options))):
        HipAttention(32, **{**OPTIONS, **options})
    with pytest.raises(FoveateError, match="dense_layers=-1"):
        HipAttention.for_layer(0, 2, 32, dense_layers=-1)


def test_a_state_of_another_budget_is_refused() -> None:
    mixer, other = HipAttention(32, **OPTIONS), HipAttention(32, **{**OPTIONS, "mask_k": 16})
    with pytest.raises(InvalidValue, match="kept of the state"):
        mixer.step(torch.zeros(1, 32), other.init_state(1))
