"""Claims of "Attention Is All You Need" (arXiv 1706.03762) about its attention, and of RoPE and ALiBi."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..measure.flops import count_flops
from ..mixers.softmax_attention import SoftmaxAttention
from ..ops import backend
from ..ops.positions import alibi_bias, alibi_slopes
from ..ops.softmax_attention import softmax_attention
from . import Measurement, claim


def _deviation(found: Tensor, expected: Tensor) -> float:
    """Largest deviation relative to the largest expected magnitude."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


@claim(
    "softmax_attention", kind="exact", says="It is multi-head attention: PyTorch's module with the same weights agrees."
)
def equals_pytorchs_module() -> Measurement:
    """Both directions. Seen failing with the scale 1 / sqrt(dim) in place of that of a head's width (0.2)."""
    worst = 0.0
    for causal in (False, True):
        ours, theirs = SoftmaxAttention(32, num_heads=4, causal=causal), nn.MultiheadAttention(32, 4, batch_first=True)
        x, later = torch.randn(2, 50, 32), torch.ones(50, 50, dtype=torch.bool).triu(1) if causal else None
        with torch.no_grad():
            theirs.in_proj_weight.copy_(torch.cat([p.weight for p in (ours.q_proj, ours.k_proj, ours.v_proj)]))
            theirs.in_proj_bias.copy_(torch.cat([p.bias for p in (ours.q_proj, ours.k_proj, ours.v_proj)]))
            theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
            worst = max(worst, _deviation(ours(x), theirs(x, x, x, attn_mask=later, need_weights=False)[0]))
    return Measurement.at_most(worst, 1e-5, "largest relative deviation; at most")


@claim(
    "softmax_attention", kind="exact", says="Without positions it is blind to order: permuted tokens, permuted outputs."
)
def blind_to_order_without_positions() -> Measurement:
    """Seen failing (0.2) with position='rope'."""
    mixer, x, order = SoftmaxAttention(32, num_heads=4), torch.randn(2, 40, 32), torch.randperm(40)
    with torch.no_grad():
        return Measurement.at_most(
            _deviation(mixer(x[:, order]), mixer(x)[:, order]), 1e-5, "relative deviation; at most"
        )


@claim(
    "softmax_attention", kind="exact", says="With RoPE or ALiBi only distances count: a shifted sequence is the same."
)
def positions_are_relative() -> Measurement:
    """A stream whose first token stands at position 1,000. Seen failing (0.3) with queries turned by their position and
    keys by their slot."""
    worst = 0.0
    for position in ("rope", "alibi"):
        mixer, x = SoftmaxAttention(32, num_heads=4, causal=True, position=position), torch.randn(1, 40, 32)
        with torch.no_grad():
            state = mixer.init_state(1)
            far = type(state)(**{**vars(state), "slots": torch.zeros(1, 0).long(), "position": torch.tensor([1000])})
            worst = max(worst, _deviation(mixer.prefill(x, far)[0], mixer(x)))
    return Measurement.at_most(worst, 1e-4, "largest relative deviation 1,000 positions further on; at most")


@claim(
    "softmax_attention", kind="exact", says="ALiBi's nearest key wins: with equal scores, weights fall with distance."
)
def alibi_prefers_the_near() -> Measurement:
    """Weights are exp(-slope distance), normalised. Seen failing (0.9) with the slopes of the heads
    reversed."""
    zero, eye = torch.zeros(1, 8, 20, 4), torch.eye(20).expand(1, 8, 20, 20)
    bias = alibi_bias(alibi_slopes(8), torch.arange(20), torch.arange(20))
    weights = softmax_attention(zero, zero, eye, causal=True, bias=bias)[0, :, -1]
    expected = torch.stack([torch.exp(-(2.0**-h) * torch.arange(19, -1, -1)) for h in range(1, 9)])
    return Measurement.at_most(
        _deviation(weights, expected / expected.sum(1, keepdim=True)), 1e-5, "deviation; at most"
    )


@claim("softmax_attention", kind="exact", says="Decoding with cached keys and values equals the forward pass.")
def decoding_equals_forward() -> Measurement:
    """A padded prompt in two pieces, then steps. Seen failing (0.2) with padding that takes
    positions in prompts only."""
    worst = 0.0
    for position in ("none", "rope", "alibi"):
        mixer, x = SoftmaxAttention(32, num_heads=4, causal=True, position=position), torch.randn(2, 100, 32)
        mask = torch.arange(100) >= torch.tensor([[0], [37]])
        with torch.no_grad():
            expected = mixer(x, mask=mask)
            first, state = mixer.prefill(x[:, :30], mixer.init_state(2), mask[:, :30])
            second, state = mixer.prefill(x[:, 30:70], state, mask[:, 30:70])
            outputs = [first, second]
            for t in range(70, 100):
                y, state = mixer.step(x[:, t], state)
                outputs.append(y[:, None])
        worst = max(worst, _deviation(torch.cat(outputs, 1), expected))
    return Measurement.at_most(worst, 1e-5, "largest relative deviation; at most")


@claim("softmax_attention", kind="scaling", says="A layer costs O(n^2 d): four times the products at twice the length.")
def products_grow_with_the_square() -> Measurement:
    """Without the projections. Seen failing (2.0) with a fixed number of keys."""
    with torch.device("meta"), backend("torch"):
        counts = []
        for n in (1024, 2048):
            q = torch.empty(1, 4, n, 16)
            counts.append(count_flops(lambda q=q: softmax_attention(q, q, q)))
    exact = counts[1] == 4 * counts[0]
    return Measurement(counts[1] / counts[0], 4.0, exact, "ratio of counted FLOPs of the products; equal")


@claim(
    "softmax_attention",
    kind="needs-pretrained",
    says="The Transformer reaches 28.4 BLEU on English to German and 41.8 on English to French (WMT 2014).",
)
def translation_scores() -> Measurement:
    """Cannot be checked here."""
    return Measurement(math.nan, 28.4, False, "not measured: it needs WMT 2014 and days of training on GPUs.")
