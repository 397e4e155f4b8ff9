"""What is exported: a module, inputs for it of any batch and length, and what stands about it in the file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InvalidType, InvalidValue
from ..mixers.base import Mixer
from ..models.base import Model
from .promises import name_of

#: Tokens in the example of a mixer or of a model of tokens where nobody gives one.
LENGTH = 77
Example = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """A module and how it is called.

    Attributes:
        model: the module, in eval mode.
        name: for messages and files.
        example: named inputs, the batch first.
        long: input name to the axes whose sizes are lengths; empty where every length is fixed.
        sized: whether the sizes of those axes were given by the user's example.
    """

    model: nn.Module
    name: str
    example: dict[str, Tensor]
    long: dict[str, tuple[int, ...]]
    sized: bool

    @property
    def grid(self) -> tuple[int, ...]:
        """Sizes of the axes that are lengths, in the example; () where there are none."""
        for name, axes in self.long.items():
            return tuple(self.example[name].shape[axis] for axis in axes)
        return ()

    def inputs(self, batch: int, grid: tuple[int, ...] | None = None, seed: int = 0) -> dict[str, Tensor]:
        """Random inputs like the example, with another batch size and other lengths."""
        make = getattr(self.model, "example_inputs", None)
        if make is not None and not self.sized and not self.long:
            made = make(batch, seed)
            return {name: made[name] for name in self.example}
        generator = torch.Generator().manual_seed(seed)
        found = {}
        for name, x in self.example.items():
            sizes = {0: batch, **dict(zip(self.long.get(name, ()), grid or (), strict=False))}
            found[name] = _like(x, sizes, generator)
        return found

    def arguments(self, inputs: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """How the module is called with named inputs: the first by place, the others by name."""
        first, *others = inputs
        return (inputs[first],), {name: inputs[name] for name in others}

    def run(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The module's own answer."""
        args, kwargs = self.arguments(inputs)
        with torch.no_grad():
            answer = self.model(*args, **kwargs)
        if not isinstance(answer, Tensor):
            raise InvalidType(
                f"{self.name} answers with a {type(answer).__name__}: only a module that answers with one tensor is "
                f"exported."
            )
        return answer


def _like(x: Tensor, sizes: Mapping[int, int], generator: torch.Generator) -> Tensor:
    """Random values of the kind that ``x`` holds, with other sizes of some axes."""
    for axis, size in sizes.items():
        x = x.index_select(axis, torch.arange(size, device=x.device) % x.shape[axis])
    if x.dtype == torch.bool:
        return x.clone()
    if x.is_floating_point():
        # By channel where there are any: they may have units of their own.
        flat = x.detach().flatten(0, -2) if x.ndim > 1 else x.detach()[:, None]
        known = torch.where(flat.isfinite(), flat, 0)
        mean, spread = known.mean(0), known.std(0, correction=0)
        noise = torch.randn(x.shape, generator=generator).to(x)
        drawn = mean + torch.where(spread > 0, spread, 1) * noise if x.ndim > 1 else mean[0] + noise
        return torch.where(x.isfinite(), drawn, x)
    low, high = int(x.min()), int(x.max())
    return torch.randint(low, high + 1, x.shape, generator=generator).to(x)


def subject_of(
    model: nn.Module, example: Example | None = None, length: int | None = None, dynamic: bool = False
) -> Subject:
    """The subject that a module is, with an example of its own if none is given.

    Args:
        model: a mixer, a model, what ``Task.package`` made, or any module that answers with one tensor.
        example: its inputs: the first, a tuple in the order of ``forward``, or by name.
        length: tokens of an example that is made here.
        dynamic: whether the file will serve every length, so that none need be given.

    Raises:
        InvalidType: an example is needed.
        InvalidValue: the example does not fit ``forward``, or a length was given for a model whose length is fixed.
    """
    name, given = name_of(model), None if example is None else named(model, example)
    if isinstance(model, Mixer):
        given = _of_mixer(model, name, length, dynamic) if given is None else given
        long = {n: tuple(range(1, given["x"].ndim - 1)) for n in given if n in ("x", "mask")}
        return Subject(model, name, given, {} if model.spec.grid.fixed else long, example is not None)
    if getattr(model, "reads", model.spec.reads if isinstance(model, Model) else "") == "tokens":
        given = _of_tokens(model, name, length, dynamic) if given is None else given
        return Subject(model, name, given, dict.fromkeys(given, (1,)), example is not None)
    if length is not None:
        raise InvalidValue(f"length={length} is not possible for {name}: {_fixed_length(model)}; leave it out.")
    if given is None:
        make = getattr(model, "example_inputs", None)
        if make is None:
            raise InvalidType(f"{name} does not say what it reads: give its inputs as example=...")
        given = make(2)
    return Subject(model, name, given, {}, example is not None)


