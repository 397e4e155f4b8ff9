"""Checks of complete models."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from torch import Tensor

import foveate
from foveate.errors import InvalidType, InvalidValue
from foveate.mixers import aux_losses
from foveate.models.base import Model

from .checking import Broken, check, close, expect, refused, same_bits
from .model_cases import ModelCase, map_inputs


@check("model")
def answers_in_the_tasks_shape(case: ModelCase) -> None:
    for info in (case.example.info, *case.example.others):
        model = case.build(info)
        for batch in (1, 3):
            y = case.run(model, case.inputs(batch, info=info))
            wanted = case.example.answer(info, batch)
            expect(y.shape == wanted, f"{vars(info)}, batch {batch}: the answer is {tuple(y.shape)}, not {wanted}")
            expect(y.isfinite().all(), f"{vars(info)}, batch {batch}: the answer is not finite")


@check("model")
def inputs_with_names_are_optional(case: ModelCase) -> None:
    args, _ = case.inputs()
    y = case.build()(*args)
    expect(y.shape == case.example.answer(case.example.info, 2), f"without them the answer is {tuple(y.shape)}")


@check("model")
def a_constant_input_is_no_trouble(case: ModelCase) -> None:
    model = case.build().train()
    for value in (0.0, 1.0):
        inputs = map_inputs(lambda t, v=value: torch.full_like(t, v) if t.is_floating_point() else t, case.inputs())
        y = case.run(model, inputs)
        expect(y.isfinite().all(), f"an input that is {value} everywhere gives an answer that is not finite")
        if case.spec.trains:
            y.square().sum().backward()
            bad = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
            expect(not bad, f"an input that is {value} everywhere gives gradients that are not finite: {bad[:3]}")


@check("model")
def does_not_change_its_input(case: ModelCase) -> None:
    inputs, kept = case.inputs(), case.inputs()
    case.run(case.build(), inputs)
    map_inputs(lambda now, before: (same_bits(now, before, "an input after the call"), now)[1], inputs, kept)


@check("model", lambda spec: spec.deterministic)
def two_calls_give_the_same_bits(case: ModelCase) -> None:
    model, inputs = case.build(), case.inputs()
    torch.manual_seed(1)
    y = case.run(model, inputs)
    torch.manual_seed(2)
    same_bits(case.run(model, inputs), y, "a second call in eval mode")


def _with_other_companions(case: ModelCase) -> tuple[Tensor, Tensor, Tensor]:
    """The first sample's answer in a batch of three, with two other companions, and alone."""
    model = case.build()
    inputs, other = case.inputs(3), case.inputs(3, seed=5)
    mixed = map_inputs(lambda a, b: torch.cat([a[:1], 3 * b[1:] if b.is_floating_point() else b[1:]]), inputs, other)
    first = map_inputs(lambda a: a[:1], inputs)
    return case.run(model, inputs)[0], case.run(model, mixed)[0], case.run(model, first)[0]


@check("model", lambda spec: spec.batch_independent)
def samples_do_not_see_each_other(case: ModelCase) -> None:
    y, mixed, alone = _with_other_companions(case)
    same_bits(mixed, y, "the first sample after the others were replaced")
    close(alone, y, "the first sample alone")


@check("model", lambda spec: not spec.batch_independent)
def samples_see_each_other_as_said(case: ModelCase) -> None:
    y, mixed, _ = _with_other_companions(case)
    expect(
        not torch.equal(mixed, y), "the spec says batch_independent=False, but a sample does not depend on the others"
    )


@check("model", lambda spec: spec.trains)
def every_parameter_learns(case: ModelCase) -> None:
    model = case.build().train()
    expect(any(p.requires_grad for p in model.parameters()), "the spec says trains=True, but there is no parameter")
    torch.manual_seed(0)
    loss = case.run(model, case.inputs(4)).pow(3).mean() + sum(aux_losses(model).values())
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            expect(parameter.grad is not None, f"{name} gets no gradient")
            assert parameter.grad is not None
            expect(parameter.grad.isfinite().all(), f"the gradient of {name} is not finite")
            expect(parameter.grad.abs().max() > 0, f"the gradient of {name} is zero everywhere")


@check("model", lambda spec: not spec.trains)
def has_nothing_to_learn(case: ModelCase) -> None:
    count = sum(p.numel() for p in case.build().parameters())
    expect(count == 0, f"the spec says trains=False, but there are {count} parameters")


@check("model", lambda spec: spec.baseline)
def a_baseline_has_no_parameters(case: ModelCase) -> None:
    count = sum(p.numel() for p in case.build().parameters())
    expect(count == 0, f"the spec says baseline=True, but there are {count} parameters")


@check("model")
def auxiliary_losses_are_scalars(case: ModelCase) -> None:
    model = case.build().train()
    case.run(model, case.inputs())
    for name, value in aux_losses(model).items():
        expect(isinstance(value, Tensor) and value.ndim == 0, f"aux_losses[{name!r}] is not a scalar tensor")
        expect(value.isfinite(), f"aux_losses[{name!r}] is {value}")


