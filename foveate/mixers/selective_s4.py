"""Selective S4: a state-space layer that reads only the tokens that matter, as a slowly following copy of it sees them.

Wang et al., "Selective Structured State-Spaces for Long-Form Video Understanding" (CVPR 2023, arXiv 2303.14526),
section 3.3. A copy xi of the layer's weights theta follows them, ``xi = m xi + (1 - m) theta`` after every step,
without gradients. What it makes of all tokens is scored by a mask generator, without attention::

    f = S4_xi(x),   z = MLP(f),   p = softmax(MLP([z | mean of z]))
    y = S4_theta(kept tokens, in their order),   0 for the others

While training, whether a token is kept is drawn by Gumbel-softmax, with straight-through gradients, and what is dropped
is a zero in its place; otherwise the tokens of highest p are gathered and a shorter sequence is read. The authors
published no code: the generator's form follows the text, and S4 is here its diagonal form (:mod:`.s4d`).

For sequences that are read in order (language) the paper has no form. With ``causal=True`` a token is kept if p is
above one half, and the mean runs over the tokens up to it: nothing looks ahead, and a stream is exact.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import invalid
from ..measure.cost import Cost, linear_flops
from ..ops.handwritten import sum_dtype
from ..registry import register
from ..spec import MixerSpec
from .base import Mixer
from .layout import TokenLayout
from .parts import Linear
from .s4d import S4D, S4DState
from .ssm import check_positive
from .state import State, state


@state
class SelectiveS4State(State):
    """Streaming state.

    Attributes:
        kept: state of the layer, which has read the kept tokens.
        guide: state of the copy, which has read all.
        total: ``(batch, hidden)``: sum of the tokens' features so far.
        count: int64 ``(batch,)``: number of tokens read.
    """

    kept: S4DState
    guide: S4DState
    total: Tensor
    count: Tensor


class MomentumS4D(S4D):
    """A copy whose weights are buffers. It computes in float32: what it decides is the same in every precision."""

    def __init__(self, original: S4D, **options: Any) -> None:
        super().__init__(original.dim, **options)
        self.load_state_dict(original.state_dict())
        for module in (self, self.out):
            for name, value in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, value.detach())

    def no_weight_decay(self) -> list[nn.Parameter]:
        """It has no parameters."""
        return []

    @torch.no_grad()
    def follow(self, original: S4D, momentum: float) -> None:
        """Move towards the original's weights."""
        for mine, theirs in zip(self.buffers(), _values(original), strict=True):
            mine.mul_(momentum).add_(theirs.detach().to(mine.dtype), alpha=1 - momentum)

    def _emit(self, v: Tensor, x: Tensor) -> Tensor:
        assert self.out.bias is not None
        weight, bias, skip = (m.to(x.dtype) for m in (self.out.weight, self.out.bias, self.D))
        return F.glu(F.linear(F.gelu(v + skip * x), weight, bias), dim=-1)


def _values(module: S4D) -> list[Tensor]:
    """Weights in the order in which a copy lists them."""
    return [*(p for _, p in module.named_parameters(recurse=False)), *module.out.parameters()]


