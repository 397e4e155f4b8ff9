"""The neural memory of Titans (LMM) as a token mixer: a small network per head that learns while it reads.

Behrouz, Zhong and Mirrokni, "Titans: Learning to Memorize at Test Time", arXiv 2501.00663, sections 3 and 4.4::

    q, k, v = silu(conv(x W)),  q = q / |q|,  k = k / |k|              conv: causal, depthwise
    alpha, eta = sigmoid(x W),  theta = max_lr sigmoid(x W)            per token and head
    S_t = eta_t S_{t-1} - theta_t grad |M(k_t) - v_t|^2                surprise, with momentum
    M_t = (1 - alpha_t) M_{t-1} + S_t                                  memory, with forgetting
    y   = (norm(M_t(q_t)) * sigmoid(x W)) W_out

Gradients of a chunk of tokens are taken at the weights it starts from (:mod:`foveate.ops.neural_memory`), everything
else token by token. The state is the memory, its momentum and those weights: nothing in it grows.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidValue, invalid
from ...measure.cost import Cost, linear_flops
from ...ops.causal_conv1d import causal_conv1d, causal_conv1d_update
from ...ops.handwritten import sum_dtype
from ...ops.linear import linear
from ...ops.memory_networks import recall
from ...ops.neural_memory import flatten, initial_weights, neural_memory, neural_memory_step
from ...ops.neural_memory_chunks import memory_flops, memory_saved
from ...registry import register
from ...spec import MixerSpec, Order
from ..base import Mixer, check_heads
from ..layout import TokenLayout
from ..parts import Linear
from ..ssm import Packing, check_positive
from ..state import State, state
from .frame import Frame

Loss = Literal["sum", "mean"]


#: What forgetting begins with, before the sigmoid: alpha = 0.0025, half of a memory in 280 tokens.
START_FORGET = -6.0


@state
class MemoryState(State):
    """Streaming state; its size does not depend on how much was read.

    Attributes:
        conv: ``(batch, 3 * inner, conv)``, the last inputs of the convolution, latest last; None without one.
        memory: the weights now, ``(batch, heads, ...)`` each, float32.
        momentum: the last surprise, of the same shapes; None without momentum.
        base: the weights at the start of the open chunk, where its gradients are taken.
        count: int64 ``(batch,)``, tokens read.
    """

    conv: Tensor | None
    memory: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...] | None
    base: tuple[Tensor, ...]
    count: Tensor


def xavier(heads: int, before: int, after: int) -> Tensor:
    """``(heads, before, after)``: each head's matrix drawn by itself, uniform, of Xavier's variance."""
    return torch.stack([nn.init.xavier_uniform_(torch.empty(before, after)) for _ in range(heads)])


@register("mixer", "titans_lmm", system="titans")
class TitansLMM(Mixer):
    """Long-term memory: reads and writes a network per head, in linear time and with a state of constant size.

    A token reads the memory after it was written (``y_t = M_t(q_t)``). Masked tokens are taken out of the sequence.
    Segments of a layout are kept apart: each document begins with a new memory; positions are not read.

    For hybrids, :meth:`store` and :meth:`retrieve` are the two halves: writing without reading, and reading the memory
    as it is.

    Args:
        dim: channels of a token.
        num_heads: memories.
        causal: must be True.
        head_dim: width of a head; None: ``dim / num_heads``.
        chunk: tokens whose gradients are taken at the same weights; 1 is the recurrence of the paper, larger chunks
            are faster. It changes what is computed, so train and test alike.
        depth: matrices of a memory.
        expansion: width between them, in head widths.
        momentum: past surprise goes on (eta); False: eta = 0.
        decay: the memory forgets (alpha); False: alpha = 0.
        conv: width of the convolution; 0: none.
        max_lr: largest step size theta.
        norm: normalise a memory's output and add its input, as in TTT layers.
        loss: sum of the squared errors over the channels, or their mean.
        max_grad: bound on the norm of a token's gradient in each weight. None: no bound, as in the paper; then memories
            can run away where many tokens of a chunk are alike.

    Raises:
        InvalidValue: ``causal=False``, or an option that is not legal.
    """

    spec = MixerSpec(
        ranks=(1,),
        causal="strict",
        bidirectional=False,
        streaming="exact",
        padding="masked",
        layout=True,
        segments=True,
        order=Order(flops=1.0, memory=1.0),
        onnx=True,
        export_note="its loop over chunks is unrolled: the graph grows with the length",
    )

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        causal: bool = True,
        head_dim: int | None = None,
        chunk: int = 16,
        depth: int = 2,
        expansion: float = 2.0,
        momentum: bool = True,
        decay: bool = True,
        conv: int = 4,
        max_lr: float = 0.1,
        norm: bool = False,
        loss: Loss = "sum",
        max_grad: float | None = 1.0,
    ) -> None:
        super().__init__(dim, causal=causal)
        head_dim = check_heads(dim, num_heads) if head_dim is None else head_dim
        check_positive(num_heads=num_heads, head_dim=head_dim, chunk=chunk, depth=depth)
        if not isinstance(conv, int) or conv < 0:
            raise invalid("conv", conv, "a whole number, 0 for none, is needed")
        if not 0 < max_lr < math.inf:
            raise invalid("max_lr", max_lr, "a positive number is needed")
        if not expansion > 0 or int(head_dim * expansion) < 1:
            raise invalid("expansion", expansion, f"it must leave a channel of head_dim={head_dim}")
        if loss not in ("sum", "mean"):
            raise invalid("loss", loss, "it must be 'sum' or 'mean'")
        if max_grad is not None and not 0 < max_grad < math.inf:
            raise invalid("max_grad", max_grad, "a positive number, or None, is needed")
        self.max_grad = max_grad
        self.num_heads, self.head_dim, self.inner = num_heads, head_dim, num_heads * head_dim
        self.chunk, self.max_lr, self.norm = chunk, max_lr, norm
        self.loss: Loss = loss
        self.momentum, self.decay, self.conv_width = momentum, decay, conv
        hidden = int(head_dim * expansion)
        widths = [head_dim, *[hidden] * (depth - 1), head_dim]
        self.sizes = list(itertools.pairwise(widths))
        self.qkv = Linear(dim, 3 * self.inner, bias=False)
        self.conv1d = nn.Conv1d(3 * self.inner, 3 * self.inner, conv, groups=3 * self.inner) if conv else None
        with torch.no_grad():  # queries begin as keys do: what was written for a token is found by its like
            self.qkv.weight[: self.inner] = self.qkv.weight[self.inner : 2 * self.inner]
            if self.conv1d is not None:  # and the convolution with each token itself
                self.conv1d.weight.mul_(0.1)[..., -1] = 1
                self.conv1d.weight[: self.inner] = self.conv1d.weight[self.inner : 2 * self.inner]
                assert self.conv1d.bias is not None
                nn.init.zeros_(self.conv1d.bias)
        self.gates = Linear(dim, num_heads * (1 + decay + momentum))
        if decay:  # a memory that forgets half of itself at every token learns nothing
            nn.init.constant_(self.gates.bias[num_heads : 2 * num_heads], START_FORGET)
        weights = [xavier(num_heads, i, o) for i, o in self.sizes]
        self.weights = nn.ParameterList([*weights, *([torch.zeros(num_heads, head_dim)] if norm else [])])
        self.read_norm = nn.Parameter(torch.ones(self.inner))
        self.gate = Linear(dim, self.inner, bias=False)
        self.out = Linear(self.inner, dim, bias=False)

    def no_weight_decay(self) -> list[nn.Parameter]:
        """What a memory starts from."""
        return list(self.weights)

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
        return self._mix(x, mask, None if layout is None else layout.segments, None)[0]

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> MemoryState:
        """The learned start: weights in float32, the convolution's inputs in ``dtype`` (default: the weights')."""
        weight = self.out.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        drawn = initial_weights(list(self.weights), batch_size, sum_dtype(dtype))
        start = tuple(w.to(device).contiguous() for w in drawn)
        conv = torch.zeros(batch_size, 3 * self.inner, self.conv_width, device=device, dtype=dtype)
        return MemoryState(
            conv=conv if self.conv_width else None,
            memory=start,
            momentum=tuple(map(torch.zeros_like, start)) if self.momentum else None,
            base=start,
            count=torch.zeros(batch_size, device=device, dtype=torch.int64),
        )

    def prefill(
        self, x: Tensor, state: MemoryState, mask: Tensor | None = None, *, aligned: bool = False
    ) -> tuple[Tensor, MemoryState]:
        """Read ``(batch, length, dim)`` after ``state``; a masked token leaves the state as it is.

        ``aligned`` says that every sample stands at the border of a chunk, which spares the empty places of a chunk
        that was begun before.

        Raises:
            InvalidValue: a state of another mixer or batch.
        """
        self.check_stream(x, state, mask)
        return self._mix(x, mask, None, state, aligned=aligned)

    def step(self, x_t: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
        """Read one token ``(batch, dim)``, in time that does not depend on the chunk.

        Raises:
            InvalidValue: anything but one token per sample, or a state of another mixer or batch.
        """
        self.check_step(x_t, state)
        qkv, conv = self.qkv(x_t), state.conv
        if self.conv1d is not None:
            assert conv is not None
            qkv, conv = causal_conv1d_update(qkv, conv, self.conv1d.weight[:, 0], self.conv1d.bias, "silu")
        else:
            qkv = F.silu(qkv)
        q, k, v = (t.squeeze(2) for t in self._heads(qkv.unsqueeze(1)))
        forget, eta, theta = self._gates_of(self.gates(x_t).unsqueeze(1))
        count, tensors = state.count + 1, (state.memory, state.momentum, state.base)
        y, after = neural_memory_step(
            q,
            k,
            v,
            forget.squeeze(2),
            None if eta is None else eta.squeeze(2),
            theta.squeeze(2),
            tensors,
            count % self.chunk == 0,
            norm=self.norm,
            loss=self.loss,
            largest=self.max_grad,
        )
        memory, momentum, base = after
        return self._emit(y.flatten(1), x_t), MemoryState(conv, memory, momentum, base, count)

    def retrieve(self, x: Tensor, state: MemoryState) -> Tensor:
        """Read the memory as it is with the queries of ``(batch, length, dim)``; nothing is written.

        The convolution begins anew: it sees ``x`` alone.
        """
        self.check_stream(x, state)
        q = linear(x, self.qkv.weight[: self.inner])
        q = self._heads(self._convolve(q, self.inner, None, None, None)[0])[0]
        weights = flatten(state.memory)
        y = recall(weights, q.to(weights[0].dtype).flatten(0, 1), self.norm)
        return self._emit(y.unflatten(0, q.shape[:2]).transpose(1, 2).flatten(2).to(x.dtype), x)

    def store(self, x: Tensor, state: MemoryState, mask: Tensor | None = None) -> MemoryState:
        """Write ``(batch, length, dim)`` without reading: the state that :meth:`prefill` would leave."""
        self.check_stream(x, state, mask)
        return self._mix(x, mask, None, state, read=False)[1]

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Counts the projections, the convolution and the products of the memories' chunks."""
        length, tokens = grid[0], batch * grid[0]
        flops = (
            linear_flops(tokens, self.dim, 4 * self.inner + self.gates.out_features)
            + linear_flops(tokens, 3 * self.inner, self.conv_width)
            + batch * self.num_heads * memory_flops(length, self.chunk, self.sizes, self.norm, self.momentum)
            + linear_flops(tokens, self.inner, self.dim)
        )
        weights = sum(w.numel() for w in self.weights)
        # x, the projection and its convolution, what was read, its norm, the gate and their products; the memories.
        saved = tokens * (self.dim + 12 * self.inner) + batch * self.num_heads * memory_saved(
            length, self.chunk, self.sizes, self.norm, self.momentum, self.max_grad is not None
        )
        return Cost(
            flops=flops,
            parameters=sum(p.numel() for p in self.parameters()),
            activation_bytes=4 * saved,
            state_bytes=batch * (4 * (2 + self.momentum) * weights + 12 * self.inner * self.conv_width + 8),
        )

    def _mix(
        self,
        x: Tensor,
        mask: Tensor | None,
        segments: Tensor | None,
        past: MemoryState | None,
        read: bool = True,
        aligned: bool = False,
    ) -> tuple[Tensor, MemoryState]:
        given, (packing, x, segments) = x, Packing.take_out(x, mask, segments)
        raw = self.qkv(x)
        qkv, conv = self._convolve(raw, 3 * self.inner, segments, None if past is None else past.conv, packing)
        gates, frame = self.gates(x), None
        if packing is not None or segments is not None or (past is not None and not aligned):
            real = torch.ones_like(x[..., 0], dtype=torch.bool) if packing is None else packing.valid
            phase = None if past is None else past.count % self.chunk
            frame = Frame.of(real, self.chunk, phase, segments)
            qkv, gates = frame.place(qkv), frame.place(gates)
        q, k, v = self._heads(qkv)
        found = neural_memory(
            q if read else None,
            k,
            v,
            *self._gates_of(gates),
            list(self.weights),
            chunk=self.chunk,
            norm=self.norm,
            loss=self.loss,
            largest=self.max_grad,
            state=None if past is None else (past.memory, past.momentum, past.base),
            valid=None if frame is None else frame.valid,
            starts=None if frame is None else frame.starts,
            return_state=True,
        )
        count = torch.full_like(x[:, 0, 0], x.shape[1], dtype=torch.int64) if mask is None else mask.sum(1)
        assert isinstance(found, tuple)
        y, (memory, momentum, base) = found
        state = MemoryState(conv, memory, momentum, base, count if past is None else past.count + count)
        if y is None:
            return given, state
        y = y.transpose(1, 2).flatten(2)
        y = self._emit(y if frame is None else frame.take(y), x)
        return (y if packing is None else packing.unpack(y)), state

    def _convolve(
        self, raw: Tensor, channels: int, segments: Tensor | None, before: Tensor | None, packing: Packing | None
    ) -> tuple[Tensor, Tensor | None]:
        """SiLU of the convolution (of its first ``channels``), and its last inputs."""
        if self.conv1d is None:
            return F.silu(raw), None
        weight, bias = self.conv1d.weight[:channels, 0], self.conv1d.bias
        assert bias is not None
        y, after = causal_conv1d(
            raw.transpose(1, 2), weight, bias[:channels], "silu", before, return_state=True, seq_idx=segments
        )
        if packing is not None:
            after = packing.last(raw, before, self.conv_width)
        return y.transpose(1, 2), after

    def _heads(self, qkv: Tensor) -> list[Tensor]:
        """Queries, keys and values ``(batch, heads, length, head_dim)`` of those that are there; the first two of
        length 1."""
        parts = qkv.split(self.inner, -1)
        heads = [t.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for t in parts]
        return [F.normalize(t, dim=-1) if i < 2 else t for i, t in enumerate(heads)]

    def _gates_of(self, gates: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Forgetting, momentum and step size ``(batch, heads, length)``."""
        parts = list(torch.sigmoid(gates.to(sum_dtype(gates.dtype))).transpose(1, 2).split(self.num_heads, 1))
        step = self.max_lr * parts.pop(0)
        forget = parts.pop(0) if self.decay else torch.zeros_like(step)
        return forget, parts.pop(0) if self.momentum else None, step

    def _emit(self, y: Tensor, x: Tensor) -> Tensor:
        """The output of what the heads read, ``(..., inner)``, and the tokens ``(..., dim)``."""
        normed = F.rms_norm(y.unflatten(-1, (self.num_heads, self.head_dim)), (self.head_dim,), eps=1e-6).flatten(-2)
        return self.out(normed * self.read_norm * torch.sigmoid(self.gate(x)))

    def _check_state(self, given: Any, batch: int) -> None:
        super()._check_state(given, batch)
        check_momentum(self, given)


def check_momentum(mixer: Any, given: Any) -> None:
    """Refuse a state with momentum for a ``mixer`` without, and the other way round."""
    if (given.momentum is None) == mixer.momentum:
        raise InvalidValue(
            f"{type(mixer).__name__}: the state has {'no ' * mixer.momentum}momentum; "
            f"this mixer needs one with{'' if mixer.momentum else 'out'}."
        )
