"""The convolution kernel of S4, whose state matrix is normal plus low rank.

Gu, Goel and Re, "Efficiently Modeling Long Sequences with Structured State Spaces" (ICLR 2022, arXiv 2111.00396),
section 3: with ``A = diag(w) - p q^*``, every number standing for itself and its conjugate, and the bilinear rule, the
kernel's spectrum at the roots of unity ``omega`` is made of sums over the poles. In the form below nothing becomes
infinite where ``omega = -1``::

    r(b, c) = dt sum_n (2 b_n c_n^* / (2 (1 - omega) - dt w_n (1 + omega)) + the same of the conjugates)
    K = irfft( r(B, C) - h r(p, C) r(B, q) / (1 + h r(p, q)) ),     h = (1 + omega) / 2

``C`` is what the released code stores: the output map times ``I - dA^L``, so that a kernel belongs to one length L.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidType, InvalidValue


def s4_kernel(w: Tensor, B: Tensor, C: Tensor, dt: Tensor, length: int, *, released: bool = True) -> Tensor:
    """The kernel of all channels.

    Args:
        w: complex ``(N,)`` or ``(channels, N)``: eigenvalues of the normal part.
        B: complex ``(channels, 1 + rank, N)``: the input map, then the low-rank factors p.
        C: complex ``(channels, 1 + rank, N)``: the output map, see above, then the factors q.
        dt: step sizes ``(channels,)``.
        length: L of the kernel, which C was made for.
        released: for an odd length, do as the released code does: invert the spectrum as if it were one of ``L - 1``,
            and leave the last entry 0. False: the kernel of length L.

    Returns:
        ``(channels, L)`` in dt's dtype; sums are made in float64.

    Raises:
        InvalidValue: shapes that do not fit, or no length.
        InvalidType: maps or eigenvalues that are not complex.
    """
    if not (w.is_complex() and B.is_complex() and C.is_complex()):
        raise InvalidType(f"w, B and C must be complex, not {w.dtype}, {B.dtype} and {C.dtype}.")
    if B.ndim != 3 or B.shape[1] < 2 or C.shape != B.shape or w.shape[-1] != B.shape[2] or dt.shape != B.shape[:1]:
        shapes = f"w {tuple(w.shape)}, B {tuple(B.shape)}, C {tuple(C.shape)} and dt {tuple(dt.shape)}"
        raise InvalidValue(f"{shapes} do not fit: (N,), (channels, 1 + rank, N) twice and (channels,) are needed.")
    if length < 1:
        raise InvalidValue(f"length={length} is not possible: a positive whole number is needed.")
    wide = torch.complex128
    w, B, C, step = w.to(wide), B.to(wide), C.to(wide), dt.double()
    turn = torch.arange(length // 2 + 1, device=dt.device, dtype=torch.float64) * (-2 * math.pi / length)
    omega = torch.polar(torch.ones_like(turn), turn)
    products = B.unsqueeze(1) * C.unsqueeze(2).conj()  # (channels, of C, of B, N)
    poles = step.unsqueeze(-1) * w
    r = sum(
        v.flatten(1, 2) @ (2 / (2 * (1 - omega) - pole.unsqueeze(-1) * (1 + omega)))
        for v, pole in ((products, poles), (products.conj(), poles.conj()))
    )
    assert isinstance(r, Tensor)
    r = r.unflatten(1, products.shape[1:3]) * step[:, None, None, None]
    half = (1 + omega) / 2
    rest = r[:, 1:, 1:].movedim(-1, 1) * half[:, None, None]
    rest = rest + torch.eye(rest.shape[-1], device=dt.device)
    inner = torch.linalg.solve(rest, r[:, 1:, :1].movedim(-1, 1))  # (channels, frequencies, rank, 1)
    spectrum = r[:, 0, 0] - half * (r[:, :1, 1:].movedim(-1, 1) @ inner)[..., 0, 0]
    size = length // 2 * 2 if released and length > 1 else length
    return F.pad(torch.fft.irfft(spectrum, size), (0, length - size)).to(dt.dtype)


def s4_matrices(w: Tensor, B: Tensor, C: Tensor, dt: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """The recurrence whose first ``length`` answers to an impulse are :func:`s4_kernel`; arguments as there.

    Returns:
        dA ``(channels, 2 N, 2 N)``, dB and the output map ``(channels, 2 N)``, complex128: ``y_t = <map, x_t>`` with
        ``x_t = dA x_{t-1} + dB u_t``.
    """
    w, B, C = (torch.cat([m, m.conj()], -1).to(torch.complex128) for m in (w.expand(B.shape[0], -1), B, C))
    A = torch.diag_embed(w) - B[:, 1:].transpose(1, 2) @ C[:, 1:].conj()
    half, one = dt.double()[:, None, None] / 2, torch.eye(w.shape[1], dtype=A.dtype, device=A.device)
    dA = torch.linalg.solve(one - half * A, one + half * A)
    dB = torch.linalg.solve(one - half * A, 2 * half * B[:, :1].transpose(1, 2))[..., 0]
    cut = one - torch.linalg.matrix_power(dA, length)
    return dA, dB, torch.linalg.solve(cut.transpose(1, 2), C[:, :1].conj().transpose(1, 2))[..., 0]


def hippo_legs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """HiPPO-LegS as normal plus rank one: w, the input map and p, complex128 ``(n / 2,)``, one of each conjugate pair.

    Args:
        n: size of the matrix, even.
    """
    place = torch.arange(n, dtype=torch.float64)
    root = (2 * place + 1).sqrt()
    A = -torch.tril(root[:, None] * root, -1) - torch.diag(place + 1)
    p = (place + 0.5).sqrt()
    # A + p p^T is -1/2 plus a skew matrix, which i times is Hermitian: a stable eigenproblem.
    skew = A + p[:, None] * p + 0.5 * torch.eye(n, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(1j * skew)
    first = values < 0  # w = -1/2 - i value, of positive imaginary part
    vectors = vectors[:, first]
    w = torch.complex(torch.full_like(values[first], -0.5), -values[first])
    return w, vectors.conj().T @ root.to(vectors.dtype), vectors.conj().T @ p.to(vectors.dtype)
