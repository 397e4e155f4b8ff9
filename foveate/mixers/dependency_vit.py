"""Dependency attention: tokens send by reversed attention, one head each, through a gate that closes for good.

Ding et al., "Visual Dependency Transformers" (CVPR 2023, arXiv 2304.03282), section 3; no code was released. Token i
(a child) sends its value to all tokens j (its parents), by weights that sum to one over j::

    A_hij = softmax_j(q_hi . k_hj / sqrt(d))                          forward attention, read in reverse
    P_hi  = softmax_h(W_P x_i / T)                                    head selector: nearly one head for each child
    m_i   = m_i(layer before) sigmoid(w_2 gelu(W_1 x_i))              message controller: never opens again
    y_hj  = sum_i A_hij P_hi m_i v_hi
    D_ji  = sum_h A_hij P_hi m_i                                      the dependency matrix, [parent, child]

What a child sends in all is its gate, ``sum_j D_ji = m_i``. A tree of tokens is read off D. The gate travels from layer
to layer: :meth:`DependencyAttention.send` takes and returns it, and a network hands it on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import InvalidType, InvalidValue, invalid
from ..measure.cost import Cost, linear_flops
from ..ops.arborescence import maximum_arborescence
from ..ops.reversed_attention import reversed_attention
from ..registry import register
from ..spec import MixerSpec, Order
from .base import Mixer, check_heads, grid_size
from .layout import TokenLayout
from .look import Look, check_query
from .parts import Linear


class _Controller(nn.Module):
    """Linear, GELU, linear to one number: the logit of a token's gate."""

    def __init__(self, dim: int, hidden: int, start: float) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden, 1)
        nn.init.constant_(self.fc2.bias, start)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


