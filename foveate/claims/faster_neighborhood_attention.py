"""Claims of "Faster Neighborhood Attention" (arXiv 2403.04690)."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..measure.flops import count_flops
from ..measure.isolated import peak_bytes_of
from ..ops import backend
from ..ops.neighborhood_attention import neighborhood_attention, neighborhood_mask
from ..ops.neighborhood_windows import axes_of, boxes
from . import Measurement, claim


@claim(
    "faster_neighborhood_attention",
    kind="exact",
    says="It spans from a band of two keys to self attention, by the window alone.",
)
def window_spans_to_self_attention() -> Measurement:
    """Seen failing with a window that is cut, not shifted, at the edges."""
    worst = 0.0
    for grid in ((40,), (7, 9), (4, 5, 6)):
        q, k, v = (torch.randn(2, 3, *grid, 8, dtype=torch.float64) for _ in range(3))
        flat = [m.flatten(2, -2) for m in (q, k, v)]
        dense = F.scaled_dot_product_attention(*flat).view(q.shape)
        band = F.scaled_dot_product_attention(*flat, attn_mask=neighborhood_mask(grid, 2)).view(q.shape)
        for window, expected in ((grid, dense), (2, band)):
            found = neighborhood_attention(q, k, v, window)
            worst = max(worst, float((found - expected).abs().max()))  # type: ignore[operator]
    return Measurement.at_most(worst, 1e-12, "largest deviation from SDPA, whole window and window 2, 1 to 3 axes")


@claim(
    "faster_neighborhood_attention",
    kind="exact",
    says="The fused form equals dense attention under the mask, with all three gradients.",
)
def fused_equals_dense() -> Measurement:
    """Seen failing with the leader of an even stride group taken to the left of its middle."""
    worst, chance = 0.0, random.Random(0)
    for _ in range(200):
        rank = chance.randint(1, 3)
        window = tuple(chance.randint(2, 4) for _ in range(rank))
        dilation = tuple(chance.randint(1, 2) for _ in range(rank))
        grid = tuple(w * d + chance.randint(0, 3) for w, d in zip(window, dilation, strict=True))
        options: dict[str, Any] = {"dilation": dilation, "stride": tuple(chance.randint(1, w) for w in window)}
        options["causal"] = tuple(chance.random() < 0.4 for _ in range(rank))
        given = [torch.randn(1, 2, *grid, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
        found = neighborhood_attention(*given, window, **options)
        flat = [m.flatten(2, -2) for m in given]
        expected = F.scaled_dot_product_attention(*flat, attn_mask=neighborhood_mask(grid, window, **options))
        weights = torch.randn(expected.shape, dtype=torch.float64)
        for one, other in zip(
            (found, *torch.autograd.grad(found, given, weights.view(found.shape))),  # type: ignore[union-attr]
            (expected.view(given[0].shape), *torch.autograd.grad(expected, given, weights)),
            strict=True,
        ):
            worst = max(worst, float((one - other).detach().abs().max()))
    return Measurement.at_most(
        worst, 1e-10, "largest deviation over 200 draws of grid, window, dilation, stride, causality"
    )


@claim(
    "faster_neighborhood_attention",
    kind="exact",
    says="Every query sees exactly the product of the windows; on a causal axis min(p + 1, w) keys.",
)
def rows_have_their_keys() -> Measurement:
    """Seen failing with a window that is cut at the edges."""
    wrong = 0
    for grid, window, dilation, stride in (
        ((9, 14), (4, 3), (2, 3), (2, 1)),
        ((31,), (6,), (1,), (5,)),
        ((5, 7, 6), (3, 2, 5), 1, 1),
    ):
        rows = neighborhood_mask(grid, window, dilation=dilation, stride=stride).sum(1)
        wrong += int((rows != math.prod(window)).sum())
    rows = neighborhood_mask((31,), 6, causal=True).sum(1)
    wrong += int((rows != (torch.arange(31) + 1).clamp(max=6)).sum())
    return Measurement.at_most(wrong, 0, "queries with another number of keys")


@claim(
    "faster_neighborhood_attention",
    kind="exact",
    says="Along a causal axis nothing of what comes later reaches an output.",
)
def causal_axes_do_not_leak() -> Measurement:
    """Seen failing with the end of a causal window one further."""
    q, k, v = (torch.randn(1, 2, 12, 9, 8) for _ in range(3))
    changed = 0
    for axis, t in ((0, 5), (0, 11), (1, 1), (1, 4)):
        causal = (axis == 0, axis == 1)
        later = (slice(None),) * (2 + axis) + (slice(t, None),)
        before = (slice(None),) * (2 + axis) + (slice(0, t),)
        others = [m.clone() for m in (q, k, v)]
        for m in others:
            m[later] = torch.randn_like(m[later])
        one, two = (_attend(*given, (4, 3), stride=(3, 2), causal=causal) for given in ((q, k, v), others))
        changed += int((one[before] != two[before]).sum())
    return Measurement.at_most(changed, 0, "outputs before the change that differ in any bit")


def _attend(*given: Any, **options: Any) -> Tensor:
    found = neighborhood_attention(*given, **options)
    return found if isinstance(found, Tensor) else found[0]


@claim(
    "faster_neighborhood_attention",
    kind="scaling",
    says="Cost is linear in the number of tokens, where dense attention's is quadratic.",
)
def cost_is_linear() -> Measurement:
    """Seen failing (exponent 2) with the definition in place of the boxes."""
    exponents = []
    for small, large, window in (((32, 32), (128, 128), 7), ((1024,), (16384,), 65)):
        q = [torch.empty(1, 1, *grid, 16, device="meta") for grid in (small, large)]
        flops = [count_flops(lambda m=m, w=window: neighborhood_attention(m, m, m, w)) for m in q]
        exponents.append(math.log(flops[1] / flops[0]) / math.log(q[1].numel() / q[0].numel()))
    found = ", ".join(f"{e:.3f}" for e in exponents)
    return Measurement.at_most(max(exponents), 1.15, f"exponents of FLOPs in tokens, 2-D and 1-D: {found}")


@claim("faster_neighborhood_attention", kind="scaling", says="The fused form's memory does not grow with the window.")
def memory_is_constant() -> Measurement:
    """Seen failing (36) with the gathered keys of every window held at once."""
    setup = """