@check("model")
def is_saved_and_loaded(case: ModelCase) -> None:
    model, inputs = case.build(), case.inputs()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        files = {p.name for p in Path(folder).iterdir()}
        expect(files == {"config.json", "model.safetensors", "README.md"}, f"save_pretrained wrote {sorted(files)}")
        config = json.loads(Path(folder, "config.json").read_text())
        torch.manual_seed(7)
        own = case.cls if config["kind"] == "custom" else None
        loaded = {"from_pretrained": case.cls.from_pretrained(folder), "foveate.load": foveate.load(folder, system=own)}
        card = ModelCard.load(Path(folder, "README.md"))
    for how, again in loaded.items():
        expect(type(again) is type(model), f"{how} made a {type(again).__name__} of a {type(model).__name__}")
        expect(not again.training, f"{how} gave the model in training mode")
        same_bits(case.run(again, inputs), case.run(model, inputs), f"the answer after saving and {how}")
        expect(again.state_dict().keys() == model.state_dict().keys(), f"{how} gave the model other weights")
        expect(again._record() == model._record(), f"{how} gave the model other options: {again._record()['options']}")
    expect(card.data.library_name == "foveate", "the model card does not say whose it is")


@check("model")
def weights_are_all_it_keeps(case: ModelCase) -> None:
    model, other, inputs = case.build(seed=0), case.build(seed=1), case.inputs()
    other.load_state_dict(model.state_dict())
    same_bits(case.run(other, inputs), case.run(model, inputs), "the answer of another instance with the same weights")


@check("model")
def double_precision_agrees(case: ModelCase) -> None:
    """Where two candidates of a hard selection nearly tie, roundings decide: two of three draws must agree then."""
    broken: list[Broken] = []
    for seed in range(3):
        inputs = case.inputs(seed=seed + 1)
        y = case.run(case.build(seed=seed), inputs)
        doubled = map_inputs(lambda t: t.double() if t.is_floating_point() else t, inputs)
        double = case.run(case.build(seed=seed).double(), doubled)
        expect(double.dtype == torch.float64, f"in double precision the answer is {double.dtype}")
        try:
            close(y, double, "float32 against float64", times=10)  # a whole network of roundings
        except Broken as found:
            broken.append(found)
        if not broken:
            return
    if len(broken) > 1:
        raise broken[0]


@check("model")
def refuses_inputs_that_do_not_fit(case: ModelCase) -> None:
    model = case.build()
    for what, (args, kwargs) in case.example.wrong(case.example.info).items():
        with refused((InvalidValue, InvalidType), type(model).__name__, what):
            model(*args, **kwargs)


def _stream(case: ModelCase, model: Model, pieces: list[int], batch: int) -> Tensor:
    """Answers to the example read in pieces: a positive number is a stretch for prefill, each -1 one step."""
    ((x,), _), state, outputs, at = case.inputs(batch), model.init_state(batch), [], 0
    for piece in pieces:
        if piece < 0:
            y, state = model.step(x[:, at], state)
            outputs.append(y[:, None])
        else:
            y, state = model.prefill(x[:, at : at + piece], state)
            outputs.append(y)
        at += abs(piece)
    return torch.cat(outputs, 1)


@check("model", lambda spec: spec.streaming == "exact")
def streaming_equals_forward(case: ModelCase) -> None:
    length = case.example.stream
    expect(length > 40, f"the spec promises streaming, but the example {case.task!r} has no axis to stream along")
    for batch in (1, 3):
        model = case.build()
        expected = case.run(model, (case.inputs(batch)[0], {}))
        for pieces in ([length], [1, length - 31, *[-1] * 30], [-1, -1, 20, *[-1] * (length - 22)]):
            what = f"batch {batch}, pieces {pieces[:4]} ..., against forward"
            close(_stream(case, model, pieces, batch), expected, what, times=5)  # several layers of roundings


@check("model", lambda spec: spec.streaming != "no")
def a_state_can_be_reordered(case: ModelCase) -> None:
    model, ((x,), _) = case.build(), case.inputs(3)
    index = torch.tensor([2, 0, 0, 1])
    _, state = model.prefill(x[:, :-1], model.init_state(3))
    expected, _ = model.step(x[:, -1], state)
    got, _ = model.step(x[index, -1], state.reorder(index))
    close(got, expected[index], "a step after reorder([2, 0, 0, 1])")


@check("model", lambda spec: spec.streaming == "no")
def refuses_streaming(case: ModelCase) -> None:
    model = case.build()
    with refused(InvalidType, (type(model).__name__, "streaming"), "init_state, against the spec"):
        model.init_state(2)


@check("model", lambda spec: spec.compile, slow_start=True)
def compiles_as_one_graph(case: ModelCase) -> None:
    model, inputs = case.build(), case.inputs()
    torch.compiler.reset()
    # Captured and run as it is: what autograd makes of graphs is asked of mixers, which are smaller.
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    close(case.run(compiled, inputs), case.run(model, inputs), "compiled against eager")
    torch.compiler.reset()
