"""Claims about sliding-window attention (Longformer, arXiv 2004.05150) and sinks (StreamingLLM, arXiv 2309.17453)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..measure.flops import count_flops
from ..mixers.softmax_attention import SoftmaxAttention
from ..mixers.window_attention import WindowAttention
from ..ops import backend
from . import Measurement, claim


def _deviation(found: Tensor, expected: Tensor) -> float:
    """Largest deviation relative to the largest expected magnitude."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


@claim(
    "window_attention",
    kind="exact",
    says="A window as long as the sequence is full attention, and a shorter one a band of it.",
)
def is_a_band_of_full_attention() -> Measurement:
    """With the weights of the mixer softmax_attention: the whole sequence in the window, and each token's window by
    itself. Seen failing (0.5) with a window of one token more."""
    full, x, worst = SoftmaxAttention(32, num_heads=4, causal=True, position="rope"), torch.randn(2, 50, 32), 0.0
    with torch.no_grad():
        for window in (50, 8):
            ours = WindowAttention(32, num_heads=4, window=window)
            ours.load_state_dict(full.state_dict())
            found = ours(x)
            for t in range(50):
                expected = full(x[:, max(t + 1 - window, 0) : t + 1])[:, -1]
                worst = max(worst, _deviation(found[:, t], expected))
    return Measurement.at_most(worst, 1e-5, "largest relative deviation; at most")


@claim("window_attention", kind="exact", says="l layers of window w reach l (w - 1) tokens back, and not one more.")
def layers_add_their_reach() -> Measurement:
    """Three layers of window 5, in float64: the farthest token whose change reaches the last output, in shares of
    12. Seen failing (1.25) with a window of one token more."""
    layers = [WindowAttention(16, num_heads=2, window=5).double() for _ in range(3)]
    x = torch.randn(1, 30, 16, dtype=torch.float64, requires_grad=True)
    y = x
    for layer in layers:
        y = y + layer(y)
    (gradient,) = torch.autograd.grad(y[:, -1].square().sum(), x)
    reached = 29 - int(gradient.abs().sum(-1)[0].nonzero().min())
    return Measurement(reached / 12, 1.0, reached == 12, "tokens back that the last output reads, of 12; equal")


@claim("window_attention", kind="exact", says="A stream equals the whole sequence, and its state stays one window.")
def streams_in_one_window() -> Measurement:
    """Pieces and steps of a stream of ten windows, with sinks. Seen failing (0.3) with a state of one token less."""
    mixer, x = WindowAttention(32, num_heads=4, window=16, num_sinks=2), torch.randn(2, 160, 32)
    with torch.no_grad():
        state, outputs, at = mixer.init_state(2), [], 0
        for piece in (5, 50, 1, 40):
            y, state = mixer.prefill(x[:, at : at + piece], state)
            outputs.append(y)
            at += piece
        held = state.nbytes
        for t in range(at, 160):
            y, state = mixer.step(x[:, t], state)
            outputs.append(y[:, None])
        worst = _deviation(torch.cat(outputs, 1), mixer(x))
    passed = worst <= 1e-5 and state.nbytes == held == 2 * 2 * 15 * 32 * 4
    return Measurement(worst, 1e-5, passed, "largest relative deviation; at most, in a state of 15 tokens")


@claim("window_attention", kind="scaling", says="Time grows linearly with the length.")
def products_grow_linearly() -> Measurement:
    """FLOPs at 65,536 tokens by those at 4,096. Seen failing (249) with softmax_attention."""
    with torch.device("meta"), backend("torch"):
        mixer = WindowAttention(64, num_heads=4)
        counts = [count_flops(lambda n=n: mixer(torch.empty(1, n, 64))) for n in (4096, 65_536)]
    return Measurement.at_most(counts[1] / counts[0], 16.2, "FLOPs at 16 times the length, by those before; at most")
