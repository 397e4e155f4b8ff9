"""Checks of what tools do with a mixer: gradients, compile, export, saving, meta tensors, building by name."""

from __future__ import annotations

import inspect
import math
import types
import typing
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck
from torch.func import functional_call

import foveate
from foveate.errors import FoveateError, InvalidType, InvalidValue
from foveate.mixers import aux_losses
from foveate.ops import backend

from .cases import MixerCase
from .checking import check, close, expect, refused, same_bits


@check("mixer")
def gradients_are_right(case: MixerCase) -> None:
    for causal in case.directions:
        grid = case.grid(tokens=5)
        mixer = case.build(causal=causal, dim=8, grid=grid, dtype=torch.float64)
        x = case.input(grid, dim=8).double().requires_grad_()
        names, values = zip(*mixer.named_parameters(), strict=True) if list(mixer.parameters()) else ((), ())

        def call(x: Tensor, *weights: Tensor, mixer=mixer, names=names) -> Tensor:
            wide, layout = case.widen(mixer, x)
            extras = {} if layout is None else {"layout": layout}
            return functional_call(mixer, dict(zip(names, weights, strict=True)), (wide,), extras)

        given = (x, *(v.detach().requires_grad_() for v in values))
        torch.manual_seed(0)
        try:
            gradcheck(call, given, fast_mode=True, eps=1e-6, atol=1e-5, rtol=1e-3)
        except GradcheckError as error:
            expect(False, f"causal={causal}: {str(error).strip().splitlines()[0]}")


@check("mixer")
def every_parameter_learns(case: MixerCase) -> None:
    for causal in case.directions:
        grid = case.grid(tokens=29)
        mixer = case.build(causal=causal, grid=grid).train()
        x = case.input(grid).requires_grad_()
        (case.run(mixer, x).pow(3).mean() + sum(loss.sum() for loss in aux_losses(mixer).values())).backward()
        for name, tensor in (("x", x), *mixer.named_parameters()):
            if not tensor.requires_grad:
                continue
            expect(tensor.grad is not None, f"causal={causal}: {name} gets no gradient")
            assert tensor.grad is not None
            expect(tensor.grad.isfinite().all(), f"causal={causal}: the gradient of {name} is not finite")
            expect(tensor.grad.abs().max() > 0, f"causal={causal}: the gradient of {name} is zero everywhere")


@check("mixer")
def backends_agree(case: MixerCase) -> None:
    # Through the mixer, every op that it uses is held against its readable definition, at a length no block divides.
    grid = (case.length,) if 1 in case.spec.ranks and not case.spec.grid.fixed else case.grid(tokens=24)
    for causal in case.directions:
        results = {}
        for name in ("reference", "torch", "auto"):
            mixer, x = case.build(causal=causal, grid=grid), case.input(grid).requires_grad_()
            with backend(name):
                y = case.run(mixer, x)
                y.pow(2).mean().backward()
            gradients = {"x": x.grad, **{n: p.grad for n, p in mixer.named_parameters()}}
            results[name] = (y, {n: g for n, g in gradients.items() if g is not None})
        for name in ("torch", "auto"):
            what = f"causal={causal}: backend {name!r} against 'reference'"
            close(results[name][0], results["reference"][0], what)
            for weight, gradient in results["reference"][1].items():
                close(results[name][1][weight], gradient, f"{what}, gradient of {weight}", times=5)


@check("mixer", lambda spec: spec.compile, slow_start=True)
def compiles_as_one_graph(case: MixerCase) -> None:
    grid = case.grid(tokens=24)
    for causal in case.directions[-1:]:
        mixer, x = case.build(causal=causal, grid=grid), case.input(grid)
        wide, layout = case.widen(mixer, x)
        extras: dict[str, Any] = {} if layout is None else {"layout": layout}
        torch.compiler.reset()
        compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)
        given, again = wide.clone().requires_grad_(), wide.clone().requires_grad_()
        y, expected = compiled(given, **extras), mixer(again, **extras)
        close(y, expected, f"causal={causal}: compiled against eager")
        y.pow(2).mean().backward()
        expected.pow(2).mean().backward()
        assert given.grad is not None
        assert again.grad is not None
        close(given.grad, again.grad, f"causal={causal}: compiled gradient against eager")
        torch.compiler.reset()


@check("mixer", lambda spec: spec.export, slow_start=True, nightly=True)
def exports_strictly(case: MixerCase) -> None:
    # Export as users call it, with the strict tracer; what foveate.export writes is tried in checks_export.py.
    grid = case.grid(tokens=24)
    mixer = case.build(causal=case.directions[-1], grid=grid)
    if mixer.plan_tokens(grid).source is not None:
        return  # a network with special tokens is exported whole: the plan is part of its graph
    batch = torch.export.Dim("batch", min=1, max=64)
    with backend("torch"):
        program = torch.export.export(mixer, (case.input(grid, 3),), dynamic_shapes={"x": {0: batch}}, strict=True)
        for size in (3, 5):
            x = case.input(grid, size, seed=13)
            close(program.module()(x), mixer(x), f"exported with batch 3, run with batch {size}")


