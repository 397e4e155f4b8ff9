"""Claims of "Efficient LLM Training and Serving with Heterogeneous Context Sharding ..." (arXiv 2407.17678)."""

from __future__ import annotations

import itertools
import math
import random
import warnings
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..measure.flops import count_flops
from ..mixers import Mixer
from ..mixers.kv_cache import KVCache
from ..mixers.s2_attention import S2Attention, S2State, ShardCache
from ..mixers.s2_attention.cache import counted, settled
from ..mixers.softmax_attention import SoftmaxAttention
from ..mixers.window_attention import WindowAttention
from ..ops import backend
from ..ops.block_sparse_attention import BlockIndices, block_sparse_attention
from ..ops.s2_pattern import LocalStride, combine_attn_partitions, is_kv_cache_efficient
from . import Measurement, claim
from ._processor import cpu_seconds
from ._recall import RecallNet

#: Blocks of 64, a window of 16 of them, one of 16 before: the paper's scale.
PAPER = LocalStride(16, block_size=64, local_blocks=16, vert_stride=16)
LONG = 131_072


def _deviation(found: Tensor, expected: Tensor) -> float:
    """Largest deviation relative to the largest expected magnitude."""
    return float((found.double() - expected.double()).detach().abs().max() / expected.double().detach().abs().max())


