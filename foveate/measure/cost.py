"""What a piece of network costs, counted analytically."""

from __future__ import annotations

from dataclasses import dataclass, fields


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
        elementwise: arithmetic outside of those products, 2 per multiply-add; 0 where it is not told.
        exps: exponentials and other functions that a processor computes by a polynomial (logarithms, sigmoids,
            tangents); 0 where they are not told.
        moved_bytes: bytes that must pass between memory and processor in the forward pass: inputs and parameters read
            once, outputs written once, in float32; 0 where it is not told (:attr:`traffic_bytes` then estimates it).
    """

    flops: int = 0
    parameters: int = 0
    activation_bytes: int = 0
    state_bytes: int = 0
    elementwise: int = 0
    exps: int = 0
    moved_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, count: int) -> Cost:
        return Cost(*(getattr(self, f.name) * count for f in fields(self)))

    @property
    def traffic_bytes(self) -> int:
        """Bytes moved: :attr:`moved_bytes`, or parameters read once and kept activations written and read once.

        The estimate is for networks whose other intermediate results stay in the cache; what operators without any
        fusion move (:func:`foveate.measure.counted.count_bytes`) is up to several times as much.
        """
        return self.moved_bytes or 4 * self.parameters + 2 * self.activation_bytes

    @property
    def intensity(self) -> float:
        """Arithmetic per byte moved, exponentials counted as one; 0 where nothing is moved."""
        return (self.flops + self.elementwise + self.exps) / self.traffic_bytes if self.traffic_bytes else 0.0


def linear_flops(tokens: int, inputs: int, outputs: int) -> int:
    """FLOPs of a dense layer over ``tokens`` tokens."""
    return 2 * tokens * inputs * outputs