class MaskGenerator(nn.Module):
    """Scores tokens by what they are and by the mean of all, without attention, as DynamicViT does (arXiv 2106.02034).

    Args:
        dim: channels of a token.
        hidden: width of the features, of each token and of the mean.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.feature = Linear(dim, hidden)
        self.inner = Linear(2 * hidden, hidden)
        self.score = Linear(hidden, 2)
        for layer in (self.feature, self.inner, self.score):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():  # at first neither answer is preferred
            self.score.weight[0] = -self.score.weight[1]

    def features(self, f: Tensor) -> Tensor:
        """``(..., dim)`` to ``(..., hidden)``."""
        return F.gelu(_wide(self.feature, F.layer_norm(f, f.shape[-1:])))

    def logits(self, z: Tensor, mean: Tensor) -> Tensor:
        """Of dropping and of keeping, ``(..., 2)``."""
        return _wide(self.score, F.gelu(_wide(self.inner, torch.cat([z, mean.expand_as(z)], -1))))


def _wide(layer: Linear, x: Tensor) -> Tensor:
    """The layer in the precision of ``x``."""
    assert layer.bias is not None
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


@register("mixer", "selective_s4")
class SelectiveS4(Mixer):
    """S4D on the tokens that a mask generator keeps; a momentum copy of the layer is what the generator reads.

    Masked tokens are taken out of the sequence, as if they had never been there. While training, the squared distance
    of the share of kept tokens from ``keep_ratio`` is the auxiliary loss "keep_ratio".

    Args:
        dim: channels of a token.
        causal: each token is chosen by itself and earlier ones; otherwise by comparison with all.
        keep_ratio: share of the tokens that is kept; 1: all, and this is S4D.
        momentum: m of the copy, see :meth:`after_step`.
        tau: temperature of the choice while training.
        hidden: width of the generator; None: half of ``dim``.
        d_state: numbers of state per channel, even.
        topk: outside of training, keep exactly ``keep_ratio`` of the tokens, those of highest probability; False: those
            of a probability above one half, as always if causal.
        gather: drop tokens out of the sequence while training too; False: put zeros in their places, as published, so
            that dropped tokens have gradients. The state then decays over them, which it does not do afterwards.

    Raises:
        InvalidValue: an option that is not legal.
    """

    spec = MixerSpec(
        causal="strict",
        streaming="exact",
        padding="masked",
        export_note="ONNX has no complex numbers, and its chunks are unrolled: the graph grows with the length",
    )

    def __init__(
        self,
        dim: int,
        *,
        causal: bool = False,
        keep_ratio: float = 0.5,
        momentum: float = 0.99,
        tau: float = 1.0,
        hidden: int | None = None,
        d_state: int = 64,
        topk: bool = True,
        gather: bool = False,
    ) -> None:
        super().__init__(dim, causal=causal)
        if not 0 < keep_ratio <= 1:
            raise invalid("keep_ratio", keep_ratio, "it must be above 0 and at most 1")
        if not 0 <= momentum <= 1:
            raise invalid("momentum", momentum, "it must be in 0 ... 1")
        if not 0 < tau < math.inf:
            raise invalid("tau", tau, "it must be positive and finite")
        self.hidden = max(1, dim // 2) if hidden is None else hidden
        check_positive(hidden=self.hidden)
        self.keep_ratio, self.momentum, self.tau, self.gather = keep_ratio, momentum, tau, gather
        self.topk = topk and not causal
        self.s4 = S4D(dim, causal=causal, d_state=d_state)
        self.guide = MomentumS4D(self.s4, causal=causal, d_state=d_state)
        self.generator = MaskGenerator(dim, self.hidden)

    def after_step(self, progress: Any = None) -> None:
        """The copy follows, ``xi = m xi + (1 - m) theta``; called after every step of the optimiser."""
        self.guide.follow(self.s4, self.momentum)

    def logits(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Of dropping and of keeping each token: float32 ``(batch, length, 2)`` of ``(batch, length, dim)``."""
        with torch.no_grad():
            f = self.guide(x.detach().to(sum_dtype(x.dtype)), mask=mask)
        z = self.generator.features(f)
        real = torch.ones_like(z[..., :1]) if mask is None else mask.unsqueeze(-1).to(z.dtype)
        if self.causal:
            mean = (z * real).cumsum(1) / real.cumsum(1).clamp(min=1)
        else:
            mean = (z * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
        return self.generator.logits(z, mean)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """Mix ``(batch, length, dim)``; see :class:`~foveate.mixers.Mixer`."""
        self.check_input(x, mask, context, layout)
        self.aux_losses = {}
        if self.keep_ratio == 1:
            return self.s4(x, mask=mask)
        x = x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0)
        if self.training:
            return self._train(x, self.logits(x, mask), mask)
        with torch.no_grad():  # a hard choice has no gradient
            logits = self.logits(x, mask)
        if self.topk:
            return self._best(x, logits, mask)
        keep = self._kept(logits)
        return self.s4(x, mask=keep if mask is None else keep & mask)

    def _train(self, x: Tensor, logits: Tensor, mask: Tensor | None) -> Tensor:
        """Draws what is kept; the hard choice has the gradient of the soft one."""
        keep = F.gumbel_softmax(logits, self.tau, hard=True)[..., 1:]
        real = torch.ones_like(keep) if mask is None else mask.unsqueeze(-1).to(keep.dtype)
        share = (keep * real).sum() / real.sum().clamp(min=1)
        self.aux_losses = {"keep_ratio": (share - self.keep_ratio).square()}
        keep = (keep * real).to(x.dtype)
        seen = keep.squeeze(-1) > 0.5 if self.gather else mask
        return self.s4(x * keep, mask=seen) * keep

    def kept_of(self, length: int) -> int:
        """How many of so many tokens are kept at most where the best are: at least one."""
        return max(1, math.floor(self.keep_ratio * length + 0.5))

    def _best(self, x: Tensor, logits: Tensor, mask: Tensor | None) -> Tensor:
        """The best tokens alone, in their order; equal ones by their places."""
        scores = logits[..., 1] - logits[..., 0]
        scores = scores if mask is None else scores.masked_fill(~mask, -math.inf)
        best = torch.argsort(scores, dim=1, descending=True, stable=True)[:, : self.kept_of(x.shape[1])]
        valid = None
        if mask is not None:  # of few real tokens fewer are kept
            real = mask.sum(1, keepdim=True)
            count = (self.keep_ratio * real + 0.5).floor().clamp(min=1).minimum(real)
            best = best.masked_fill(torch.arange(best.shape[1], device=x.device) >= count, x.shape[1])
        best = best.sort(1).values
        if mask is not None:
            valid = best < x.shape[1]
            best = best.where(valid, 0)
        index = best.unsqueeze(-1).expand(-1, -1, x.shape[2])
        y = self.s4(x.gather(1, index), mask=valid)
        return torch.zeros_like(x).scatter_add(1, index, y.to(x.dtype))

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> SelectiveS4State:
        """Zeros, in float32 (float64 if ``dtype``, by default that of the weights, is).

        Raises:
            InvalidType: the mixer is not causal.
        """
        if not self.causal:
            raise self._no_streaming()
        weight = self.generator.feature.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        return SelectiveS4State(
            kept=self.s4.init_state(batch_size, device, dtype),
            guide=self.guide.init_state(batch_size, device, dtype),
            total=torch.zeros(batch_size, self.hidden, device=device, dtype=sum_dtype(dtype)),
            count=torch.zeros(batch_size, device=device, dtype=torch.int64),
        )

    def prefill(
        self, x: Tensor, state: SelectiveS4State, mask: Tensor | None = None
    ) -> tuple[Tensor, SelectiveS4State]:
        """Read ``(batch, length, dim)`` after ``state``; a masked token leaves the state as it is.

        What is kept is decided as outside of training.
        """
        if not self.causal:
            raise self._no_streaming()
        self.check_stream(x, state, mask)
        wide = x.to(sum_dtype(x.dtype))
        with torch.no_grad():
            f, guide = self.guide.prefill(wide, state.guide, mask)
        z = self.generator.features(f)
        real = torch.ones_like(z[..., :1]) if mask is None else mask.unsqueeze(-1).to(z.dtype)
        totals = state.total[:, None] + (z * real).cumsum(1)
        counts = state.count[:, None, None] + real.cumsum(1)
        keep = self._kept(self.generator.logits(z, totals / counts.clamp(min=1)))
        y, kept = self.s4.prefill(x, state.kept, keep if mask is None else keep & mask)
        given = x.shape[1] if mask is None else mask.sum(1)
        return y, SelectiveS4State(kept, guide, totals[:, -1], state.count + given)

    def step(self, x_t: Tensor, state: SelectiveS4State) -> tuple[Tensor, SelectiveS4State]:
        """Read one token ``(batch, dim)``; what is kept is decided as outside of training.

        Raises:
            InvalidValue: anything but one token per sample, or a state that does not fit.
        """
        if not self.causal:
            raise self._no_streaming()
        self.check_step(x_t, state)
        with torch.no_grad():
            f, guide = self.guide.step(x_t.to(sum_dtype(x_t.dtype)), state.guide)
        z, count = self.generator.features(f), state.count + 1
        total = state.total + z
        keep = self._kept(self.generator.logits(z, total / count.unsqueeze(-1))).unsqueeze(-1)
        y, kept = self.s4.step(x_t, state.kept)
        ssm = torch.where(keep[..., None, None], kept.ssm, state.kept.ssm)
        return y.masked_fill(~keep, 0), SelectiveS4State(S4DState(ssm), guide, total, count)

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """The layer on the tokens that it reads, the copy on all, and the generator.

        While training (``self.training``) the layer reads all tokens; nothing of the copy is kept for backward.
        """
        n, hidden = grid[0], self.hidden
        parameters = sum(p.numel() for p in self.parameters())
        if self.keep_ratio == 1:
            dense = self.s4.cost(grid, batch)
            return Cost(dense.flops, parameters, dense.activation_bytes, 2 * dense.state_bytes)
        best = self.topk and not self.training
        layer = self.s4.cost((self.kept_of(n) if best else n,), batch)
        flops = layer.flops + self.s4.cost(grid, batch).flops
        flops += linear_flops(batch * n, self.dim + 2 * hidden, hidden) + linear_flops(batch * n, hidden, 2)
        saved = batch * n * (self.dim + 5 * hidden) if self.training else 0
        saved += 2 * batch * self.kept_of(n) * self.dim if best else 0  # gathered, and put back
        own = 4 * batch * hidden + 8 * batch if self.causal else 0
        return Cost(flops, parameters, layer.activation_bytes + 4 * saved, 2 * layer.state_bytes + own)

    def _kept(self, logits: Tensor) -> Tensor:
        kept = logits[..., 1] > logits[..., 0]
        return torch.ones_like(kept) if self.keep_ratio == 1 else kept