@register("mixer", "dependency_vit")
class DependencyAttention(Mixer):
    """Reversed attention with a head selector and a message controller.

    Grids of any rank are read as one sequence. Masked tokens send and receive nothing.

    Args:
        dim: channels of a token.
        num_heads: must divide ``dim``.
        causal: must be False.
        qkv_bias: queries, keys and values have biases.
        head_temperature: T of the head selector; at 0.1 one head takes nearly all.
        controller_hidden: inner width of the message controller; None: half of ``dim``.
        gate_start: the logit that gates start with. Gates multiply over layers: at 4 a fresh network of twelve layers
            sends with 0.8 of its strength, at 0 with 0.0002.

    Raises:
        InvalidValue: heads that do not divide, a temperature that is not positive, or another illegal option.
    """

    spec = MixerSpec(ranks=(1, 2, 3), order=Order(flops=2.0, memory=1.0), onnx=True)

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        causal: bool = False,
        qkv_bias: bool = False,
        head_temperature: float = 0.1,
        controller_hidden: int | None = None,
        gate_start: float = 4.0,
    ) -> None:
        super().__init__(dim, causal=causal)
        self.num_heads, self.head_dim = num_heads, check_heads(dim, num_heads)
        if not 0 < head_temperature < math.inf:
            raise invalid("head_temperature", head_temperature, "it must be positive and finite")
        if not math.isfinite(gate_start):
            raise invalid("gate_start", gate_start, "it must be finite")
        hidden = max(1, dim // 2) if controller_hidden is None else controller_hidden
        if not isinstance(hidden, int) or hidden < 1:
            raise invalid("controller_hidden", controller_hidden, "a positive whole number is needed")
        self.head_temperature = head_temperature
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.head_selector = Linear(dim, num_heads, bias=False)
        self.message_controller = _Controller(dim, hidden, gate_start)
        self.proj = Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """Mix ``(batch, *grid, dim)`` with open gates; see :class:`~foveate.mixers.Mixer`."""
        self.check_input(x, mask, context, layout)
        return self.send(x, mask=mask)[0]

    def send(self, x: Tensor, gate: Tensor | None = None, *, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What arrives everywhere, and the gates for the next layer.

        Args:
            x: ``(batch, *grid, dim)``.
            gate: of the layer before, in [0, 1], ``(batch, *grid)``; None: all open.
            mask: bool ``(batch, *grid)``, True = a real token.

        Returns:
            ``(batch, *grid, dim)`` and the gates ``(batch, *grid)``.

        Raises:
            InvalidValue: a gate of another shape, or outside of [0, 1].
            InvalidType: a gate that is not floating.
        """
        y, gate, _ = self._send(x, gate, mask, received=False)
        return y, gate

    def send_and_weigh(self, x: Tensor, gate: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`send`, and what every token received in all, ``sum_i D_ji``: ``(batch, *grid)``."""
        return self._send(x, gate, None, received=True)

    def _send(
        self, x: Tensor, gate: Tensor | None, mask: Tensor | None, received: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        grid = x.shape[1:-1]
        x = x.flatten(1, -2)
        if mask is not None:
            mask = mask.flatten(1)
            x = x.masked_fill(~mask[..., None], 0)  # what is masked may be anything, NaN included
        q, k, v, share, gate = self._messages(x, gate, mask)
        if received:
            v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
        y = reversed_attention(q, k, v * share.transpose(1, 2)[..., None], mask=mask)
        mass = y[..., -1].sum(1) if received else gate
        y = self.proj(y[..., : self.head_dim].transpose(1, 2).flatten(2))
        y = y if mask is None else y.masked_fill(~mask[..., None], 0)
        return y.unflatten(1, grid), gate.unflatten(1, grid), mass.unflatten(1, grid)

    def _messages(
        self, x: Tensor, gate: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """q, k, v ``(batch, heads, n, head_dim)``, shares P m ``(batch, n, heads)``, gates ``(batch, n)``."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        own = torch.sigmoid(self.message_controller(x)).squeeze(-1)
        if gate is not None:
            self._check_gate(gate, x)
            own = own * gate.flatten(1)
        if mask is not None:
            own = own.masked_fill(~mask, 0)
        chosen = (self.head_selector(x) / self.head_temperature).softmax(-1)
        return q, k, v, chosen * own[..., None], own

    def _check_gate(self, gate: Tensor, x: Tensor) -> None:
        if not gate.is_floating_point():
            raise InvalidType(f"{type(self).__name__}: gate must be floating point, not {gate.dtype}.")
        if gate.shape[0] != x.shape[0] or gate.flatten(1).shape[1] != x.shape[1]:
            raise InvalidValue(
                f"{type(self).__name__}: gate has shape {tuple(gate.shape)}; one number for each of "
                f"{x.shape[0]} x {x.shape[1]} tokens is needed."
            )
        if torch.compiler.is_compiling() or gate.device.type == "meta":
            return
        if bool(((gate < 0) | (gate > 1)).any()):
            raise InvalidValue(f"{type(self).__name__}: gate must lie in [0, 1]: it is what a layer before gave.")

    def weights(self, x: Tensor) -> Tensor:
        """A, by which every child sends: ``(batch, heads, children, parents)``, rows sum to one."""
        q, k, *_ = self._messages(x.flatten(1, -2), None, None)
        return (q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)).softmax(-1)

    def dependency(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """D, what is sent in all heads together: ``(batch, n, n)`` at ``[parent, child]``, n tokens row by row.

        Args:
            x: ``(batch, *grid, dim)``.
            gate: of the layer before, ``(batch, *grid)``; None: all open.
        """
        flat = x.flatten(1, -2)
        *_, share, _ = self._messages(flat, gate, None)
        return torch.einsum("bhij,bih->bji", self.weights(flat), share)

    def look(self, x: Tensor, query: tuple[int, ...] | None = None) -> list[Look]:
        """To whom the query sends, from whom it receives, the tree, and how much everyone sends."""
        self.check_input(x)
        grid = tuple(x.shape[1:-1])
        place = check_query(type(self).__name__, query, grid)
        with torch.no_grad():
            weights, found = self.weights(x), self.dependency(x)
            if place is None:
                sends, received = weights.mean(2), found.mean(1)
            else:
                at = int(sum(i * math.prod(grid[axis + 1 :]) for axis, i in enumerate(place)))
                sends, received = weights[:, :, at], found[:, at]
            received = received / received.sum(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        return [
            Look("weights", received[:, None].unflatten(-1, grid), "receives from"),
            Look("weights", sends.unflatten(-1, grid), "sends to"),
            Look("tree", extract_tree(found), "tree"),
            Look("gate", found.sum(1)[:, None].unflatten(-1, grid), "sent"),
        ]

    def cost(self, grid: tuple[int, ...], batch: int = 1) -> Cost:
        """Projections, selector and controller, and the two products with all weights."""
        n, dim, heads = grid_size(grid), self.dim, self.num_heads
        hidden = self.message_controller.fc1.out_features
        flops = linear_flops(n, dim, 4 * dim + heads + hidden) + linear_flops(n, hidden, 1) + 4 * n * n * dim
        saved = n * (6 * dim + 2 * hidden + 4 * heads + 4)
        parameters = sum(p.numel() for p in self.parameters())
        return Cost(flops=batch * flops, parameters=parameters, activation_bytes=4 * batch * saved)


def extract_tree(dependency: Tensor, root: Tensor | int | None = None) -> Tensor:
    """The tree of tokens that a dependency matrix holds: its maximum spanning arborescence.

    Args:
        dependency: ``(batch, n, n)`` at ``[parent, child]``, of one layer or summed over several.
        root: of every tree; None: the token that receives most, itself included.

    Returns:
        int64 ``(batch, n)``: the parent of every token, -1 for the root.

    Raises:
        InvalidValue: another shape, or values that are not finite.
    """
    if dependency.ndim != 3 or dependency.shape[1] != dependency.shape[2]:
        raise InvalidValue(f"dependency has shape {tuple(dependency.shape)}; (batch, n, n) is needed.")
    return maximum_arborescence(dependency, dependency.sum(2).argmax(1) if root is None else root)


def subtrees(parents: Tensor) -> Tensor:
    """Which tokens hang under which: bool ``(batch, n, n)`` at ``[node, token]``, every node under itself.

    Args:
        parents: int64 ``(batch, n)`` from :func:`extract_tree`.
    """
    count = parents.shape[1]
    step = torch.zeros(*parents.shape, count, dtype=torch.bool, device=parents.device)
    step.scatter_(2, parents.clamp(min=0)[..., None], (parents >= 0)[..., None])  # [token, parent]
    above = step | torch.eye(count, dtype=torch.bool, device=parents.device)
    for _ in range(max(1, math.ceil(math.log2(max(2, count))))):
        above = (above.float() @ above.float()) > 0
    return above.transpose(1, 2)


def part_segments(parents: Tensor, k: int) -> Tensor:
    """Cut trees into k parts: the largest one is halved as evenly as its edges allow, again and again.

    Args:
        parents: int64 ``(batch, n)`` from :func:`extract_tree`.
        k: number of parts, from 1 to n.

    Returns:
        int64 ``(batch, n)``: the part of every token, 0 to k - 1; part 0 has the root.

    Raises:
        InvalidValue: another number of parts.
    """
    count = parents.shape[1]
    if not isinstance(k, int) or not 1 <= k <= count:
        raise invalid("k", k, f"a whole number from 1 to {count} is needed")
    below = subtrees(parents)
    labels = torch.zeros_like(parents)
    for tree, under, label in zip(parents, below, labels, strict=True):
        cut = tree < 0  # nodes whose edge to the parent is gone, the root among them
        for part in range(1, k):
            sizes = torch.bincount(label, minlength=part)
            largest = int(sizes.argmax())
            inside = label == largest
            held = (under & inside).sum(1)
            unbalance = (2 * held - sizes[largest]).abs().masked_fill(cut | ~inside, torch.iinfo(held.dtype).max)
            node = int(unbalance.argmin())
            label[under[node] & inside] = part
            cut[node] = True
    return labels
