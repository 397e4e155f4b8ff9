"""Block-sparse attention: gathered blocks against the definition, what is seen, lists of blocks, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foveate.errors import InvalidType, InvalidValue
from foveate.measure.isolated import peak_bytes_of
from foveate.measure.op_costs import op_cost
from foveate.ops import backend, block_sparse_gather
from foveate.ops.block_sparse_attention import (
    BlockIndices,
    _flexed,
    block_sparse_attention,
    blocks_to_indices,
    indices_to_blocks,
)
from foveate.ops.sigmoid_attention import sigmoid_attention
from foveate.ops.softmax_attention import softmax_attention
from tests.agreement import agree, examples


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def qkv(length: int, keys: int, heads: int = 4, key_heads: int = 2, batch: int = 2) -> list[Tensor]:
    sizes = ((heads, length, 6), (key_heads, keys, 6), (key_heads, keys, 5))
    return [torch.randn(batch, *size, dtype=torch.float64) for size in sizes]


@st.composite
def attentions(draw: st.DrawFn) -> dict[str, Any]:
    flag = st.booleans()
    torch.manual_seed(draw(st.integers(0, 2**31)))
    group, key_heads, batch = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    length, causal = draw(st.integers(1, 40)), draw(flag)
    window = draw(st.sampled_from((0, 0, 1, 3, 30)))
    keys = length + draw(st.integers(0, 30)) if causal or window else draw(st.integers(1, 60))
    size = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    heads = group * key_heads
    shape = (draw(st.sampled_from((1, batch))), draw(st.sampled_from((1, heads))))
    blocks = torch.rand(*shape, -(-length // size[0]), -(-keys // size[1])) < draw(st.sampled_from((0.0, 0.3, 1.0)))
    q, k, v = qkv(length, keys, heads, key_heads, batch)
    options: dict[str, Any] = {"weights": "sigmoid"} if draw(flag) else {"return_lse": True, "return_block_max": True}
    if "weights" in options and draw(flag):
        options["bias"] = torch.randn(draw(st.sampled_from((1, heads))), dtype=torch.float64)
    if "return_lse" in options and not draw(flag):
        options = {}
    return {
        "q": q,
        "k": k,
        "v": v,
        "blocks": blocks_to_indices(blocks) if draw(flag) else blocks,
        "block_size": size,
        "causal": causal,
        "window": window,
        "sinks": draw(st.sampled_from((0, 0, 1, 4, 90))),
        "mask": torch.rand(batch, keys) < 0.6 if draw(flag) else None,
        "scale": 0.4 if draw(flag) else None,
        **options,
    }


def attend(**arguments: Any) -> list[Tensor]:
    results = block_sparse_attention(**arguments)
    results = list(results) if isinstance(results, tuple) else [results]
    return [r.masked_fill(r == -math.inf, 0.0) for r in results]


@given(attentions(), st.sampled_from((1, 500, 10**6)))
@examples(150)
def test_gathered_blocks_equal_the_definition_with_gradients(arguments: dict[str, Any], cached: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_sparse_gather, "CACHED", cached)
        agree(attend, arguments, torch.float64, "torch")


def test_the_definition_says_who_sees_whom() -> None:
    length, keys, b_q, b_k, window, sinks = 7, 11, 3, 2, 2, 1
    blocks, mask = torch.rand(1, 1, 3, 6) < 0.4, torch.rand(1, keys) < 0.8
    q, k, _ = qkv(length, keys, 1, 1, 1)
    v = torch.eye(keys, dtype=torch.float64)[None, None]
    with backend("reference"):
        p = block_sparse_attention(q, k, v, blocks, block_size=(b_q, b_k), window=window, sinks=sinks, mask=mask)
    for i in range(length):
        place = keys - length + i
        for j in range(keys):
            kept = bool(blocks[0, 0, i // b_q, j // b_k]) or place - window < j <= place or j < sinks
            assert bool(p[0, 0, i, j] > 0) is (kept and j <= place and bool(mask[0, j])), (i, j)


@pytest.mark.parametrize("form", ["reference", "torch", "auto"])
def test_with_all_blocks_it_is_dense_attention(form: str) -> None:
    q, k, v = qkv(20, 33)
    blocks, mask = torch.ones(1, 1, 5, 5, dtype=torch.bool), torch.rand(2, 33) < 0.7
    many_k, many_v = (x.repeat_interleave(2, 1) for x in (k, v))
    with backend(form):
        for causal in (False, True):
            options = {"causal": causal, "mask": mask}
            found = block_sparse_attention(q, k, v, blocks, block_size=(4, 7), **options)
            torch.testing.assert_close(found, softmax_attention(q, many_k, many_v, **options))
            found = block_sparse_attention(q, k, v, blocks, block_size=(4, 7), weights="sigmoid", **options)
            torch.testing.assert_close(found, sigmoid_attention(q, many_k, many_v, **options))


@pytest.mark.parametrize("form", ["reference", "torch", "auto"])
def test_a_query_without_keys_gives_zeros_and_no_gradients(form: str) -> None:
    q, k, v = (x.requires_grad_() for x in qkv(12, 12))
    blocks = torch.rand(2, 4, 3, 3) < 0.5
    blocks[:, :, 1] = False
    with backend(form):
        o, lse = block_sparse_attention(q, k, v, blocks, block_size=4, causal=False, return_lse=True)
    assert (o[:, :, 4:8] == 0).all()
    assert (lse[:, :, 4:8] == -math.inf).all()
    gradients = torch.autograd.grad(o.square().sum() + lse.exp().sum(), (q, k, v))
    assert all(g.isfinite().all() for g in gradients)
    assert (gradients[0][:, :, 4:8] == 0).all()


def test_parts_join_by_their_sums() -> None:
    q, k, v = qkv(30, 30)
    blocks = torch.rand(2, 4, 6, 6) < 0.5
    (a, lse_a), (b, lse_b) = (
        block_sparse_attention(q, k, v, m, block_size=5, causal=False, return_lse=True) for m in (blocks, ~blocks)
    )
    share = torch.sigmoid(lse_a - lse_b).nan_to_num(0.5)[..., None]
    whole = softmax_attention(q, *(x.repeat_interleave(2, 1) for x in (k, v)))
    torch.testing.assert_close(share * a + (1 - share) * b, whole)


@pytest.mark.parametrize("options", [{"return_lse": True}, {"weights": "sigmoid", "bias": torch.zeros(2).double()}])
def test_gradients_by_differences(options: dict[str, Any]) -> None:
    inputs = [x[:1].requires_grad_() for x in qkv(7, 9, 2, 1)]
    blocks, mask = torch.rand(1, 2, 3, 5) < 0.5, torch.tensor([[True] * 6 + [False] + [True] * 2])
    blocks[..., 0] = True

    def run(*x: Tensor) -> Any:
        return block_sparse_attention(*x, blocks, block_size=(3, 2), window=2, mask=mask, **options)

    with backend("torch"):
        assert torch.autograd.gradcheck(run, inputs)
        assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_lists_and_masks_of_blocks() -> None:
    blocks = torch.rand(2, 3, 4, 9) < 0.4
    blocks[0, 0, 0] = False
    lists = blocks_to_indices(blocks)
    assert lists.indices.dtype == lists.counts.dtype == torch.int32
    assert torch.equal(lists.counts.long(), blocks.sum(-1))
    assert lists.indices.shape[-1] == int(blocks.sum(-1).max())
    for place in ((0, 0, 0), (1, 2, 3)):
        n = int(lists.counts[place])
        assert lists.indices[place][:n].tolist() == blocks[place].nonzero().flatten().tolist()
    assert torch.equal(indices_to_blocks(lists, 9), blocks)
    assert blocks_to_indices(blocks, 2).counts.max() == 2
    with pytest.raises(InvalidType, match="bool"):
        blocks_to_indices(blocks.float())
    with pytest.raises(InvalidValue, match="most=0"):
        blocks_to_indices(blocks, 0)


def test_numbers_behind_the_counts_are_not_read() -> None:
    q, k, v = qkv(12, 12)
    lists = blocks_to_indices(torch.rand(1, 1, 3, 3) < 0.5, 3)
    garbage = torch.where(torch.arange(3) < lists.counts[..., None], lists.indices, -77)
    one, two = (
        block_sparse_attention(q, k, v, BlockIndices(i, lists.counts), block_size=4) for i in (lists[0], garbage)
    )
    assert torch.equal(one, two)


def test_later_keys_change_nothing() -> None:
    q, k, v = qkv(40, 40)
    blocks = torch.rand(2, 4, 8, 8) < 0.5
    options = {"block_size": 5, "window": 2}
    before = block_sparse_attention(q, k, v, blocks, **options)
    for t in (0, 7, 33):
        other_k, other_v = k.clone(), v.clone()
        other_k[:, :, t + 1 :] += 1
        other_v[:, :, t + 1 :] -= 1
        after = block_sparse_attention(q, other_k, other_v, blocks, **options)
        assert torch.equal(after[:, :, : t + 1], before[:, :, : t + 1])
        assert (after[:, :, t + 1 :] != before[:, :, t + 1 :]).any()


def test_flex_attention_gives_the_same() -> None:
    q, k, v = (x.float() for x in qkv(40, 50))
    lists, mask = blocks_to_indices(torch.rand(2, 4, 5, 10) < 0.3), torch.rand(2, 50) < 0.7
    rest = (*lists, mask, torch.zeros(()), 8, 5, True, 3, 2, 0.4, False, False)
    expected, lse, _ = block_sparse_gather.gathered(q, k, v, *rest)
    found, found_lse, _ = _flexed(q, k, v, *rest)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_lse, lse)


@pytest.mark.parametrize("lists", [False, True])
def test_compiles_as_one_graph(lists: bool) -> None:
    q, k, v = (x.requires_grad_() for x in qkv(20, 30))
    blocks: Any = torch.rand(2, 1, 5, 5) < 0.5
    blocks = blocks_to_indices(blocks) if lists else blocks

    def run(*x: Tensor) -> Tensor:
        o, lse = block_sparse_attention(*x, blocks, block_size=(4, 6), window=3, return_lse=True)
        return o.sin().sum() + lse.exp().sum()

    torch.compiler.reset()
    for form in ("auto", "torch"):
        with backend(form):
            compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
            one, two = (torch.autograd.grad(f(q, k, v), (q, k, v)) for f in (compiled, run))
        for found, expected in zip(one, two, strict=True):
            torch.testing.assert_close(found, expected)
    torch.compiler.reset()


def test_memory_is_that_of_kept_pairs() -> None:
    setup = """
