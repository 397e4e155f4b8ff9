"""From a mixer and an input to its system: one function for each kind of mixer.

What a mixer computes before its recurrence (projections, convolution, gates) is asked from the mixer itself, so that a
system is that of the weights as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidType, InvalidValue
from ...mixers.aaren import Aaren
from ...mixers.base import Mixer
from ...mixers.dsf.normalized_attention import DSFLinearAttention, NormalizedAttention, log_normalizer
from ...mixers.dsf.quasi_lstm import RGLRU, GatedRecurrence, QuasiLSTM
from ...mixers.dsf.s6 import S6, ScalarS6
from ...mixers.linear_attention import LinearAttention
from ...mixers.mamba import Mamba
from ...mixers.mamba2 import Mamba2
from ...mixers.softmax_attention import SoftmaxAttention
from ...ops.causal_conv1d import causal_conv1d
from ...ops.positions import alibi_bias, slope_values
from ...registry import entries
from .features import taylor_exp
from .system import Affine, Form, Limit, Realization, System

B_ = TypeVar("B_", bound=Callable[..., System])
_BUILDERS: dict[type[Mixer], Callable[..., System]] = {}

RATIO = "eta_{i-1} / eta_i"
STEP = "the step size Delta, which also scales the input"


def realizes(cls: type[Mixer]) -> Callable[[B_], B_]:
    """Register the decorated function ``(mixer, x, order) -> System`` for a class of mixers and its subclasses."""

    def mark(build: B_) -> B_:
        _BUILDERS[cls] = build
        return build

    return mark


def supported() -> list[str]:
    """Registered names of foveate's mixers that have a system."""
    own = [entry for entry in entries("mixer") if entry.module.startswith("foveate.")]
    return [entry.name for entry in own if issubclass(entry.load(), tuple(_BUILDERS))]


def build(mixer: Mixer, x: Tensor, order: int | None) -> System:
    """The system of a mixer on ``x`` ``(batch, L, dim)``; see :func:`foveate.analysis.dsf.matrices`."""
    found = next((_BUILDERS[cls] for cls in type(mixer).__mro__ if cls in _BUILDERS), None)
    if found is None:
        raise InvalidType(
            f"{type(mixer).__name__} has no realisation as a linear system; these have: {', '.join(supported())}."
        )
    if not mixer.causal:
        raise InvalidValue(f"{type(mixer).__name__} must be causal: a recurrence has one direction.")
    mixer.check_input(x)
    if x.ndim != 3:
        raise InvalidValue(f"{type(mixer).__name__}: x has shape {tuple(x.shape)}; a sequence is (batch, L, dim).")
    if order is not None and not isinstance(mixer, SoftmaxAttention):
        raise InvalidValue(f"order={order!r} is for softmax attention alone: {type(mixer).__name__} is exact.")
    return found(mixer, x, order)


def _affine(layer: nn.Linear) -> Affine:
    return Affine(layer.weight, layer.bias)


def _merged(mixer: Any) -> Callable[[Tensor], Tensor]:
    """The output projection of heads ``(batch, L, heads, channels)``."""
    return lambda y: mixer.out_proj(y.flatten(2).to(mixer.out_proj.weight.dtype))


def _time_first(m: Tensor) -> Tensor:
    """``(batch, heads, L, width)`` to ``(batch, L, heads, width)``."""
    return m.transpose(1, 2)


def _attention(
    mixer: Any, name: str, form: Form, phi: Tensor, psi: Tensor, eta: Tensor, u: Tensor, **more: Any
) -> Realization:
    """Separable attention: features ``(batch, L, heads, n)``, normalisers ``(batch, L, heads)``."""
    before = torch.cat([eta[:, :1], eta[:, :-1]], 1)  # the first decay meets no state
    zero = u.new_zeros(u.shape[2], 1)
    return Realization(
        name=name,
        form=form,
        u=u,
        readout=_merged(mixer),
        eta=eta,
        decay=(before / eta)[..., None, None],
        write=(psi / eta[..., None]).unsqueeze(3),
        read=phi.unsqueeze(3),
        skip=zero,
        **more,
    )