def _fixed_length(model: nn.Module) -> str:
    lookback = getattr(getattr(model, "info", None), "lookback", None)
    return "its length is fixed" + ("" if lookback is None else f" at {lookback} by its training")


def named(model: nn.Module, example: Example) -> dict[str, Tensor]:
    """An example by the names of ``forward``'s parameters.

    Raises:
        InvalidValue: too many inputs, an unknown name, batches that differ or are empty.
        InvalidType: something else than tensors.
    """
    parameters = [p for p in inspect.signature(model.forward).parameters.values() if p.kind is not p.VAR_KEYWORD]
    names = [p.name for p in parameters]
    if isinstance(example, Mapping):
        unknown = [n for n in example if n not in names]
        if unknown:
            raise InvalidValue(
                f"example has {unknown[0]!r}, which {name_of(model)} does not read: it reads {', '.join(names)}."
            )
        given = {n: example[n] for n in names if n in example}
    else:
        values = example if isinstance(example, tuple) else (example,)
        if len(values) > len(names):
            raise InvalidValue(f"example has {len(values)} inputs: {name_of(model)} reads {', '.join(names)}.")
        given = dict(zip(names, values, strict=False))
    for n, x in given.items():
        if not isinstance(x, Tensor):
            raise InvalidType(f"example: {n} must be a tensor, not a {type(x).__name__}.")
    if not given or any(x.ndim == 0 or x.shape[0] < 1 for x in given.values()):
        raise InvalidValue("example must hold at least one sample, the batch axis first.")
    sizes = {n: x.shape[0] for n, x in given.items()}
    if len(set(sizes.values())) > 1:
        raise InvalidValue(f"example: the inputs have different batch sizes, {sizes}.")
    return given


def _of_mixer(mixer: Mixer, name: str, length: int | None, dynamic: bool) -> dict[str, Tensor]:
    rule = mixer.spec.grid
    if rule.fixed is not None:
        if length is not None and length != rule.fixed[0]:
            raise InvalidValue(f"length={length} is not possible: {name} was built for the grid {rule.fixed}.")
        grid = rule.fixed
    else:
        edge = length or (LENGTH if 1 in mixer.spec.ranks else 8)
        if length is None and not dynamic:
            raise InvalidType(f"{name} is exported for one length: give it, or an example (batch, *grid, {mixer.dim}).")
        edge = max(edge, rule.minimum)
        grid = (edge + -edge % rule.multiple_of,) * min(mixer.spec.ranks)
    if mixer.plan_tokens(grid).source is not None:
        raise InvalidType(f"{name} places special tokens between the others: export the network that holds it.")
    weight = next(mixer.parameters(), torch.zeros(()))
    x = torch.randn(2, *grid, mixer.dim, generator=torch.Generator().manual_seed(0))
    return {"x": x.to(weight)}


def _of_tokens(model: nn.Module, name: str, length: int | None, dynamic: bool) -> dict[str, Tensor]:
    if length is None and not dynamic:
        length = getattr(getattr(model, "info", None), "context", None)
    vocabulary = getattr(model, "vocabulary", getattr(model, "channels", None))
    if not isinstance(vocabulary, int):
        raise InvalidType(f"{name} does not say what it reads: give its inputs as example=...")
    if length is None and not dynamic:
        raise InvalidType(f"{name} is exported for one length: give it, or an example (batch, length).")
    first = next(iter(inspect.signature(model.forward).parameters))
    tokens = torch.randint(vocabulary, (2, length or LENGTH), generator=torch.Generator().manual_seed(0))
    tokens[0, 0], tokens[-1, -1] = 0, vocabulary - 1  # inputs like this one are drawn between its least and greatest
    return {first: tokens}