@claim(
    "s2_attention",
    kind="exact",
    says="Each head sees a strided shard, and the union of all shards is the full context when heads have at least as "
    "many shifts as the stride; equal heads lose it.",
)
def union_of_shards_is_the_context() -> Measurement:
    """500 random patterns, grouped-query heads among them: those whose union of blocks is not the whole triangle though
    ``covers`` says so, or the other way round. Seen failing (77) with shifts counted by heads of queries, and (218)
    with one stripe for all heads."""
    wrong = lost = 0
    for seed in range(500):
        draw = random.Random(seed)
        kv_heads, stride = draw.randint(1, 8), draw.randint(1, 8)
        pattern = LocalStride(
            kv_heads * draw.choice((1, 2, 4)),
            block_size=16,
            local_blocks=draw.randint(1, 4),
            vert_stride=stride,
            num_kv_heads=kv_heads,
            head_sliding_offset=draw.randint(0, 3),
        )
        whole = torch.ones(40, 40).tril().bool()
        covered = bool(torch.equal(pattern.blocks(40, 40).any(0), whole))
        enough = len({-h * max(1, stride // pattern.num_heads) % stride for h in range(kv_heads)}) == stride
        wrong += covered != pattern.covers() or covered != enough
        alike = replace(pattern, homo_head=True)
        lost += stride > 1 and not alike.covers() and not torch.equal(alike.blocks(40, 40).any(0), whole)
    passed = wrong == 0 and lost > 400
    return Measurement(wrong, 0, passed, f"of 500 unions not what is said; {lost} lose it with equal heads")


@claim(
    "s2_attention",
    kind="exact",
    says="The kernel is exact: outputs, normalisers and gradients are those of masked softmax, and stride 1 is dense "
    "causal attention.",
)
def kernel_is_exact() -> Measurement:
    """Four patterns at a length that no block divides, in float32. Seen failing (1.1)
    with the stripes of the next head."""
    worst, n = 0.0, 150
    for heads, kv_heads, local, stride in ((4, 4, 2, 4), (8, 4, 1, 3), (4, 2, 3, 2), (4, 4, 1, 1)):
        pattern = LocalStride(heads, 16, local, stride, num_kv_heads=kv_heads)
        q = torch.randn(2, heads, n, 16, requires_grad=True)
        k, v = (torch.randn(2, kv_heads, n, 16, requires_grad=True) for _ in range(2))
        found = pattern.indices(torch.arange(10), 10)
        lists = BlockIndices(*(x.repeat_interleave(heads // kv_heads, 0)[None] for x in found))
        ours = block_sparse_attention(q, k, v, lists, block_size=16, return_lse=True)
        tokens = torch.arange(n)
        i, j = tokens[:, None], tokens
        stripes = torch.stack([(j // 16 + h // (heads // kv_heads)) % stride == 0 for h in range(heads)])[:, None]
        seen = (stripes | (i // 16 - j // 16 < local)) & (j <= i)  # written down once more
        scores = q @ k.repeat_interleave(heads // kv_heads, 1).mT / 4
        scores = scores.masked_fill(~(seen if stride > 1 else j <= i), -torch.inf)
        theirs = (scores.softmax(-1) @ v.repeat_interleave(heads // kv_heads, 1), scores.logsumexp(-1))
        for a, b in zip(ours, theirs, strict=True):
            worst = max(worst, _deviation(a, b))
        gradients = [torch.autograd.grad(o.sin().sum() + lse.sum(), (q, k, v)) for o, lse in (ours, theirs)]
        worst = max([worst, *itertools.starmap(_deviation, zip(*gradients, strict=True))])
    return Measurement.at_most(worst, 1e-5, "largest relative deviation of outputs, normalisers and gradients; at most")


@claim(
    "s2_attention",
    kind="exact",
    says="The cache shrinks for free: a block that left the pattern is never needed again, and decoding with the "
    "smaller cache gives the same output.",
)
def cache_shrinks_for_free() -> Measurement:
    """2,000 tokens in blocks of 16, four heads on two of keys and values: a stream against the whole sequence. Seen
    failing (0.29) with stripes that are dropped with the window."""
    mixer, x = S2Attention(32, num_heads=4, num_kv_heads=2, block_size=16, local_blocks=3), torch.randn(2, 2000, 32)
    with torch.no_grad():
        expected, state, parts = mixer(x), mixer.init_state(2), []
        for piece in x[:, :1960].split([700, 100, 1160], 1):
            y, state = mixer.prefill(piece, state)
            parts.append(y)
        for t in range(1960, 2000):
            y, state = mixer.step(x[:, t], state)
            parts.append(y[:, None])
    worst = _deviation(torch.cat(parts, 1), expected)
    assert state.sparse is not None
    blocks, kept = 125, state.sparse.keys.shape[2] / 16
    needed = min(blocks, 3 + -(-(blocks - 3) // 2))
    efficient = is_kv_cache_efficient(mixer.pattern.blocks(blocks, blocks))
    detail = f"largest relative deviation; at most, with {kept:g} blocks of {blocks} in a head's cache, {needed} +- 1"
    return Measurement(worst, 1e-5, worst <= 1e-5 and efficient and abs(kept - needed) <= 1, detail)


@claim("s2_attention", kind="exact", says="Parts of the keys, combined by their normalisers, are the whole.")
def parts_combine() -> Measurement:
    """Two to four aligned parts, in float32. Seen failing (0.75) with parts that all weigh the same."""
    q, k, v = (torch.randn(2, 4, 128, 16) for _ in range(3))
    kept, worst = LocalStride(4, 16, 2, 4).blocks(8, 8)[None], 0.0
    whole = block_sparse_attention(q, k, v, kept, block_size=16)
    for cuts in ([0, 64, 128], [0, 16, 80, 128], [0, 32, 64, 96, 128]):
        parts = []
        for start, stop in itertools.pairwise(cuts):
            mask = torch.zeros(2, 128, dtype=torch.bool)
            mask[:, start:stop] = True
            parts.append(block_sparse_attention(q, k, v, kept, block_size=16, mask=mask, return_lse=True))
        worst = max(worst, _deviation(combine_attn_partitions(*parts), whole))  # type: ignore[arg-type]
    return Measurement.at_most(worst, 1e-5, "largest relative deviation; at most")


@claim(
    "s2_attention",
    kind="scaling",
    says="Attention is up to 25.3 times faster than FlashAttention-2 at 128k tokens: dense attention has 12.5 to 13.5 "
    "times the pairs with a window of 16 blocks and a stride of 16.",
)
def pairs_at_the_papers_scale() -> Measurement:
    """Counted, blocks of 64; a speed-up is bound by this. Seen failing (7.2) at a stride of 8."""
    dense = LONG * (LONG + 1) // 2
    others = LocalStride(32, 64, 16, 32), LocalStride(15, 64, 1, 15)
    ratio, wide, narrow = (dense * p.num_heads / sum(p.kept_pairs(LONG)) for p in (PAPER, *others))
    detail = (
        f"times the pairs; 12.5 to 13.5. A stride of 32: {wide:.1f}; of 15, and a window of one block: {narrow:.1f}"
    )
    return Measurement(ratio, 12.5, 12.5 <= ratio <= 13.5, detail)


@claim(
    "s2_attention",
    kind="scaling",
    timed=True,
    says="Attention is faster than dense attention: at 16,384 tokens, a stride of 16 and a window of 4 blocks, at "
    "least three times on a CPU.",
)
def faster_than_dense_attention() -> Measurement:
    """Processor time of the forward pass, 4 heads of width 64. Seen failing (2.4, by our kernel) with a stride of 1."""
    q, k, v = (torch.randn(1, 4, 16_384, 64) for _ in range(3))
    found = LocalStride(4, 64, 4, 16).indices(torch.arange(256), 256)
    lists = BlockIndices(found.indices[None], found.counts[None])
    with torch.no_grad():
        ours = cpu_seconds(lambda: block_sparse_attention(q, k, v, lists, block_size=64), 2)
        theirs = cpu_seconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True), 1)
    return Measurement.at_least(theirs / ours, 3.0, "times faster than scaled_dot_product_attention; at least")


@claim(
    "s2_attention",
    kind="scaling",
    says="Inference is up to ten times as fast: at 128k tokens a step reads and keeps a tenth of the keys and values.",
)
def a_step_reads_a_tenth() -> Measurement:
    """Counted FLOPs of a step, projections included, and bytes of the state, against the mixer softmax_attention. Seen
    failing (7.5) at a stride of 8."""
    n, heads = LONG - 1, PAPER.num_heads
    dense = SoftmaxAttention(64, num_heads=heads, causal=True, position="rope")
    ours = S2Attention(64, num_heads=heads, block_size=64, local_blocks=16, vert_stride=16)
    k = torch.zeros(1, heads, n, 4)
    with torch.no_grad(), backend("torch"):
        states = []
        empty = ShardCache.empty(ours.pattern, 1, 4, "cpu", torch.float32)
        states.append(S2State(settled(ours.pattern, empty, k, k, counted(empty, n, None)), None))
        states.append(KVCache.empty(1, heads, 4, "cpu", torch.float32).extend(k, k, None))
        token, pairs = torch.zeros(1, 64), zip((ours, dense), states, strict=True)
        flops = [count_flops(lambda m=m, s=s: m.step(token, s)) for m, s in pairs]
    work, memory = flops[1] / flops[0], states[1].nbytes / states[0].nbytes
    return Measurement.at_least(
        min(work, memory), 10.0, f"{work:.1f} times less work, {memory:.1f} less memory; at least"
    )


def _needles(rows: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens ``(rows, length)``, the values to say, and where they stand: 16 words of noise, 16 values, a marker before
    the value, and a last token that asks."""
    tokens = torch.randint(16, (rows, length), generator=generator)
    place = torch.randint(length - 2, (rows, 1), generator=generator)
    value = torch.randint(16, 32, (rows, 1), generator=generator)
    tokens = tokens.scatter(1, place, 32).scatter(1, place + 1, value)
    tokens[:, -1] = 33
    return tokens, value[:, 0], place[:, 0]


def _needle_accuracy(mixer: Mixer, seed: int, far: int, length: int = 128, steps: int = 400) -> tuple[float, float]:
    """Shares of values that are found in 1,000 new sequences: of all, and of those ``far`` tokens back."""
    net, generator = RecallNet(mixer, 34), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)

    def said(tokens: Tensor) -> Tensor:
        return net(tokens, torch.full((len(tokens), 1), length - 1))[:, 0]

    for _ in range(steps):
        tokens, value, _ = _needles(32, length, generator)
        loss = F.cross_entropy(said(tokens), value)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        tokens, value, place = _needles(1000, length, generator)
        right = (said(tokens).argmax(-1) == value).double()
    return float(right.mean()), float(right[place < length - far].mean())


@claim(
    "s2_attention",
    kind="learned",
    says="Needles are retrieved over the whole context: heads with different stripes find what equal stripes or a "
    "window alone miss.",
)
def needles_are_found() -> Measurement:
    """A value behind a marker among 128 tokens, one layer of four heads, blocks of 4, a window of 2 of them, a stride
    of 4; three seeds. The sliding window is as long as the shards on average. Seen failing (0.34) with equal stripes in
    the place of different ones."""
    options = {"num_heads": 4, "block_size": 4, "small_blocks": True, "local_blocks": 2, "position": "none"}
    found: dict[str, list[tuple[float, float]]] = {"shards": [], "equal": [], "window": []}
    pattern = LocalStride(4, 4, 2, 4)
    window = round(sum(pattern.kept_pairs(128)) / 4 / 128)
    for seed in range(3):
        torch.manual_seed(seed)
        found["shards"].append(_needle_accuracy(S2Attention(64, **options), seed, 2 * window))  # type: ignore[arg-type]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells what this is about
            alike = S2Attention(64, **options, vert_stride=4, homo_head=True)  # type: ignore[arg-type]
        found["equal"].append(_needle_accuracy(alike, seed, 2 * window))
        sliding = WindowAttention(64, num_heads=4, window=window, position="none")
        found["window"].append(_needle_accuracy(sliding, seed, 2 * window))
    ours, equal = (sum(a for a, _ in found[name]) / 3 for name in ("shards", "equal"))
    beyond = sum(b for _, b in found["window"]) / 3
    detail = (
        f"share of needles found, 3 seeds; at least. Equal stripes {equal:.2f} (at most 0.8 of it), a window of "
        f"{window} {beyond:.2f} of those beyond it (at most 0.2)"
    )
    return Measurement(ours, 0.95, ours >= 0.95 and equal <= 0.8 * ours and beyond <= 0.2, detail)


@claim(
    "s2_attention", kind="needs-pretrained", says="Models trained with it are as good as those with dense attention."
)
def as_good_as_dense_models() -> Measurement:
    """Cannot be checked here."""
    return Measurement(math.nan, 1.0, False, "not measured: it needs a model of 1.3B parameters and 300B tokens.")