@realizes(SoftmaxAttention)
def softmax(mixer: SoftmaxAttention, x: Tensor, order: int | None) -> System:
    """All features (:class:`Limit`), or those of the Taylor polynomial of an order."""
    q, k, v = (mixer._heads(project(x)) for project in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    positions, bias = torch.arange(x.shape[1], device=x.device), None
    q, k = (mixer._turn(m, positions) * mixer.key_dim**-0.25 for m in (q, k))
    form = Form(RATIO, "(I (x) psi(k_i)) / eta_i", "I (x) phi(q_i)^T", "0", "queries and keys")
    kept: dict[str, Any] = {"lift": _affine(mixer.v_proj), "out": _affine(mixer.out_proj)}
    name, u = type(mixer).__name__, _time_first(v)
    if mixer.position == "alibi":
        bias = alibi_bias(torch.tensor(slope_values(mixer.num_heads), device=x.device), positions, positions)
    if order is None:
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        scores = q @ k.mT
        scores = (scores if bias is None else scores + bias).masked_fill(later, -torch.inf)
        eta = scores.logsumexp(-1).exp().transpose(1, 2)
        return Limit(name=name, form=form, u=u, readout=_merged(mixer), scores=scores, eta=eta, **kept)
    if bias is not None:
        raise InvalidValue("order= is not possible with position='alibi': its biases are no product of features.")
    phi, psi = (_time_first(taylor_exp(m, order)) for m in (q, k))
    eta = (phi * psi.cumsum(1)).sum(-1)
    if not bool((eta != 0).all()):
        raise InvalidValue(f"order={order} is not possible here: the weights of a token sum to 0; take an even order.")
    return _attention(mixer, f"{name}, order {order}", form, phi, psi, eta, u, **kept)


@realizes(DSFLinearAttention)
def linear_attention(mixer: DSFLinearAttention, x: Tensor, order: None) -> Realization:
    """elu + 1 features, normalised by their own sum."""
    q, k, v, _ = mixer.project(x)
    phi, psi, u = _time_first(q), _time_first(k), _time_first(v)[..., :-1]
    form = Form(RATIO, "(I (x) psi(k_i)) / eta_i", "I (x) phi(q_i)^T", "0", "queries and keys")
    eta = (phi * psi.cumsum(1)).sum(-1)
    kept: dict[str, Any] = {"lift": _affine(mixer.v_proj), "out": _affine(mixer.out_proj)}
    return _attention(mixer, type(mixer).__name__, form, phi, psi, eta, u, **kept)


@realizes(NormalizedAttention)
def normalized_attention(mixer: NormalizedAttention, x: Tensor, order: None) -> Realization:
    """No feature map; the normaliser is read from the token."""
    q, k, v, logits = mixer.project(x)
    form = Form(RATIO, "(I (x) k_i) / eta_i", "I (x) q_i^T", "0", "a normaliser of its own, eta(x_i)")
    eta = log_normalizer(logits, mixer.normalizer).exp()
    kept: dict[str, Any] = {"lift": _affine(mixer.v_proj), "out": _affine(mixer.out_proj)}
    q, k, u = (_time_first(m) for m in (q, k, v))
    return _attention(mixer, type(mixer).__name__, form, q, k, eta, u, **kept)


@realizes(Aaren)
def aaren(mixer: Aaren, x: Tensor, order: None) -> Realization:
    """A query that is the same for all tokens makes softmax exact with one feature, exp of a key's score."""
    log_psi = mixer.scores(x)
    log_eta = log_psi.logcumsumexp(1)
    before = torch.cat([log_eta[:, :1], log_eta[:, :-1]], 1)
    u = mixer.v(x).unflatten(-1, (mixer.num_heads, mixer.head_dim))
    return Realization(
        name=type(mixer).__name__,
        form=Form(RATIO, "exp(s(k_i)) / eta_i I", "I", "0", "keys alone"),
        u=u,
        readout=lambda y: mixer.out(y.flatten(2)),
        eta=log_eta.exp(),
        lift=_affine(mixer.v),
        out=_affine(mixer.out),
        decay=(before - log_eta).exp()[..., None, None],
        write=(log_psi - log_eta).exp()[..., None, None],
        read=torch.ones_like(log_eta)[..., None, None],
        skip=u.new_zeros(mixer.num_heads, 1),
    )


@realizes(LinearAttention)
def decayed_attention(mixer: LinearAttention, x: Tensor, order: None) -> Realization:
    """Lightning attention: a constant decay per head, no normaliser."""
    q, k, v, gate = mixer.project(x)
    q, k = mixer.turn(q, k, torch.arange(x.shape[1], device=x.device))
    rates = x.new_zeros(mixer.num_heads) if mixer.rates is None else x.new_tensor(mixer.rates)
    decay = torch.exp(-rates)[None, None, :, None, None].expand(x.shape[0], x.shape[1], -1, 1, 1)
    return Realization(
        name=type(mixer).__name__,
        form=Form("exp(-s) I", "I (x) k_i", "I (x) q_i^T", "0", "nothing: it is fixed"),
        u=_time_first(v),
        readout=lambda y: mixer.emit(y.flatten(2), gate),
        decay=decay,
        write=_time_first(k).unsqueeze(3),
        read=_time_first(q).unsqueeze(3),
        skip=x.new_zeros(mixer.num_heads, 1),
    )


def _scan(
    mixer: Any,
    form: Form,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    readout: Callable[[Tensor], Tensor],
    **more: Any,
) -> Realization:
    """One head of channels: u, delta ``(batch, L, P)``, A ``(P, N)``, B and C ``(batch, L, N)``, D of the mixer."""
    A = A[:1, :1] if bool((A[:1, :1] == A).all()) else A
    delta = delta[..., :1] if bool((delta == delta[..., :1]).all()) else delta
    return Realization(
        name=type(mixer).__name__,
        form=form,
        u=u.unsqueeze(2),
        readout=readout,
        delta=delta.unsqueeze(2),
        rate=-A.unsqueeze(0),
        decay=torch.exp(delta[..., None] * A).unsqueeze(2),
        write=(delta[..., None] * B.unsqueeze(2)).unsqueeze(2),
        read=C[:, :, None, None],
        skip=mixer.D.unsqueeze(0),
        **more,
    )


@realizes(S6)
def s6(mixer: S6, x: Tensor, order: None) -> Realization:
    """The selective scan on the tokens themselves."""
    raw, bias, b, c = mixer.read(x)
    kept = "exp(-Delta_i a) by channel and state"
    if isinstance(mixer, ScalarS6):
        kept = "exp(-a Delta_i) I" if mixer.step_per == "token" else "exp(-a Delta_i) by channel"
    form = Form(kept, "Delta_i (x) b_i", "I (x) c_i^T", "diag(D)", STEP)
    identity = Affine(torch.eye(mixer.dim, dtype=x.dtype, device=x.device), None)
    around: dict[str, Any] = {"lift": identity, "out": _affine(mixer.out_proj)}
    return _scan(mixer, form, x, F.softplus(raw + bias), mixer.rates(), b, c, _merged(mixer), **around)


@realizes(Mamba)
def mamba(mixer: Mamba, x: Tensor, order: None) -> Realization:
    """The scan of a Mamba block: it reads what the convolution says, and is gated afterwards."""
    u, z = mixer.in_proj(x).chunk(2, dim=-1)
    found = causal_conv1d(u.mT, mixer.conv1d.weight[:, 0], mixer.conv1d.bias, "silu")
    u = _tensor(found).mT
    raw, b, c = mixer._read(u)
    form = Form("exp(-Delta_i a) by channel and state", "Delta_i (x) b_i", "I (x) c_i^T", "diag(D)", STEP)
    delta = F.softplus(raw + mixer.dt_proj.bias)
    return _scan(mixer, form, u, delta, mixer._A(), b, c, lambda y: mixer.out_proj(y.flatten(2) * F.silu(z)))


@realizes(Mamba2)
def mamba2(mixer: Mamba2, x: Tensor, order: None) -> Realization:
    """SSD: one decay per head."""
    z, inputs, raw = mixer._split(x)
    found = causal_conv1d(inputs.mT, mixer.conv1d.weight[:, 0], mixer.conv1d.bias, "silu")
    u, b, c = mixer._heads(_tensor(found).mT)
    b, c = (m.repeat_interleave(mixer.num_heads // mixer.num_groups, dim=2) for m in (b, c))
    delta, A = mixer._step_sizes(raw), mixer._A()
    return Realization(
        name=type(mixer).__name__,
        form=Form("exp(-a Delta_i) I", "Delta_i (I (x) b_i)", "I (x) c_i^T", "diag(D)", STEP),
        u=u,
        readout=lambda y: mixer._out(y.flatten(2), z),
        delta=delta[..., None],
        rate=-A[:, None, None],
        decay=torch.exp(delta * A)[..., None, None],
        write=(delta[..., None] * b).unsqueeze(3),
        read=c.unsqueeze(3),
        skip=mixer.D[:, None],
    )


@realizes(QuasiLSTM)
def quasi_lstm(mixer: QuasiLSTM, x: Tensor, order: None) -> Realization:
    """Gates that forget, write and read independently of each other."""
    kept = "diag sigmoid(f_i)" if mixer.alpha is None else "diag sigmoid(-f_i)^alpha"
    return _recurrence(mixer, x, Form(kept, "diag sigmoid(in_i)", "diag sigmoid(o_i)", "0", "a gate of its own"))


@realizes(RGLRU)
def rg_lru(mixer: RGLRU, x: Tensor, order: None) -> Realization:
    """A gated power of a learned decay; what is written makes room for itself."""
    form = Form(
        "diag a^(8 sigmoid(f_i))", "diag sqrt(1 - Lambda_i^2) sigmoid(in_i)", "I", "0", "a gate, which B follows"
    )
    return _recurrence(mixer, x, form)


def _recurrence(mixer: GatedRecurrence, x: Tensor, form: Form) -> Realization:
    """One number per channel, on what the convolution says."""
    g, u, _, _ = mixer.convolved(x)
    decay, write, read = mixer.gate(u)
    return Realization(
        name=type(mixer).__name__,
        form=form,
        u=u.unsqueeze(2),
        readout=lambda y: mixer.output(F.gelu(g) * y.flatten(2)),
        decay=decay[:, :, None, :, None],
        write=write[:, :, None, :, None],
        read=(torch.ones_like(decay) if read is None else read)[:, :, None, :, None],
        skip=x.new_zeros(1, 1),
    )


def _tensor(found: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return found if isinstance(found, Tensor) else found[0]