from foveate.ops.neighborhood_attention import neighborhood_attention
q, k, v = (torch.randn(1, 1, 96, 96, 32) for _ in range(3))
neighborhood_attention(q, k, v, 3)
"""
    peaks = [peak_bytes_of(f"neighborhood_attention(q, k, v, {w})", setup) for w in (9, 33)]
    sizes = " and ".join(f"{p / 2**20:.1f} MiB" for p in peaks)
    # Resident memory is coarse, so what one query's weights would be is the yardstick: 4 bytes a pair.
    share = max(0, peaks[1] - peaks[0]) / (4 * 96**2 * (33**2 - 9**2))
    return Measurement.at_most(share, 0.25, f"growth over that of stored weights, windows 9 and 33; peaks {sizes}")


@claim(
    "faster_neighborhood_attention",
    kind="scaling",
    says="Boxes of 8 x 8 queries touch less than 15 % of all pairs at 64 x 64 with a window of 13.",
)
def tiles_touch_little() -> Measurement:
    """Seen failing (20 %) with boxes of 20 x 20."""
    axes = axes_of((64, 64), 13)
    touched = sum(box.seen.numel() for box in boxes(axes, 8))
    return Measurement.at_most(touched / 64**4, 0.15, "share of all pairs that lie in some box of queries and keys")


@claim(
    "faster_neighborhood_attention",
    kind="exact",
    says="Windows, dilation and causality may differ from axis to axis: the mask is their product.",
)
def axes_are_independent() -> Measurement:
    """Seen failing with the first axis fastest."""
    with backend("reference"):
        first, second = neighborhood_mask((6,), 2, dilation=3), neighborhood_mask((8,), 5, causal=True)
        both = neighborhood_mask((6, 8), (2, 5), dilation=(3, 1), causal=(False, True))
    product = (first[:, None, :, None] & second[None, :, None, :]).reshape(both.shape)
    return Measurement.at_most(int((both != product).sum()), 0, "pairs in which mask and product differ")


@claim(
    "faster_neighborhood_attention",
    kind="needs-pretrained",
    says="On an A100, GEMM kernels are 895 % (1-D) and 272 % (2-D) faster than naive CUDA kernels in full precision, "
    "fused ones 1607 % and 581 % in half precision.",
)
def speed_on_gpus() -> Measurement:
    """Cannot be checked here."""
    return Measurement(math.nan, 1.0, False, "not measured: it needs an A100; CPU times are in benchmarks/results.md.")
