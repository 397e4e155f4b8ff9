"""S2-Attention: patterns against their definition, what they cover, shards against masks, streams, what is refused."""

from __future__ import annotations

import itertools
import re
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveate.errors import FoveateError, InvalidType, InvalidValue, UnknownName
from foveate.mixers import TokenLayout
from foveate.mixers.s2_attention import S2Attention
from foveate.mixers.softmax_attention import SoftmaxAttention
from foveate.models.language.language_model import LanguageModel
from foveate.ops.block_sparse_attention import BlockIndices, block_sparse_attention, indices_to_blocks
from foveate.ops.s2_pattern import (
    LocalStride,
    combine_attn_partitions,
    is_kv_cache_efficient,
    local_stride_block_mask,
    to_csr,
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def quiet(*args: Any, **options: Any) -> S2Attention:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return S2Attention(*args, **options)


# Patterns -------------------------------------------------------------------------------------------------------------


def test_the_worked_pattern_of_four_heads():
    kept = local_stride_block_mask(4, 96, 16, local_blocks=1, vert_stride=4)
    assert [row[5].nonzero().flatten().tolist() for row in kept] == [[0, 4, 5], [3, 5], [2, 5], [1, 5]]
    assert kept.any(0)[5].all()


def test_both_directions_measure_from_the_edge_of_the_window():
    kept = local_stride_block_mask(2, 16, 2, local_blocks=2, vert_stride=3, homo_head=True, causal=False)
    assert kept.shape == (1, 8, 8)
    assert kept[0, 0].int().tolist() == [1, 1, 0, 0, 1, 0, 0, 1]
    assert kept[0, 5].int().tolist() == [0, 1, 0, 0, 1, 1, 1, 0]


def test_grouped_heads_share_a_pattern_and_the_last_are_dense():
    kept = local_stride_block_mask(8, 96, 16, 2, 3, num_kv_heads=4, num_dense_heads=1)
    for head in range(0, 8, 2):
        assert torch.equal(kept[head], kept[head + 1])
    assert torch.equal(kept[6], torch.ones(6, 6).tril().bool())
    both = local_stride_block_mask(
        4, 96, 16, 1, 3, num_dense_heads=1, causal=False
    )  # the released one has no such form
    assert both[3].all()
    assert torch.equal(both[0], both[2])
    assert not both[0].all()


def test_pieces_of_queries_and_keys_are_pieces_of_the_mask():
    options: dict[str, Any] = {"num_heads": 3, "block_size": 8, "local_blocks": 2, "vert_stride": 3}
    whole = local_stride_block_mask(seqlen=120, **options)
    found = local_stride_block_mask(seqlen=48, kv_seqlen=32, q_start_position=72, kv_start_position=16, **options)
    assert torch.equal(found, whole[:, 9:15, 2:6])
    assert torch.equal(local_stride_block_mask(seqlen=120, past_len=17, **options), whole[:, 3:])


LEGAL = st.fixed_dictionaries(
    {
        "num_kv_heads": st.sampled_from([1, 2, 3, 4, 8]),
        "groups": st.sampled_from([1, 1, 2, 4]),
        "block_size": st.sampled_from([1, 4, 16]),
        "local_blocks": st.integers(1, 4),
        "vert_stride": st.integers(1, 9),
        "homo_head": st.booleans(),
        "num_dense_heads": st.integers(0, 1),
        "head_sliding_step": st.sampled_from([None, None, 0, 1, 2, 3]),
        "head_sliding_offset": st.integers(0, 5),
        "vert_position_type": st.sampled_from([None, "absolute", "relative"]),
        "causal": st.booleans(),
    }
)


def legal(drawn: dict[str, Any]) -> LocalStride:
    options = dict(drawn)
    options["num_heads"] = options["num_kv_heads"] * options.pop("groups")
    if options["homo_head"]:
        options["num_dense_heads"] = 0
    return LocalStride(**options)


@settings(deadline=None, max_examples=150)
@given(drawn=LEGAL, length=st.integers(1, 200))
def test_a_pattern_covers_every_pair_exactly_where_it_says_so(drawn: dict[str, Any], length: int):
    pattern = legal(drawn)
    blocks = -(-length // pattern.block_size)
    full = torch.ones(blocks, blocks).bool()
    union = pattern.blocks(blocks, blocks).any(0)
    whole = torch.equal(union, full.tril() if pattern.causal else full)
    assert pattern.covers(length) == whole
    assert whole or not pattern.covers()


@settings(deadline=None, max_examples=100)
@given(drawn=LEGAL, length=st.integers(1, 200))
def test_lists_of_blocks_and_counts_are_those_of_the_mask(drawn: dict[str, Any], length: int):
    pattern = legal(drawn)
    blocks = -(-length // pattern.block_size)
    rows, group = torch.arange(blocks), pattern.num_heads // pattern.kv_heads
    kept = pattern.blocks(blocks, blocks)
    kept = kept.expand(pattern.num_heads, -1, -1)
    if pattern.sparse_heads and (pattern.absolute <= pattern.causal):
        found = indices_to_blocks(pattern.indices(rows, blocks), blocks)
        assert torch.equal(found, kept[::group][: pattern.sparse_heads])
    if pattern.causal and pattern.absolute:
        assert pattern.cached_blocks(length) == kept[::group, -1].sum(1).tolist()
        pairs = kept.repeat_interleave(pattern.block_size, 1).repeat_interleave(pattern.block_size, 2)
        assert pattern.kept_pairs(length) == pairs[::group, :length, :length].tril().sum((1, 2)).tolist()
        assert is_kv_cache_efficient(kept)


def test_a_row_of_blocks_that_comes_back_is_told():
    kept = torch.eye(4).bool()[None].clone()
    assert is_kv_cache_efficient(kept)
    kept[0, 3, 0] = True  # not needed by rows 1 and 2
    assert not is_kv_cache_efficient(kept)
    assert not is_kv_cache_efficient(kept.int(), 16, 16)
    assert is_kv_cache_efficient(torch.zeros(2, 0, 4))


def test_compressed_rows_are_padded_to_the_longest_head():
    crow, col = to_csr(torch.tensor([[[True, False], [True, True]], [[True, False], [False, True]]]))
    assert crow.tolist() == [[0, 1, 3], [0, 1, 2]]
    assert col.tolist() == [[0, 0, 1], [0, 1, -1]]
    assert crow.dtype == col.dtype == torch.int32


def test_parts_of_the_keys_put_together_are_the_whole():
    q, k, v = (torch.randn(2, 4, 96, 8, dtype=torch.float64) for _ in range(3))
    kept = local_stride_block_mask(4, 96, 16, 2, 3)[None]
    expected, sums = block_sparse_attention(q, k, v, kept, block_size=16, return_lse=True)  # type: ignore[misc]
    for cuts in ([32], [16, 80], [16, 32, 64]):
        parts = []
        for start, stop in itertools.pairwise([0, *cuts, 96]):
            mask = torch.zeros(2, 96, dtype=torch.bool)
            mask[:, start:stop] = True  # early queries see nothing of the later parts
            parts.append(block_sparse_attention(q, k, v, kept, block_size=16, mask=mask, return_lse=True))
        found, lse = combine_attn_partitions(*parts, return_lse=True)  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(lse, sums)
    nothing = torch.zeros(1, 2, 3), torch.full((1, 2), -torch.inf)
    assert (combine_attn_partitions(nothing, nothing) == 0).all()  # type: ignore[operator]


# The mixer ------------------------------------------------------------------------------------------------------------


def by_definition(mixer: S2Attention, x: Tensor) -> Tensor:
    """The layer with a mask of all pairs."""
    n, pattern = x.shape[1], mixer.pattern
    q, k, v = mixer._project(x, torch.arange(n))
    group = pattern.num_heads // pattern.kv_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    blocks = -(-n // pattern.block_size)
    kept = pattern.blocks(blocks, blocks).repeat_interleave(pattern.block_size, 1)
    kept = kept.repeat_interleave(pattern.block_size, 2)[:, :n, :n]
    kept = kept.tril() if pattern.causal else kept
    weights = (q @ k.mT / mixer.head_dim**0.5).masked_fill(~kept, -torch.inf).softmax(-1)
    return mixer.out_proj((weights @ v).transpose(1, 2).flatten(2))


VARIANTS: list[dict[str, Any]] = [
    {"num_heads": 4, "vert_stride": 4},
    {"num_heads": 4, "num_kv_heads": 2, "vert_stride": 3, "local_blocks": 1},
    {"num_heads": 4, "num_dense_heads": 1, "vert_stride": 3, "head_sliding_offset": 1},
    {"num_heads": 8, "num_kv_heads": 4, "num_dense_heads": 2, "local_blocks": 2},
    {"num_heads": 4, "homo_head": True, "vert_stride": 5, "head_sliding_offset": 2},
    {"num_heads": 2, "vert_stride": 5, "head_sliding_step": 2, "local_blocks": 3},
    {"num_heads": 2, "dense_every": 1},
    {"num_heads": 4, "vert_stride": 1, "local_blocks": 1},
]


def small(options: dict[str, Any]) -> S2Attention:
    return quiet(32, **{"block_size": 4, "small_blocks": True, "local_blocks": 2, **options}).double().eval()


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n", [1, 3, 8, 43])
def test_shards_are_a_mask_of_pairs_with_gradients(options: dict[str, Any], causal: bool, n: int):
    mixer, x = small({**options, "causal": causal}), torch.randn(2, n, 32, dtype=torch.float64, requires_grad=True)
    weights = [x, *mixer.parameters()]
    answers = []
    for y in (mixer(x), by_definition(mixer, x)):
        answers.append((y, *torch.autograd.grad(y.sin().sum(), weights)))
    for found, expected in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_stride_one_and_a_window_over_everything_are_dense_attention():
    dense, x = SoftmaxAttention(32, num_heads=4, causal=True, position="rope"), torch.randn(2, 90, 32)
    same: list[dict[str, Any]] = [
        {"vert_stride": 1, "local_blocks": 1},
        {"vert_stride": 4, "local_blocks": 6},
        {"dense_every": 1},
    ]
    for options in same:
        mixer = S2Attention(32, num_heads=4, block_size=16, **options)
        mixer.load_state_dict(dense.state_dict())
        torch.testing.assert_close(mixer(x), dense(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("masked", [False, True])
def test_streams_of_any_split_equal_forward(options: dict[str, Any], masked: bool):
    mixer, generator = small(options), torch.Generator().manual_seed(3)
    x = torch.randn(3, 97, 32, dtype=torch.float64)
    for splits in ([30, *[1] * 20, 17, 1, 1, 28], [1, 1, 1, 2, 41, 11, *[1] * 40], [96, 1], [4, 4, 8, 1, 80]):
        mask = None
        if masked:
            mask = torch.rand(3, 97, generator=generator) < 0.7
            mask[0, :13], mask[1] = False, True  # padding in front, and none
        with torch.no_grad():
            expected, state, at = mixer(x, mask=mask), mixer.init_state(3), 0
            for n in splits:
                part = slice(at, at + n)
                if n == 1 and mask is None:
                    y, state = mixer.step(x[:, at], state)
                    y = y[:, None]
                else:
                    y, state = mixer.prefill(x[:, part], state, None if mask is None else mask[:, part])
                torch.testing.assert_close(y, expected[:, part], rtol=1e-9, atol=1e-10)
                at += n


def test_a_stream_with_gradients_equals_forward():
    mixer, x = small(VARIANTS[1]), torch.randn(2, 30, 32, dtype=torch.float64, requires_grad=True)
    state, parts = mixer.init_state(2), []
    for n in (7, 1, 1, 1, 1, 9, 10):
        y, state = mixer.prefill(x[:, sum(p.shape[1] for p in parts) :][:, :n], state)
        parts.append(y)
    weights = [x, *mixer.parameters()]
    answers = [torch.autograd.grad(y.sin().sum(), weights) for y in (torch.cat(parts, 1), mixer(x))]
    for found, expected in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("length", [1, 63, 64, 200, 1000, 4096])
def test_a_state_holds_what_the_pattern_needs_and_no_more(length: int):
    mixer = S2Attention(16, num_heads=4, num_kv_heads=2, block_size=16, local_blocks=3, vert_stride=2)
    with torch.no_grad():
        _, state = mixer.prefill(torch.randn(2, length, 16), mixer.init_state(2))
    assert state.sparse is not None
    blocks = max(mixer.pattern.cached_blocks(length // 16 * 16 + 1))
    assert state.sparse.keys.shape == (2, 2, blocks * 16, 4)
    needed = min(-(-length // 16), 3 + -(-(-(-length // 16) - 3) // 2))
    assert abs(blocks - needed) <= 1
    assert state.nbytes == 2 * 2 * 2 * blocks * 16 * 4 * 4 + 2 * 8 + 8


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("options", VARIANTS[:4])
def test_packed_documents_are_those_alone(options: dict[str, Any], causal: bool):
    mixer, x = small({**options, "causal": causal}), torch.randn(2, 60, 32, dtype=torch.float64)
    segments = torch.tensor([[0] * 9 + [1] * 30 + [0] * 21, [5] * 40 + [2] * 1 + [3] * 19])
    mask = torch.rand(2, 60) < 0.8
    places = mask.cumsum(1) - 1
    y = mixer(x, mask=mask, layout=TokenLayout((60,), segments=segments, positions=places))
    cuts = [[0, 9, 39, 60], [0, 40, 41, 60]]
    for b in range(2):
        for start, stop in itertools.pairwise(cuts[b]):
            real = mask[b, start:stop]
            if real.any():  # only distances matter to RoPE, whose angles are float32
                alone = mixer(x[b : b + 1, start:stop][:, real])
                torch.testing.assert_close(y[b : b + 1, start:stop][:, real], alone, rtol=1e-6, atol=1e-7)
    assert (y[~mask] == 0).all()


def test_layers_of_a_network_are_dense_every_so_often():
    model = LanguageModel("s2_attention", vocabulary=32, dim=32, depth=4, context=64, mixer_options={"dense_every": 2})
    assert [block.mixer.dense for block in model.stack.layers] == [False, True, False, True]
    tokens = torch.randint(32, (2, 50))
    with torch.no_grad():
        expected, state = model(tokens), model.init_state(2)
        first, state = model.prefill(tokens[:, :37], state)
        assert state.stack.layers[1].sparse is None
        assert state.stack.layers[0].dense is None
        later = []
        for t in range(37, 50):
            y, state = model.step(tokens[:, t], state)
            later.append(y)
    torch.testing.assert_close(torch.cat([first, torch.stack(later, 1)], 1), expected, rtol=1e-4, atol=1e-5)


def test_the_published_configuration_covers_the_context():
    mixer = S2Attention.of_size("phi-3-small", 256)
    assert mixer.pattern == LocalStride(32, 64, 16, 8, num_kv_heads=8)
    assert mixer.pattern.covers()
    assert not mixer.dense
    assert S2Attention.of_size("phi-3-small", 256, layer=1).dense
    with pytest.raises(UnknownName, match="phi-3-small"):
        S2Attention.of_size("phi-3")


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 8, 16, 32])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_default_covers_the_context_whatever_the_heads(heads: int, groups: int):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixer = S2Attention(heads * groups * 2, num_heads=heads * groups, num_kv_heads=heads)
    assert mixer.pattern.covers()
    assert mixer.pattern.blocks(40, 40).any(0).equal(torch.ones(40, 40).tril().bool())


def test_what_no_head_covers_is_told():
    with pytest.warns(UserWarning, match=re.escape("4 of 8 blocks are on no head's stripes")):
        S2Attention(64, num_heads=32, num_kv_heads=4, vert_stride=8)
    with pytest.warns(UserWarning, match="3 of 4"):
        S2Attention(64, num_heads=4, homo_head=True)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"block_size": 48}, "block_size=48 is not possible: it must be a power of two of at least 16"),
        ({"block_size": 8}, "or small_blocks=True"),
        ({"vert_stride": 0}, "vert_stride=0 is not possible"),
        ({"local_blocks": 0}, "local_blocks=0 is not possible: the window has at least the query's own block"),
        ({"num_kv_heads": 3}, "num_kv_heads=3 is not possible: it must divide num_heads=4"),
        ({"num_dense_heads": 5}, "num_dense_heads=5 is not possible: it must lie in 0 ... 4"),
        ({"num_dense_heads": 1, "homo_head": True}, "with homo_head=True all heads are alike"),
        ({"head_sliding_step": -1}, "head_sliding_step=-1"),
        ({"dense_every": 0}, "dense_every=0 is not possible"),
        ({"num_heads": 32}, "RoPE turns channel pairs"),
        ({"position": "alibi"}, "it must be one of rope, none"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], says: str):
    with pytest.raises(InvalidValue, match=re.escape(says)):
        S2Attention(32, **{"num_heads": 4, **options})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seqlen": 0}, "seqlen=0"),
        ({"kv_seqlen": 0}, "kv_seqlen=0"),
        ({"past_len": 64}, "there are 64 queries, and one must be left"),
        ({"q_start_position": 8}, "q_start_position=8 is not possible: sequences are cut between blocks"),
        ({"kv_start_position": -16}, "kv_start_position=-16"),
        ({"past_len": 1, "q_start_position": 16}, "give one of them"),
        ({"local_blocks": (1, 2)}, "local_blocks=(1, 2) is not possible: the window has at least"),
        ({"local_blocks": (0, 2), "causal": False}, "one number, 0 or more, or two positive ones"),
        ({"vert_position_type": "left"}, "it must be 'absolute', 'relative' or None"),
        ({"head_sliding_offset": 0.5}, "head_sliding_offset=0.5"),
        ({"num_heads": 0}, "num_heads=0"),
    ],
)
def test_patterns_that_are_refused(options: dict[str, Any], says: str):
    with pytest.raises(FoveateError, match=re.escape(says)):
        local_stride_block_mask(**{"num_heads": 4, "seqlen": 64, "block_size": 16, **options})
    with pytest.raises(InvalidType, match="no short list"):
        LocalStride(2, causal=False, vert_position_type="absolute").indices(torch.arange(3), 3)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(InvalidValue, match="not nothing"):
        combine_attn_partitions()
    with pytest.raises(InvalidValue, match=re.escape("[(1, 2, 3), (1, 3)]")):
        combine_attn_partitions((torch.zeros(1, 2, 3), torch.zeros(1, 3)))


def test_states_of_other_patterns_are_refused():
    made = {
        n: quiet(32, num_heads=4, block_size=16, **n_options)
        for n, n_options in enumerate(
            [{}, {"local_blocks": 2}, {"vert_stride": 2}, {"head_sliding_offset": 1}, {"num_dense_heads": 1}]
        )
    }
    for one, other in itertools.permutations(made.values(), 2):
        with pytest.raises((InvalidValue, InvalidType), match=r"S2Attention: .*state"):
            one.step(torch.zeros(1, 32), other.init_state(1))


def test_lists_are_no_matrix_of_blocks():
    pattern = LocalStride(4, local_blocks=2, vert_stride=16)
    found = pattern.indices(torch.arange(1024), 1024)
    assert isinstance(found, BlockIndices)
    assert found.indices.shape == (4, 1024, 2 + 64)
