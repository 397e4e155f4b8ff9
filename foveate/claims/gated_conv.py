"""Claims of "Language Modeling with Gated Convolutional Networks" (arXiv 1612.08083)."""

from __future__ import annotations

import math

import torch

from ..measure.flops import count_flops
from ..mixers.gated_conv import GatedConv
from . import Measurement, claim


@claim("gated_conv", kind="exact", says="A layer is (x * W + b) times the sigmoid of (x * V + c), nothing else.")
def layer_is_the_equation() -> Measurement:
    """Seen failing with the two halves exchanged, and with the filters read backwards."""
    mixer, x = GatedConv(6, causal=True, width=4).double(), torch.randn(2, 20, 6, dtype=torch.float64)
    padded = torch.cat([torch.zeros(2, 3, 6, dtype=torch.float64), x], 1)
    with torch.no_grad():
        taps, bias = mixer.conv.weight, mixer.conv.bias
        assert bias is not None
        worst = 0.0
        for t in range(20):
            linear, gate = torch.einsum("bkd,odk->bo", padded[:, t : t + 4], taps).add(bias).chunk(2, -1)
            worst = max(worst, float((mixer(x)[:, t] - linear * torch.sigmoid(gate)).abs().max()))
    return Measurement.at_most(worst, 1e-12, "largest deviation from equation 1, token by token")


@claim("gated_conv", kind="exact", says="N layers of width k see N (k - 1) + 1 tokens, without recurrence.")
def receptive_field_is_that_of_the_stack() -> Measurement:
    """Seen failing with a filter that is dilated or shifted."""
    layers = [GatedConv(4, causal=True, width=5).double() for _ in range(3)]
    x = torch.randn(1, 40, 4, dtype=torch.float64, requires_grad=True)
    y = x
    for layer in layers:
        y = layer(y)
    (gradient,) = torch.autograd.grad(y[0, 30].sum(), x)
    seen = gradient[0].abs().sum(-1).ne(0).nonzero().flatten()
    found = (int(seen.min()), int(seen.max()))
    passed = found == (30 - 3 * 4, 30) and len(seen) == 13
    return Measurement(len(seen), 13, passed, f"tokens with influence on token 30: {found[0]} to {found[1]}")


@claim("gated_conv", kind="scaling", says="Work is linear in the length and needs no loop over tokens.")
def work_is_linear() -> Measurement:
    """Seen failing (exponent 2) with a filter as long as the sequence."""
    with torch.device("meta"):
        mixer, counts = GatedConv(16, causal=True), []
        for n in (4_096, 65_536):
            x = torch.empty(1, n, 16)
            counts.append(count_flops(lambda x=x: mixer(x)))
    exponent = math.log(counts[1] / counts[0]) / math.log(16)
    return Measurement.at_most(exponent, 1.01, "exponent of the FLOPs between 4,096 and 65,536 tokens")


@claim(
    "gated_conv",
    kind="needs-pretrained",
    says="A gated convolutional network reaches 37.2 perplexity on WikiText-103, level with large LSTMs.",
)
def wikitext_perplexity() -> Measurement:
    """Not run here: no weights were released with the paper."""
    need = "not measured: it would take training a 14-layer network on the 103 million tokens of WikiText-103"
    return Measurement(math.nan, 37.2, False, need)