@check("mixer")
def weights_survive_safetensors(case: MixerCase) -> None:
    mixer, other, x = case.build(seed=0), case.build(seed=1), case.input()
    state = {k: v.contiguous() for k, v in mixer.state_dict().items()}
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(state)))
    same_bits(case.run(other, x), case.run(mixer, x), "output after weights went through safetensors")


@check("mixer")
def works_on_meta(case: MixerCase) -> None:
    for rank in case.spec.ranks:
        grid = case.grid(rank)
        with torch.device("meta"):
            mixer = case.build(grid=grid)
            x = torch.empty(2, *grid, 16)
            y = case.run(mixer, x)
        expect(all(p.is_meta for p in mixer.parameters()), "under torch.device('meta') a parameter is not on meta")
        expect(y.is_meta and y.shape == x.shape, f"on meta the output is {y.device} {tuple(y.shape)}")


@check("mixer")
def copies_and_moves(case: MixerCase) -> None:
    import copy

    mixer, x = case.build().train(), case.input()
    case.run(mixer, x)  # whatever the call leaves behind must not stop a copy
    close(case.run(copy.deepcopy(mixer).eval(), x), case.run(mixer.eval(), x), "a deep copy made after a call")
    double = mixer.double()
    y = case.run(double, x.double())
    expect(y.dtype == torch.float64, f"after .double() the output is {y.dtype}")


# Building -----------------------------------------------------------------------------------------------------------


@check("mixer")
def builds_for_every_layer(case: MixerCase) -> None:
    options: dict[str, Any] = {"causal": case.causal, **case.cls.options_for(case.grid()), **case.options}
    if "num_heads" in case.signature:
        options["num_heads"] = 2
    for depth in (3, 1):
        for index in range(depth):
            layer = case.cls.for_layer(index, depth, 16, **options).eval()
            what = f"for_layer({index}, {depth}, 16)"
            expect(type(layer) is case.cls or isinstance(layer, case.cls), f"{what} gives a {type(layer).__name__}")
            expect(case.run(layer, case.input()).shape == case.input().shape, f"{what} changes the shape")


@check("mixer", once=True)
def refuses_illegal_sizes(case: MixerCase) -> None:
    for dim in (0, -16, 16.0, "16"):
        with refused((InvalidValue, InvalidType), "dim", f"dim={dim!r}"):
            case.cls(dim, causal=case.causal)
    if "num_heads" in case.signature:
        for heads in (0, -1, 3, 2.0):
            with refused((InvalidValue, InvalidType), "num_heads", f"num_heads={heads!r}"):
                case.cls(16, num_heads=heads, causal=case.causal)


def _wrong_value(annotation: Any, default: Any) -> Any:
    """A value of the option's own type that cannot be legal, or None where the type does not say."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = set(typing.get_args(annotation)) if union else {annotation}
    if bool in kinds or isinstance(default, bool):
        return None
    if str in kinds or isinstance(default, str):
        return "no such thing"
    if float in kinds or isinstance(default, float):
        return math.nan
    return -1 if int in kinds or isinstance(default, int) else None


@check("mixer", once=True)
def refuses_illegal_options(case: MixerCase) -> None:
    hints = typing.get_type_hints(case.cls.__init__)
    for name, parameter in case.signature.items():
        if name in ("dim", "causal", "num_heads") or parameter.kind in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        ):
            continue
        wrong = _wrong_value(
            hints.get(name), None if parameter.default is inspect.Parameter.empty else parameter.default
        )
        if wrong is not None:
            with refused(FoveateError, name, f"{name}={wrong!r}"):
                case.build(**{name: wrong})


@check("mixer", once=True)
def is_built_by_name(case: MixerCase) -> None:
    if case.name not in foveate.list_names("mixer"):
        return  # a mixer of the suite's own tests
    options = {**case.cls.options_for(case.grid()), "dim": 16, "causal": case.causal}
    made = foveate.create(
        case.name, kind="mixer", **options, **({"num_heads": 2} if "num_heads" in case.signature else {})
    )
    expect(type(made) is case.cls, f"create({case.name!r}) gives a {type(made).__name__}")
    with refused(InvalidType, (case.name, "no_such_option", *case.signature), "an unknown option"):
        foveate.create(case.name, kind="mixer", dim=16, no_such_option=1)
    with refused(InvalidType, (case.name, "dim"), "leaving out dim"):
        foveate.create(case.name, kind="mixer")


@check("mixer", once=True)
def its_signature_follows_the_contract(case: MixerCase) -> None:
    parameters = list(case.signature.values())
    expect(parameters[0].name == "dim", f"the first option is {parameters[0].name!r}, not 'dim'")
    positional = [p.name for p in parameters[1:] if p.kind is not p.KEYWORD_ONLY]
    expect(not positional, f"all options but dim are keyword-only; these are not: {', '.join(positional)}")
    expect("causal" in case.signature, "there is no option 'causal'")
    missing = [p.name for p in parameters[1:] if p.default is p.empty]
    expect(not missing, f"every option but dim has a default; these have none: {', '.join(missing)}")
    default = case.signature["causal"].default
    expect(default in case.directions, f"causal={default} is the default, but it is not legal here")
    takes = list(inspect.signature(case.cls.forward).parameters)
    expect(takes == ["self", "x", "mask", "context", "layout"], f"forward takes {', '.join(takes)}")
