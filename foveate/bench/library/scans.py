"""Scans and convolutions along time."""

from __future__ import annotations

import torch
from torch import Tensor

from ...measure.op_costs import op_cost
from ...ops.causal_conv1d import causal_conv1d
from ...ops.gated_recurrence import gated_recurrence
from ...ops.linear_attention import build_slopes, lightning_attention
from ...ops.selective_scan import selective_scan
from ...ops.ssd import ssd
from ..cases import Problem, case

CHANNELS, STATES = 512, 16
LENGTHS = (512, 2048, 8192)


def _scan(length: int, gated: bool) -> Problem:
    # Stored as a mixer has them: time before channels.
    u, z = torch.randn(2, 1, length, CHANNELS).mT
    delta = (torch.randn(1, length, CHANNELS) * 0.5 - 3).mT
    B, C = torch.randn(2, 1, length, STATES).mT
    A = -torch.arange(1, STATES + 1.0).repeat(CHANNELS, 1)
    inputs = {"u": u, "delta": delta if gated else delta.exp(), "A": A, "B": B, "C": C}
    inputs |= {"D": torch.randn(CHANNELS), "z": z} if gated else {}

    def ours(**given: Tensor) -> Tensor:
        return selective_scan(**given, delta_softplus=gated)  # type: ignore[return-value]

    sizes = {"length": length, "channels": CHANNELS, "states": STATES}
    cost = op_cost("selective_scan", **sizes, gate=gated, softplus=gated)
    return Problem(inputs=inputs, ours=ours, sizes=sizes, cost=cost)


@case(
    "selective_scan",
    kind="op",
    about="S6, 512 channels of 16 states",
    sizes=LENGTHS,
    forms=("reference", "torch"),
    reference_up_to=2048,
)
def scan(length: int) -> Problem:
    return _scan(length, gated=False)


@case(
    "selective_scan_gated",
    kind="op",
    about="S6 with softplus, skip and gate, 512 channels of 16 states",
    sizes=LENGTHS,
    forms=("reference", "torch"),
    reference_up_to=2048,
)
def scan_with_everything(length: int) -> Problem:
    return _scan(length, gated=True)


@case("ssd", kind="op", about="8 heads of 64 with 128 states", sizes=LENGTHS, reference_up_to=2048)
def state_space_duality(length: int) -> Problem:
    heads, width, states = 8, 64, 128
    inputs = {
        "x": torch.randn(1, length, heads, width),
        "dt": torch.rand(1, length, heads) * 0.1,
        "A": -torch.rand(heads) * 15 - 1,
        "B": torch.randn(1, length, 1, states),
        "C": torch.randn(1, length, 1, states),
    }
    sizes = {"length": length, "heads": heads, "width": width, "states": states}
    return Problem(inputs=inputs, ours=ssd, sizes=sizes, cost=op_cost("ssd", **sizes))  # type: ignore[arg-type]


@case(
    "gated_recurrence",
    kind="op",
    about="a decay for each token and channel, 512 channels",
    sizes=LENGTHS,
    forms=("reference", "torch"),
    reference_up_to=2048,
)
def recurrence(length: int) -> Problem:
    inputs = {"x": torch.randn(1, length, CHANNELS), "decay": torch.rand(1, length, CHANNELS)}
    sizes = {"length": length, "channels": CHANNELS}
    cost = op_cost("gated_recurrence", **sizes)
    return Problem(inputs=inputs, ours=gated_recurrence, sizes=sizes, cost=cost)  # type: ignore[arg-type]


@case(
    "linear_attention",
    kind="op",
    about="causal, a decay for each head, 8 heads of 64",
    sizes=(256, 512, 2048, 8192, 32768),
    reference_up_to=2048,
)
def linear_attention(length: int) -> Problem:
    q, k, v = torch.randn(3, 1, 8, length, 64) / 8
    inputs = {"q": q, "k": k, "v": v, "slope": build_slopes(8)}
    cost = op_cost("lightning_attention", length=length, heads=8, d=64)
    return Problem(inputs=inputs, ours=lightning_attention, sizes={"length": length}, cost=cost)


@case("causal_conv1d", kind="op", about="depthwise, 4 taps, SiLU, 512 channels", sizes=LENGTHS, forms=("torch",))
def convolution(length: int) -> Problem:
    inputs = {
        "x": torch.randn(1, length, CHANNELS).mT,
        "weight": torch.randn(CHANNELS, 4) * 0.5,
        "bias": torch.randn(CHANNELS),
    }

    def ours(**given: Tensor) -> Tensor:
        return causal_conv1d(**given, activation="silu")  # type: ignore[return-value]

    sizes = {"length": length, "channels": CHANNELS, "taps": 4}
    return Problem(inputs=inputs, ours=ours, sizes=sizes, cost=op_cost("causal_conv1d", **sizes, silu=True))
