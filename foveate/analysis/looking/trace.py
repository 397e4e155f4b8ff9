"""Running a model on an image, and asking each mixer in it what it attends to."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InvalidType, InvalidValue, unknown_name
from ...mixers.base import Mixer
from ...mixers.look import Look
from ...models.base import registered_name
from .subject import Shown, Subject

#: Tokens of their own that a sequence of patches may begin with.
MOST_CLASS_TOKENS = 16
Query = tuple[int, int] | str | None


@dataclass(frozen=True, slots=True)
class Seen:
    """What one mixer told about one image.

    Attributes:
        path: of the mixer in the model.
        mixer: the name that it is registered under, else that of its class.
        grid: ``(rows, columns)`` of its places.
        stride: pixels, down and across, of what the model sees, from one place to the next.
        query: the place that was asked; None: a class token.
        looks: with batch axis, over ``grid``: tokens of their own are taken out.
        beside: share of the weights on such tokens, mean over heads, 0 where there are none.
        asked: how the query is called: "(row, column)" or "class token".
    """

    path: str
    mixer: str
    grid: tuple[int, int]
    stride: tuple[float, float]
    query: tuple[int, int] | None
    looks: tuple[Look, ...]
    beside: float
    asked: str

    def spread(self) -> float:
        """Places that the weights are spread over, the exponential of their entropy, mean over heads; NaN without."""
        weights = self._weights()
        if weights is None:
            return math.nan
        p = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
        return float(torch.special.entr(p).sum(-1).exp().mean())

    def distance(self) -> float:
        """Mean distance of what is read from the query, in pixels that the model sees; NaN without query or weights."""
        weights = self._weights()
        if weights is None or self.query is None:
            return math.nan
        rows = (torch.arange(self.grid[0]) - self.query[0]) * self.stride[0]
        columns = (torch.arange(self.grid[1]) - self.query[1]) * self.stride[1]
        away = (rows[:, None].square() + columns.square()).sqrt().flatten()
        return float((weights * away).sum(-1).mean() / weights.sum(-1).mean().clamp(min=1e-12))

    def _weights(self) -> Tensor | None:
        found = next((one.values for one in self.looks if one.kind == "weights"), None)
        return None if found is None else found[0].flatten(1).double().cpu()


@dataclass(slots=True)
class _Call:
    path: str
    mixer: Mixer
    x: Tensor
    extra: dict[str, Any]


def lookable(network: nn.Module) -> dict[str, Mixer]:
    """The mixers of a model that tell what they attend to, by path."""
    return {path: m for path, m in network.named_modules() if isinstance(m, Mixer) and type(m).look is not Mixer.look}


def chosen(found: dict[str, Mixer], layer: int | str | Sequence[int | str] | None, name: str) -> dict[str, Mixer]:
    """Those of a layer's number or path; None: all.

    Raises:
        InvalidType: there is none at all.
        InvalidValue: no layer of this number.
        UnknownName: no layer of this path.
    """
    if not found:
        raise InvalidType(f"{name} has nothing to look at: none of its mixers tells what it attends to.")
    if layer is None:
        return found
    paths = list(found)
    picked = []
    for one in [layer] if isinstance(layer, int | str) else layer:
        if isinstance(one, int):
            if not -len(paths) <= one < len(paths):
                raise InvalidValue(
                    f"layer={one} does not exist: {name} has {len(paths)} that can be looked at, 0 to {len(paths) - 1}."
                )
            picked.append(paths[one])
        elif one in found:
            picked.append(one)
        else:
            raise unknown_name("layer", one, found)
    return {path: found[path] for path in paths if path in picked}


def trace(subject: Subject, shown: Shown, layers: dict[str, Mixer], query: Query) -> tuple[Tensor, tuple[Seen, ...]]:
    """Run the model, and ask its layers in the order in which they were called.

    Args:
        query: a pixel (row, column) of the image; "class"; None: the middle.

    Returns:
        The model's answer, and what each layer told.

    Raises:
        InvalidValue: a query outside of the image, or no class token; nothing of the layers lies over the image.
    """
    calls: list[_Call] = []
    hooks = []
    for path, mixer in layers.items():

        def keep(module: nn.Module, given: Any, named: dict[str, Any], path: str = path, mixer: Mixer = mixer) -> None:
            x = given[0] if given else named["x"]
            if x.shape[-1] != mixer.dim and x.shape[1] == mixer.dim:  # inside a network of convolutions
                x = x.movedim(1, -1)
            calls.append(_Call(path, mixer, x, named))

        hooks.append(mixer.register_forward_pre_hook(keep, with_kwargs=True))
        projection = getattr(mixer, "qkv", None)
        if isinstance(projection, nn.Linear):  # what reads the tokens of a mixer that a network calls in pieces

            def keep_pieces(module: nn.Module, given: Any, path: str = path, mixer: Mixer = mixer) -> None:
                if all(call.path != path for call in calls):
                    calls.append(_Call(path, mixer, given[0], {}))

            hooks.append(projection.register_forward_pre_hook(keep_pieces))
    try:
        with torch.no_grad():
            answer = subject.network.eval()(shown.input)
            place = None if isinstance(query, str) else shown.seen(query or _middle(shown))
            seen = [one for call in calls if (one := _asked(subject.network, shown, call, query, place)) is not None]
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        if query == "class":
            raise InvalidValue(f"query='class' is not possible: no layer of {subject.name} has a class token.")
        raise InvalidValue(f"{subject.name} has nothing to show: no layer that was called mixes places of the image.")
    return answer, tuple(seen)


def _middle(shown: Shown) -> tuple[int, int]:
    return shown.full[0] // 2, shown.full[1] // 2


def _asked(
    network: nn.Module, shown: Shown, call: _Call, query: Query, place: tuple[float, float] | None
) -> Seen | None:
    """What a layer says; None where its tokens are not places of the image, or it has no class token to ask."""
    tokens = tuple(call.x.shape[1:-1])
    layout = call.extra.get("layout")
    if layout is not None and layout.source is not None:
        grid, order = layout.grid, torch.argsort(layout.source.where(layout.source >= 0, layout.length), stable=True)
        order = order[: math.prod(grid)]
    else:
        grid, order = _grid_of(network, tokens, shown.size)
    if grid is None or len(grid) != 2:
        return None
    stride = tuple(_stride(n, cells) for n, cells in zip(shown.size, grid, strict=True))
    asked: tuple[int, ...] | None = None
    at: tuple[int, int] | None = None
    told = "class token"
    if query == "class":
        if order is None or 0 in order:
            return None
        asked = (0,)
    elif place is not None:
        row, column = (min(int(p / s), n - 1) for p, s, n in zip(place, stride, grid, strict=True))
        at = (row, column)
        flat = row * grid[1] + column
        asked, told = at if order is None else (int(order[flat]),), f"({row}, {column})"
    known = inspect.signature(call.mixer.look).parameters
    extra = {name: value for name, value in call.extra.items() if name in ("mask",) and name in known}
    looks, beside = [], 0.0
    for one in call.mixer.look(call.x, asked, **extra):
        if order is None:
            looks.append(one)
            continue
        if one.kind == "weights":
            beside = 1 - float(one.values[..., order].sum(-1).mean())
        if one.kind != "boxes":
            looks.append(_on_grid(one, order, grid))
    kind, name = registered_name(type(call.mixer))
    name = name if kind == "mixer" else type(call.mixer).__name__
    return Seen(call.path, name, (grid[0], grid[1]), (stride[0], stride[1]), at, tuple(looks), max(0.0, beside), told)


def _on_grid(one: Look, order: Tensor, grid: tuple[int, ...]) -> Look:
    """A look over a sequence as one over the grid whose places stand at ``order`` in it."""
    if one.kind != "tree":
        return replace(one, values=one.values[..., order].unflatten(-1, grid))
    places = torch.full((one.values.shape[1] + 1,), -1, dtype=torch.int64)  # the last one is for -1
    places[order] = torch.arange(len(order))
    return replace(one, values=places[one.values[:, order]])


def _grid_of(
    network: nn.Module, tokens: tuple[int, ...], size: tuple[int, int]
) -> tuple[tuple[int, ...] | None, Tensor | None]:
    """The grid of places, and where its places stand in a sequence; (None, None) where it is not known."""
    if len(tokens) != 1:
        return tokens, None
    shapes = []
    for module in network.modules():
        own = getattr(module, "grid", None)
        if isinstance(own, tuple) and len(own) == 2 and all(isinstance(n, int) for n in own):
            shapes.append(own)
        for feature in getattr(module, "feature_info", ()):
            reduction = getattr(feature, "reduction", 0)
            if reduction:
                shapes += [tuple(-(-n // reduction) for n in size), tuple(n // reduction for n in size)]
    fitting = [s for s in shapes if 0 <= tokens[0] - math.prod(s) <= MOST_CLASS_TOKENS and math.prod(s)]
    if not fitting:
        return None, None
    grid = max(fitting, key=math.prod)
    first = tokens[0] - math.prod(grid)
    return grid, torch.arange(first, tokens[0])


def _stride(pixels: int, cells: int) -> float:
    """Pixels from one place to the next: whole ones where borders were padded or cut off."""
    whole = max(1, round(pixels / cells))
    return float(whole) if abs(whole * cells - pixels) < whole else pixels / cells
