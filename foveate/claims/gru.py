"""Claims of the paper that introduced the gated recurrent unit (arXiv 1406.1078)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ..mixers.gru import GRU
from . import Measurement, claim


@claim("gru", kind="exact", says="Two gates decide what of the old state is reset and what is kept, step by step.")
def gates_are_those_of_the_equations() -> Measurement:
    """Seen failing with the two gates exchanged, and with the paper's order of reset and product."""
    mixer, x = GRU(6, causal=True, hidden=5).double(), torch.randn(2, 12, 6, dtype=torch.float64)
    with torch.no_grad():
        h, outputs, weights = torch.zeros(2, 5, dtype=torch.float64), [], dict(mixer.rnn.named_parameters())
        for token in x.unbind(1):
            of_token = F.linear(token, weights["weight_ih_l0"], weights["bias_ih_l0"]).chunk(3, -1)
            of_state = F.linear(h, weights["weight_hh_l0"], weights["bias_hh_l0"]).chunk(3, -1)
            reset, keep = (torch.sigmoid(a + b) for a, b in zip(of_token[:2], of_state[:2], strict=True))
            h = (1 - keep) * torch.tanh(of_token[2] + reset * of_state[2]) + keep * h
            outputs.append(mixer.out(h))
        worst = float((torch.stack(outputs, 1) - mixer(x)).abs().max())
    return Measurement.at_most(worst, 1e-12, "largest deviation from the equations, token by token")


@claim("gru", kind="exact", says="A sequence of any length is encoded in a state of fixed size.")
def state_is_fixed() -> Measurement:
    """Seen failing with a state that keeps its tokens."""
    with torch.no_grad():
        mixer = GRU(8, causal=True)
        sizes = [mixer.prefill(torch.randn(1, n, 8), mixer.init_state(1))[1].nbytes for n in (10, 5_000)]
    return Measurement(sizes[1], 32, sizes == [32, 32], f"bytes after 10 tokens {sizes[0]}, after 5,000 {sizes[1]}")


@claim("gru", kind="needs-pretrained", says="As a scorer of phrases it lifts English-French translation to 34.5 BLEU.")
def phrase_scores() -> Measurement:
    """Not run here: the phrase tables and corpora of WMT 2014 are needed."""
    return Measurement(
        math.nan, 34.5, False, "not measured: it would take the WMT 2014 corpora and a phrase-based system"
    )
