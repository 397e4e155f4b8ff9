"""MEGA's multi-dimensional damped moving average: what TCNCA replaces by convolutions.

Ma et al., "Mega: Moving Average Equipped Gated Attention" (ICLR 2023, arXiv 2209.10655), section 3.1. Every channel
keeps N averages of its inputs::

    h_t = q h_{t-1} + p beta x_t,     y_t = silu(sum_n gamma_n h_{t,n} / sqrt(N) + omega x_t)

with ``p = sigmoid(alpha)``, ``q = 1 - p sigmoid(delta)``. The release convolves with the kernel by an FFT
(:meth:`MultiHeadEMA.by_fft`), O(L log L), which spreads rounding errors of later inputs to earlier outputs. Here the
recurrence is scanned, O(L), by the op that Mamba uses with a constant step: causal to the last bit, and with kernels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.handwritten import sum_dtype
from ..ops.selective_scan import selective_scan
from ..ops.selective_scan_blocks import block_length
from .ssm import Packing, check_positive
from .state import State, state


@state
class EMAState(State):
    """The averages of all channels, ``(batch, dim, n_dim)``, float32."""

    averages: Tensor


class MultiHeadEMA(nn.Module):
    """Damped moving averages per channel, a learned share of the input, and silu.

    Args:
        dim: channels of a token.
        n_dim: averages N of each channel.
        causal: from the past alone; otherwise a second set of averages of what follows is added.
    """

    def __init__(self, dim: int, *, n_dim: int = 16, causal: bool = True) -> None:
        super().__init__()
        check_positive(dim=dim, n_dim=n_dim)
        self.dim, self.n_dim, self.causal = dim, n_dim, causal
        rows = dim if causal else 2 * dim
        sign = torch.ones(n_dim, 1)
        sign[1::2] = -1
        self.alpha = nn.Parameter(torch.randn(rows, n_dim, 1) * 0.2)
        self.delta = nn.Parameter(torch.randn(rows, n_dim, 1) * 0.2)
        self.beta = nn.Parameter(torch.randn(rows, n_dim, 1) * 0.02 + sign)
        self.gamma = nn.Parameter(torch.randn(rows, n_dim))
        self.omega = nn.Parameter(torch.randn(dim))

    def no_weight_decay(self) -> list[nn.Parameter]:
        """Rates: pulling them to zero would change the timescales."""
        return [self.alpha, self.delta]

    def forward(self, x: Tensor, *, valid: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Average a whole sequence.

        Args:
            x: ``(batch, L, dim)``.
            valid: bool ``(batch, L)``: positions behind the real tokens are False, and ``x`` is 0 there.
            segments: int ``(batch, L)``: documents that do not see each other.

        Returns:
            ``(batch, L, dim)``.
        """
        log_q, write, read = self._averages(x.dtype)
        d, omega = self.dim, self.omega.to(write.dtype)
        y = _scan(x, log_q[:d], write[:d], read[:d], omega, segments)
        if not self.causal:
            # A scan from the end counts the current input too, which is not among what follows.
            own = -(write[d:] * read[d:]).sum(1)
            turned = None if segments is None else segments.flip(1)
            y = y + _scan(x.flip(1), log_q[d:], write[d:], read[d:], own, turned).flip(1)
        return F.silu(y)

    def kernel(self, length: int) -> Tensor:
        """The averages as a convolution: ``(dim, length)``, or ``(2 dim, length)``, the second half of what follows."""
        log_q, write, read = self._averages(self.alpha.dtype)
        powers = torch.exp(log_q.unsqueeze(-1) * torch.arange(length, device=log_q.device))
        return torch.einsum("dn,dnl->dl", write * read, powers)

    def by_fft(self, x: Tensor, kernel: Tensor | None = None) -> Tensor:
        """What :meth:`forward` gives, as released: a convolution with the kernel by FFT, O(L log L).

        Args:
            x: ``(batch, L, dim)``.
            kernel: of :meth:`kernel`, if it is made already.
        """
        length, d = x.shape[1], self.dim
        kernel = self.kernel(length) if kernel is None else kernel
        both = F.pad(kernel[:d], (0, length))
        if not self.causal:
            both = both + F.pad(kernel[d:, 1:].flip(-1), (length + 1, 0))
        spectrum = torch.fft.rfft(x.transpose(1, 2).to(kernel.dtype), 2 * length) * torch.fft.rfft(both)
        y = torch.fft.irfft(spectrum, 2 * length)[..., :length].transpose(1, 2).to(x.dtype)
        return F.silu(y + self.omega.to(x.dtype) * x)

    def init_state(self, batch_size: int, device: torch.device | str | None, dtype: torch.dtype) -> EMAState:
        """Averages of nothing."""
        return EMAState(torch.zeros(batch_size, self.dim, self.n_dim, device=device, dtype=sum_dtype(dtype)))

    def prefill(self, x: Tensor, past: EMAState, packing: Packing | None = None) -> tuple[Tensor, EMAState]:
        """Read ``(batch, L, dim)``, packed if there is a packing; returns outputs and the state after it."""
        log_q, write, read = self._averages(x.dtype)
        steps = torch.ones_like(x) if packing is None else packing.valid.unsqueeze(-1).expand_as(x).to(x.dtype)
        found = selective_scan(
            x.transpose(1, 2),
            steps.transpose(1, 2),
            log_q,
            write,
            read,
            self.omega.to(write.dtype),
            initial_state=past.averages.to(write.dtype),
            return_last_state=True,
        )
        assert isinstance(found, tuple)
        return F.silu(found[0].transpose(1, 2)), EMAState(found[1])

    def step(self, x_t: Tensor, past: EMAState) -> tuple[Tensor, EMAState]:
        """Read one token ``(batch, dim)``."""
        log_q, write, read = self._averages(x_t.dtype)
        wide = x_t.to(write.dtype)
        averages = log_q.exp() * past.averages.to(write.dtype) + write * wide.unsqueeze(-1)
        y = (averages * read).sum(-1) + self.omega.to(write.dtype) * wide
        return F.silu(y.to(x_t.dtype)), EMAState(averages)

    def flops(self, batch: int, length: int) -> int:
        """The recurrence is elementwise."""
        return 0

    def saved(self, batch: int, length: int) -> int:
        """Numbers kept for the backward pass, without the input: steps, states between blocks, what silu reads."""
        states = self.dim * self.n_dim
        blocks = -(-length // block_length(batch, states))
        directions = 1 if self.causal else 2
        each = batch * length * self.dim + blocks * batch * states + 8 * states
        return directions * each + batch * length * self.dim * (1 if self.causal else 2)

    def state_numbers(self, batch: int, length: int) -> int:
        """Numbers of a stream's state; they do not depend on what was read."""
        return batch * self.dim * self.n_dim

    def _averages(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithm of the decay, weight of the input and of the output, each ``(rows, n_dim)``, as sums are made."""
        real = sum_dtype(dtype)
        p, damping = self.alpha.to(real).sigmoid().squeeze(-1), self.delta.to(real).sigmoid().squeeze(-1)
        write = p * self.beta.to(real).squeeze(-1)
        return torch.log1p(-p * damping), write, self.gamma.to(real) * self.n_dim**-0.5


def _scan(x: Tensor, log_q: Tensor, write: Tensor, read: Tensor, skip: Tensor, segments: Tensor | None) -> Tensor:
    """``sum_n read h + skip x`` of ``(batch, L, dim)``."""
    u = x.transpose(1, 2)
    y = selective_scan(u, torch.ones_like(x).transpose(1, 2), log_q, write, read, skip, seq_idx=segments)
    assert isinstance(y, Tensor)
    return y.transpose(1, 2)
