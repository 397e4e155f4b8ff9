"""What a piece of network costs, counted analytically."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """Analytic cost of one call. Costs add.

    Attributes:
        flops: floating-point operations of the forward pass in matmuls, convolutions and attention products
            (2 per multiply-add), the part that :class:`torch.utils.flop_counter.FlopCounterMode` sees.
        parameters: number of learned parameters.
        activation_bytes: bytes saved for the backward pass, parameters excluded, in float32; of the torch forms (native
            kernels keep as much, but their checkpoints of a recurrence lie elsewhere).
        state_bytes: bytes of the streaming state; 0 where there is none.
    """

    flops: int = 0
    parameters: int = 0
    activation_bytes: int = 0
    state_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.parameters + other.parameters,
            self.activation_bytes + other.activation_bytes,
            self.state_bytes + other.state_bytes,
        )

    def __mul__(self, count: int) -> Cost:
        return Cost(
            self.flops * count,
            self.parameters * count,
            self.activation_bytes * count,
            self.state_bytes * count,
        )


def linear_flops(tokens: int, inputs: int, outputs: int) -> int:
    """FLOPs of a dense layer over ``tokens`` tokens."""
    return 2 * tokens * inputs * outputs
