"""Parts that several image backbones share, channels last where not said otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidValue, invalid
from ...mixers.parts import Linear, watched
from ...ops.activated import linear_activated
from ...ops.linear import linear


class DropPath(nn.Module):
    """Stochastic depth: in training, a sample's residual branch is left out with probability ``rate``.

    Huang et al., 2016 (arXiv 1603.09382); what stays is divided by ``1 - rate``.

    Args:
        rate: in [0, 1).

    Raises:
        InvalidValue: another rate.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise invalid("drop_path_rate", rate, "it must be at least 0 and below 1")
        self.rate = rate

    @property
    def drops(self) -> bool:
        """Whether anything may be left out now."""
        return self.training and self.rate > 0

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, ...)``, same shape."""
        if not self.drops:
            return x
        keep = 1 - self.rate
        return x * (torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) < keep).to(x.dtype) / keep


def drop_path_rates(rate: float, depths: tuple[int, ...] | list[int]) -> list[list[float]]:
    """Rates that rise linearly from 0 to ``rate`` over all blocks, by stage."""
    total = sum(depths)
    rates = iter([rate * i / max(1, total - 1) for i in range(total)])
    return [[next(rates) for _ in range(depth)] for depth in depths]


class Mlp(nn.Module):
    """Linear, GELU, linear: the feed-forward of a vision transformer, with timm's names.

    Args:
        dim: channels in and out.
        hidden: channels between.
        dropout: after both layers.
        bias: both layers have biases.
    """

    #: What stands between the two layers.
    activation: ClassVar[type[nn.Module]] = nn.GELU

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden, bias=bias)
        self.act = self.activation()
        self.fc2 = Linear(hidden, dim, bias=bias)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` in and out."""
        return self.drop(self.fc2(self.drop(self._hidden(x))))

    def added_to(self, x: Tensor, y: Tensor, scale: Tensor | None = None) -> Tensor:
        """``x + scale * mlp(y)``, in the last layer's own pass over memory where it is what was made here."""
        fc2 = self.fc2
        if type(fc2) is not Linear or watched(self, fc2, self.drop) or (self.training and self.drop.p):
            z = self(y)
            return x + (z if scale is None else z * scale)
        return linear_activated(self._hidden(y), fc2.weight, fc2.bias, times=() if scale is None else scale, plus=x)

    def _hidden(self, x: Tensor) -> Tensor:
        """Behind the activation; in one step where both modules are what was made here, and nobody watches them."""
        fc1, act = self.fc1, self.act
        if type(fc1) is Linear and type(act) is nn.GELU and act.approximate == "none" and not watched(fc1, act):
            return linear_activated(x, fc1.weight, fc1.bias, "gelu")
        return act(fc1(x))


def feed(x: Tensor, norm: nn.Module, mlp: Mlp, drop_path: DropPath, scale: Tensor | None = None) -> Tensor:
    """The feed-forward as a residual: ``x + drop_path(scale * mlp(norm(x)))``.

    Args:
        x: ``(..., dim)``.
        norm: in front of the feed-forward.
        mlp: the feed-forward.
        drop_path: of the branch.
        scale: factors of the channels; None: 1.
    """
    if not drop_path.drops:
        return mlp.added_to(x, norm(x), scale)
    y = mlp(norm(x))
    return x + drop_path(y if scale is None else y * scale)


def to_channels_last(x: Tensor) -> Tensor:
    """``(B, C, *grid)`` to ``(B, *grid, C)``, a view."""
    return x.movedim(1, -1)


def to_channels_first(x: Tensor) -> Tensor:
    """``(B, *grid, C)`` to ``(B, C, *grid)``, a view."""
    return x.movedim(-1, 1)


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution over ``(B, H, W, C)``, channels last in and out: ``(B, h, w, out)``.

    Without gradients on CPUs, where places are few and weights many, windows are laid out and multiplied with the
    weights as they are: to bring these into a convolution's order, at every call, takes longer than the product.

    Args:
        conv: without groups and dilation, its padding in numbers.
        x: as large as its kernel at least, padding counted.
    """
    (tall, wide), (down, across), (top, left) = conv.kernel_size, conv.stride, map(int, conv.padding)
    height, width = (x.shape[1] + 2 * top - tall) // down + 1, (x.shape[2] + 2 * left - wide) // across + 1
    plain = torch.compiler.is_compiling() or torch.is_grad_enabled() or x.device.type != "cpu"
    if plain or 2 * x.shape[0] * height * width > conv.out_channels:
        return to_channels_last(conv(to_channels_first(x)))
    x = F.pad(x, (0, 0, left, left, top, top))
    windows = x.new_empty(x.shape[0], height, width, x.shape[3], tall, wide)
    for i in range(tall):
        for j in range(wide):
            rows, columns = slice(i, i + down * (height - 1) + 1, down), slice(j, j + across * (width - 1) + 1, across)
            windows[..., i, j] = x[:, rows, columns]
    return linear(windows.flatten(3), conv.weight.flatten(1), conv.bias)


def init_transformer(module: nn.Module) -> None:
    """Initialise as vision transformers are: linear layers from a normal of 0.02 cut at two deviations, zero biases.

    For ``model.apply``; other layers keep their defaults.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_fan_in(module: nn.Module) -> None:
    """Initialise linear layers from a normal of variance 1 / inputs (LeCun et al. 1998), zero biases.

    For ``model.apply``. :func:`init_transformer` is made for hundreds of channels: with 64, tokens attend alike for a
    thousand steps.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


#: How a network may start: as published, or as networks of few channels learn well.
Init = Literal["published", "fan_in"]
INITS: dict[Init, Callable[[nn.Module], None]] = {"published": init_transformer, "fan_in": init_fan_in}


def wave_positions(rows: int, columns: int, dim: int) -> Tensor:
    """Positions as waves, ``(rows, columns, dim)``: sines and cosines of rows, then of columns.

    Wavelengths go from 4 places to twice the longer side, so that neighbours differ on small grids too.
    """
    each = -(-dim // 4)
    rates = math.pi / 2 * (2 / max(rows, columns, 2)) ** torch.linspace(0, 1, each)

    def wave(count: int) -> Tensor:
        turns = torch.arange(count)[:, None] * rates
        return torch.cat([turns.sin(), turns.cos()], -1)

    down = wave(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([down, wave(columns).expand(rows, -1, -1)], -1)[..., :dim]


def check_stages(name: str, **options: Sequence[Any]) -> int:
    """The number of stages; refuses lists of several lengths, and empty ones.

    Raises:
        InvalidValue: they differ, or there is none.
    """
    lengths = {option: len(value) for option, value in options.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        told = ", ".join(f"{n} {option}" for option, n in lengths.items())
        raise InvalidValue(f"{name}: one entry for each stage is needed; there are {told}.")
    return next(iter(lengths.values()))