from foveate.ops import backend
from foveate.ops.block_sparse_attention import BlockIndices, block_sparse_attention
def run(length):
    q, k, v = (torch.randn(1, 2, length, 16, requires_grad=True) for _ in range(3))
    rows = torch.arange(length // 64, dtype=torch.int32)[None, None, :, None]
    blocks = BlockIndices(rows, torch.ones_like(rows[..., 0]))
    with backend("torch"):
        o = block_sparse_attention(q, k, v, blocks, block_size=64, window=64, sinks=4)
        torch.autograd.grad(o.sum(), (q, k, v))
run(64)
"""
    length = 16384
    assert peak_bytes_of(f"run({length})", setup) < length**2 / 4  # a bit for each pair and head


@pytest.mark.parametrize(("causal", "window", "sinks"), [(True, 0, 0), (True, 5, 3), (False, 0, 2), (False, 3, 0)])
def test_the_formula_counts_the_visible_pairs(causal: bool, window: int, sinks: int) -> None:
    blocks = torch.rand(2, 3, 4, 5) < 0.4
    q, k, v = torch.randn(2, 3, 14, 4), torch.randn(2, 3, 24, 4), torch.eye(24).expand(2, 3, 24, 24)
    o = block_sparse_attention(q, k, v, blocks, block_size=(4, 5), causal=causal, window=window, sinks=sinks)
    pairs = block_sparse_gather.visible_pairs(q, k, blocks, None, None, 4, 5, causal, window, sinks)
    assert pairs == int((o > 0).sum()) > 0
    cost = op_cost("block_sparse_attention", pairs=pairs, length=14, key_length=24, d=4, e=6, heads=3, batch=2)
    assert cost.exps == pairs
    assert cost.flops == 2 * pairs * 10


def test_what_does_not_fit_is_refused() -> None:
    q, k, v = (x.float() for x in qkv(12, 12))
    blocks = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    lists = blocks_to_indices(blocks)
    right: dict[str, Any] = {"q": q, "k": k, "v": v, "blocks": blocks, "block_size": 4}
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"q": q[0]}, InvalidValue, "4 axes"),
        ({"k": k[..., :3]}, InvalidValue, "q and k in width"),
        ({"q": q[:, :3]}, InvalidValue, "must divide"),
        ({"q": q[:, :, :0]}, InvalidValue, "empty"),
        ({"k": k.double()}, InvalidType, "one floating dtype"),
        ({"block_size": 0}, InvalidValue, "block_size"),
        ({"block_size": (4, 4, 4)}, InvalidValue, "block_size"),
        ({"window": -1}, InvalidValue, "window=-1"),
        ({"sinks": 1.5}, InvalidValue, "sinks=1.5"),
        ({"k": k[:, :, :8], "v": v[:, :, :8], "blocks": blocks[..., :2]}, InvalidValue, "more queries than keys"),
        ({"mask": torch.ones(2, 12)}, InvalidType, "mask must be bool"),
        ({"mask": torch.ones(2, 11).bool()}, InvalidValue, "mask has shape"),
        ({"weights": "linear"}, InvalidValue, "weights='linear'"),
        ({"bias": 0.0}, InvalidValue, "changes no softmax"),
        ({"weights": "sigmoid", "bias": math.nan}, InvalidValue, "bias=nan"),
        ({"weights": "sigmoid", "bias": torch.zeros(3)}, InvalidValue, "one per head"),
        ({"weights": "sigmoid", "return_lse": True}, InvalidValue, "sigmoids have no sums"),
        ({"blocks": blocks.float()}, InvalidType, "blocks must be bool"),
        ({"blocks": BlockIndices(lists[0].long(), lists[1])}, InvalidType, "int32"),
        ({"blocks": blocks[:, :, :2]}, InvalidValue, "blocks have shape"),
        ({"blocks": blocks.expand(1, 2, 3, 3)}, InvalidValue, "blocks have shape"),
        ({"blocks": BlockIndices(lists[0], lists[1][:, :, :1])}, InvalidValue, "counts"),
        ({"blocks": BlockIndices(lists[0], lists[1] + 1)}, InvalidValue, "between 0 and 3"),
        ({"blocks": BlockIndices(lists[0] + 1, lists[1])}, InvalidValue, "does not exist"),
        ({"blocks": BlockIndices(lists[0].flip(-1), lists[1])}, InvalidValue, "ascend"),
    ]
    block_sparse_attention(**right)
    for change, error, says in wrong:
        with pytest.raises(error, match=says):
            block_sparse_attention(**{**right, **change})
