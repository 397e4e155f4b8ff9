"""Sequence layers as linear time-varying systems: the common form, and what can be done with it.

Sieber et al., "Understanding the differences in Foundation Models: Attention, State Space Models, and Recurrent Neural
Networks" (NeurIPS 2024, arXiv 2405.15731, section 2). A layer whose gates, keys and queries are read from its input is
linear in its values u, with matrices that follow the input::

    h_i = Lambda_i h_{i-1} + B_i u_i,      y_i = C_i h_i + D_i u_i,      h_{-1} = 0
    y = Phi u,    Phi_ii = C_i B_i + D_i,    Phi_ij = C_i Lambda_i ... Lambda_{j+1} B_j  for j < i,    0 above

Lambda is diagonal, and B and C are Kronecker products of an identity over channels with a vector over features, so they
are kept as those vectors (:class:`Realization`); :meth:`Realization.dense` writes them out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import InvalidType, InvalidValue

#: Most numbers that :meth:`Realization.dense` writes out.
DENSE_NUMBERS = 10**8


class Affine(NamedTuple):
    """``W x + b``: weight ``(out, in)``, bias ``(out,)`` or None."""

    weight: Tensor
    bias: Tensor | None


class Dense(NamedTuple):
    """Matrices of one sample, written out; the state's index is (head, channel, feature), the feature fastest.

    Attributes:
        Lambda: ``(L, N)``, the diagonal.
        B: ``(L, N, inputs)``.
        C: ``(L, outputs, N)``.
        D: ``(L, outputs, inputs)``.
    """

    Lambda: Tensor
    B: Tensor
    C: Tensor
    D: Tensor


class Form(NamedTuple):
    """The matrices of a kind of layer in words.

    Attributes:
        Lambda, B, C, D: their formulas.
        follows: what the decay is tied to.
    """

    Lambda: str
    B: str
    C: str
    D: str
    follows: str


@dataclass(frozen=True, kw_only=True)
class System:
    """A layer on one input, as a system over its values.

    Attributes:
        name: class of the layer.
        form: its matrices in words.
        u: values ``(batch, L, heads, channels)``: what the system reads.
        readout: what the layer does with the system's outputs ``(batch, L, heads, channels)``: norm, gate, projection.
        eta: normalisers ``(batch, L, heads)`` of an attention; None where there is none.
        delta: step sizes ``(batch, L, heads, channels or 1)`` of a state space; None where there is none.
        rate: its decay rates a > 0 ``(heads, channels or 1, features or 1)``, ``Lambda = exp(-a Delta)``.
        lift: the layer's input to values, where that is affine.
        out: the system's outputs to the layer's, where that is affine.
    """

    name: str
    form: Form
    u: Tensor
    readout: Callable[[Tensor], Tensor] = field(repr=False)
    eta: Tensor | None = None
    delta: Tensor | None = None
    rate: Tensor | None = None
    lift: Affine | None = None
    out: Affine | None = None

    @property
    def length(self) -> int:
        """Number of tokens L."""
        return self.u.shape[1]

    @property
    def features(self) -> float:
        """State expansion n: numbers kept per value channel; infinite for softmax."""
        raise NotImplementedError

    @property
    def state_numbers(self) -> float:
        """Numbers N of the whole state of a sample."""
        return self.features * self.u.shape[2] * self.u.shape[3]

    def mixing_matrix(self) -> Tensor:
        """Phi, ``(batch, heads, channels or 1, L, L)``: one matrix for all channels of a head where they share it."""
        raise NotImplementedError

    def convolve(self, u: Tensor | None = None) -> Tensor:
        """``Phi u`` by the mixing matrix.

        Args:
            u: ``(batch, L, heads, channels)``; None: the layer's own values.

        Returns:
            ``(batch, L, heads, channels)``.
        """
        return torch.einsum("bhpij,bjhp->bihp", *_together(self.mixing_matrix(), self._values(u)))

    def run(self, u: Tensor | None = None) -> Tensor:
        """Outputs ``(batch, L, heads, channels)`` of the recurrence for ``u`` (as in :meth:`convolve`)."""
        raise NotImplementedError

    def simulate(self, u: Tensor | None = None) -> Tensor:
        """The layer's output ``(batch, L, dim)``: :meth:`run`, then the layer's readout."""
        return self.readout(self.run(u))

    def step(self, h: Tensor, u_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """One token of the recurrence, see :meth:`Realization.step`.

        Raises:
            InvalidType: the state is infinite.
        """
        raise self._infinite()

    def dense(self, sample: int = 0, *, maps: bool = False) -> Dense:
        """The matrices of one sample, written out, see :meth:`Realization.dense`.

        Raises:
            InvalidType: the state is infinite.
        """
        raise self._infinite()

    def _infinite(self) -> InvalidType:
        return InvalidType(f"{self.name} has an infinite state: matrices(..., order=p) makes a finite one.")

    def _values(self, u: Tensor | None) -> Tensor:
        if u is not None and u.shape != self.u.shape:
            raise InvalidValue(
                f"u has shape {tuple(u.shape)}; this system reads (batch, L, heads, channels) = {tuple(self.u.shape)}."
            )
        return self.u if u is None else u


@dataclass(frozen=True, kw_only=True)
class Limit(System):
    """Softmax attention as it is: a separable kernel whose exact features are infinitely many.

    Attributes:
        scores: ``(batch, heads, L, L)``, logarithms of the weights before they are normalised, -inf above the diagonal.
    """

    scores: Tensor

    @property
    def features(self) -> float:
        return math.inf

    def mixing_matrix(self) -> Tensor:
        return self.scores.softmax(-1).unsqueeze(2)

    def run(self, u: Tensor | None = None) -> Tensor:
        return self.convolve(u)


@dataclass(frozen=True, kw_only=True)
class Realization(System):
    """A finite realisation: the factors of Lambda, B, C and D.

    In head h, channel p and feature n, ``B`` and ``C`` being ``I (x) write`` and ``I (x) read^T``::

        state_i[h, p, n] = decay_i[h, p, n] state_{i-1}[h, p, n] + write_i[h, p, n] u_i[h, p]
        y_i[h, p]        = sum_n read_i[h, p, n] state_i[h, p, n] + skip[h, p] u_i[h, p]

    Attributes:
        decay: ``(batch, L, heads, channels or 1, features or 1)``; the first one meets no state.
        write, read: ``(batch, L, heads, channels or 1, features)``.
        skip: ``(heads, channels or 1)``.
    """

    decay: Tensor
    write: Tensor
    read: Tensor
    skip: Tensor

    @property
    def features(self) -> float:
        return self.write.shape[-1]

    def start(self) -> Tensor:
        """The state before the first token, ``(batch, heads, channels, features)`` zeros."""
        batch, _, heads, channels = self.u.shape
        return self.write.new_zeros(batch, heads, channels, int(self.features))

    def step(self, h: Tensor, u_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """One token of the recurrence.

        Args:
            h: state ``(batch, heads, channels, features)``.
            u_t: values ``(batch, heads, channels)``.
            t: which token's matrices to take.

        Returns:
            Outputs ``(batch, heads, channels)`` and the new state.

        Raises:
            InvalidValue: there is no such token.
        """
        if not 0 <= t < self.length:
            raise InvalidValue(f"t={t!r} is not possible: this system has matrices for tokens 0 ... {self.length - 1}.")
        h = self.decay[:, t] * h + self.write[:, t] * u_t[..., None]
        return (self.read[:, t] * h).sum(-1) + self.skip * u_t, h

    def run(self, u: Tensor | None = None) -> Tensor:
        h, outputs = self.start(), []
        for t, u_t in enumerate(self._values(u).unbind(1)):
            y, h = self.step(h, u_t, t)
            outputs.append(y)
        return torch.stack(outputs, 1)

    def mixing_matrix(self) -> Tensor:
        # (batch, heads, channels or 1, L, features or 1)
        decay, write, read = (m.permute(0, 2, 3, 1, 4) for m in (self.decay, self.write, self.read))
        shared = decay.shape[-1] == 1
        # Row i of what is left at i of what was written at j; products one by one, for a decay may be 0.
        left = decay.new_zeros(*decay.shape[:-2], self.length, 1) if shared else torch.zeros_like(decay * write)
        rows = []
        for i in range(self.length):
            new = torch.ones_like(left[..., :1, :]) if shared else write[..., i : i + 1, :].expand_as(left[..., :1, :])
            past = left[..., :i, :] * decay[..., i : i + 1, :]
            left = torch.cat([past, new, left[..., i + 1 :, :]], -2)
            rows.append(left[..., 0] if shared else (left * read[..., i : i + 1, :]).sum(-1))
        phi = torch.stack(rows, -2)
        phi = phi * (read @ write.mT) if shared else phi
        return phi + torch.diag_embed(self.skip[..., None].expand(*self.skip.shape, self.length))

    def dense(self, sample: int = 0, *, maps: bool = False) -> Dense:
        """The matrices of one sample, written out (for small systems).

        Args:
            sample: index in the batch.
            maps: with the layer's own projections: B reads the layer's input instead of its values, C and D give the
                layer's output. Biases are a last input that is always 1.

        Returns:
            Lambda ``(L, N)``, B ``(L, N, inputs)``, C ``(L, outputs, N)``, D ``(L, outputs, inputs)``.

        Raises:
            InvalidValue: more than :data:`DENSE_NUMBERS` numbers.
            InvalidType: ``maps`` where the layer has more than projections around its system.
        """
        _, length, heads, channels = self.u.shape
        n, width = int(self.features), heads * channels
        if length * width * n * width > DENSE_NUMBERS:
            raise InvalidValue(
                f"{self.name}: B alone would have {length * width * n * width:,} numbers written out; dense() is for "
                f"at most {DENSE_NUMBERS:,}."
            )
        if maps and (self.lift is None or self.out is None):
            raise InvalidType(
                f"{self.name}: what stands around its system is more than projections, so maps=True is not possible."
            )
        full = length, heads, channels, n
        decay, write, read = (m[sample].expand(full) for m in (self.decay, self.write, self.read))
        h, p = (m.flatten() for m in torch.meshgrid(torch.arange(heads), torch.arange(channels), indexing="ij"))
        B = write.new_zeros(length, heads, channels, n, heads, channels)
        B[:, h, p, :, h, p] = write[:, h, p].transpose(0, 1)
        C = write.new_zeros(length, heads, channels, heads, channels, n)
        C[:, h, p, h, p] = read[:, h, p]
        B, C = B.reshape(length, width * n, width), C.reshape(length, width, width * n)
        D = torch.diag(self.skip.to(B.dtype).expand(heads, channels).flatten()).expand(length, -1, -1)
        if maps and self.lift is not None and self.out is not None:
            constant = B.new_zeros(len(self.out.weight), 1) if self.out.bias is None else self.out.bias[:, None]
            B, C, D = _augmented(B, self.lift), self.out.weight @ C, self.out.weight @ _augmented(D, self.lift)
            D = torch.cat([D[..., :-1], D[..., -1:] + constant], -1)
        return Dense(decay.reshape(length, -1), B, C, D)


def _augmented(m: Tensor, lift: Affine) -> Tensor:
    """``m [W | b]``: a map of values as one of the layer's input and a 1."""
    bias = lift.weight.new_zeros(len(lift.weight)) if lift.bias is None else lift.bias
    return m @ torch.cat([lift.weight, bias[:, None]], 1)


def _together(phi: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the same channels and in the same precision."""
    phi = phi.expand(-1, -1, u.shape[-1], -1, -1)
    return phi, u.to(phi.dtype)
