"""S4: the state-space layer of ViS4mer, which Selective S4 stands on.

Gu, Goel and Re (ICLR 2022, arXiv 2111.00396) with the names and the arithmetic of md-mohaiminul/ViS4mer (ECCV 2022)::

    v = K * x + D x  by FFT,      y = W gelu(v) + b

with the kernel of :mod:`foveate.ops.s4_kernel`. It is built for one length, of which shorter inputs read the beginning.
For a mixer of any length with a stream take :class:`~foveate.mixers.s4d.S4D`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidValue, invalid
from ..ops.s4_kernel import hippo_legs, s4_kernel
from .parts import Linear
from .ssm import check_positive


class S4(nn.Module):
    """S4 with HiPPO-LegS, normal plus rank one, for sequences of up to ``l_max`` tokens.

    Args:
        dim: channels of a token.
        l_max: length of the kernel.
        d_state: numbers of state per channel, even.
        rank: of the correction; above 1 only for weights that are loaded.
        shared_rates: one row of eigenvalues for all channels, as released.
        dt_min, dt_max: initial step sizes are log-uniform between these.
        dropout: share of channels dropped while training, each over the whole sequence, as released.

    Raises:
        InvalidValue: an option that is not legal; when called: another width, or more than ``l_max`` tokens.
    """

    official_keys: ClassVar[dict[str, dict[str, str]]] = {
        "ViS4mer": {
            r"(buffer\.)?kernel\.krylov\.(nodes|z)": "",
            r"kernel\.krylov\.(w|B|C|log_dt)": r"\1",
            r"D": "D",
            r"output_linear\.(0\.)?(weight|bias)": r"out.\2",
        }
    }

    def __init__(
        self,
        dim: int,
        l_max: int,
        *,
        d_state: int = 64,
        rank: int = 1,
        shared_rates: bool = True,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, l_max=l_max, d_state=d_state, rank=rank)
        if d_state % 2:
            raise invalid("d_state", d_state, "each rate stands for itself and its conjugate, so it must be even")
        if not 0 < dt_min <= dt_max < math.inf:
            raise invalid("dt_min, dt_max", (dt_min, dt_max), "0 < dt_min <= dt_max is needed, both finite")
        self.dim, self.l_max = dim, l_max
        w, read, p = hippo_legs(d_state)
        factors = torch.stack([p, *[torch.zeros_like(p)] * (rank - 1)])
        B = torch.cat([read[None], factors]).expand(dim, -1, -1)
        C = torch.cat([torch.randn(dim, 1, d_state // 2, dtype=w.dtype), factors.expand(dim, -1, -1)], 1)
        w = w if shared_rates else w.expand(dim, -1)
        self.w, self.B, self.C = (nn.Parameter(torch.view_as_real(m.to(torch.complex64)).clone()) for m in (w, B, C))
        self.log_dt = nn.Parameter(torch.rand(dim) * math.log(dt_max / dt_min) + math.log(dt_min))
        self.D = nn.Parameter(torch.randn(dim))
        self.dropout = nn.Dropout1d(dropout)
        self.out = Linear(dim, dim)

    def no_weight_decay(self) -> list[nn.Parameter]:
        """Rates, input map and step sizes, as released."""
        return [self.w, self.B, self.log_dt]

    @staticmethod
    def convert_official(state_dict: Mapping[str, Tensor], source: str | None) -> dict[str, Tensor]:
        """The released output bias is a column."""
        return {k: v.squeeze(-1) if k.endswith("output_linear.bias") else v for k, v in state_dict.items()}

    def kernel(self) -> Tensor:
        """``(dim, l_max)``."""
        w, B, C = (torch.view_as_complex(m) for m in (self.w, self.B, self.C))
        return s4_kernel(w, B, C, self.log_dt.exp(), self.l_max)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, length, dim)`` in and out."""
        if x.ndim != 3 or x.shape[2] != self.dim or not 1 <= x.shape[1] <= self.l_max:
            raise InvalidValue(
                f"S4: x has shape {tuple(x.shape)}; (batch, length, {self.dim}) of at most l_max={self.l_max} tokens "
                f"is needed."
            )
        length, u = x.shape[1], x.transpose(1, 2)
        spectrum = torch.fft.rfft(u, 2 * length) * torch.fft.rfft(self.kernel()[:, :length], 2 * length)
        v = torch.fft.irfft(spectrum, 2 * length)[..., :length] + self.D[:, None] * u
        return self.out(self.dropout(F.gelu(v)).transpose(1, 2))
