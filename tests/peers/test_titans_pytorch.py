"""titans-pytorch's memories and transformer: values and gradients recorded by ``record_titans_pytorch.py``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from foveate.mixers.titans import NeuralMemory
from foveate.models.language.titans import TitansTransformer
from foveate.models.official import load_official

from .record_titans_pytorch import FILE, MEMORIES, MEMORY, NETWORKS, TRANSFORMER, TRANSFORMERS

with safe_open(FILE, "pt") as file:
    FOUND = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)
RECORDED = {key: value.double() if value.is_floating_point() else value for key, value in FOUND.items()}


def case(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """What else was recorded of a case, its parameters and its gradients, these under the peer's names."""
    own = {key.removeprefix(f"{name}/"): value for key, value in RECORDED.items() if key.startswith(f"{name}/")}

    def under(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in own.items() if key.startswith(prefix)}

    return own, under("param/"), under("grad/")


def memory_of(options: Mapping[str, Any]) -> NeuralMemory:
    given = {**MEMORY, **options}
    kind = given.pop("network")
    network = NETWORKS[kind][1]
    return NeuralMemory(
        given.pop("dim"),
        num_heads=given.pop("heads"),
        head_dim=given.pop("dim_head"),
        chunk=given.pop("chunk_size"),
        rebase=given.pop("batch_size", None),
        norm=given.pop("mem_model_norm_add_residual", True),
        network=kind,  # type: ignore[arg-type]
        depth=network.get("depth", 1),
        expansion=network.get("expansion_factor", 1.0),
        rank=network.get("k", 32),
        scale=network.get("scale", 8.0),
        extras=given,
    ).double()


def agree(model: nn.Module, names: Mapping[str, str], y: Tensor, x: Tensor | None, recorded: tuple[Any, ...]) -> None:
    """Hold answers and gradients against what was recorded; ``names`` are ours by the peer's."""
    own, _, wanted = recorded
    torch.testing.assert_close(y, own["y"], rtol=1e-4, atol=1e-4 * float(own["y"].abs().max()))
    parameters = dict(model.named_parameters())
    tensors = {peer: parameters[ours] for peer, ours in names.items() if peer in wanted}
    tensors |= {} if x is None else {"x": x}
    assert set(tensors) == set(wanted), set(tensors) ^ set(wanted)
    found = torch.autograd.grad(y.square().mean(), list(tensors.values()))
    for (name, tensor), gradient in zip(tensors.items(), found, strict=True):
        expected = wanted[name].view(tensor.shape)
        close = 1e-4 * max(float(expected.abs().max()), 1e-6)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=close, msg=lambda m, n=name: f"{n}: {m}")


def our_names(model: Any, params: Mapping[str, Tensor]) -> dict[str, str]:
    """Our names by the peer's."""
    found = {}
    for key, value in params.items():
        for renamed in model.convert_official({key: value}, "titans_pytorch"):
            for pattern, replacement in model.official_keys["titans_pytorch"].items():
                match = re.fullmatch(pattern, renamed)
                if match and replacement:
                    found[key] = match.expand(replacement)
                if match:
                    break
    return found


@pytest.mark.parametrize("name", MEMORIES)
def test_a_memory(name: str) -> None:
    options, recorded = MEMORIES[name], case(f"memory/{name}")
    memory = memory_of(options)
    load_official(memory, recorded[1], "titans_pytorch")
    names = our_names(memory, recorded[1])
    if not options.get("per_head_learned_parameters", True):  # there they are the same parameters
        weights = memory.net.names
        names |= {f"memory_model.{n}": f"weights.{i}" for i, n in enumerate(weights)}
    x = recorded[0]["x"].requires_grad_()
    views = torch.cat(x.unbind(0), -1) if x.ndim == 4 else x
    agree(memory, names, memory.read_views(views)[0], x, recorded)


@pytest.mark.parametrize("name", [name for name in MEMORIES if not name.startswith("views")])
def test_a_memory_streams_as_it_reads(name: str) -> None:
    own, params, _ = case(f"memory/{name}")
    memory = memory_of(MEMORIES[name])
    load_official(memory, params, "titans_pytorch")
    with torch.no_grad():
        y, state = memory.prefill(own["x"][:, :5], memory.init_state(2))
        outputs = [y]
        for x_t in own["x"][:, 5:].unbind(1):
            y, state = memory.step(x_t, state)
            outputs.append(y[:, None])
    torch.testing.assert_close(torch.cat(outputs, 1), own["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformer(name: str) -> None:
    given, recorded = {**TRANSFORMER, **TRANSFORMERS[name]}, case(f"transformer/{name}")
    network = given["neural_memory_kwargs"]["default_model_kwargs"]
    layers = given.get("neural_memory_layers")
    model = TitansTransformer(
        vocabulary=given["num_tokens"],
        dim=given["dim"],
        depth=given["depth"],
        num_heads=given["heads"],
        head_dim=given["dim_head"],
        segment=given["segment_len"],
        num_longterm=given["num_longterm_mem_tokens"],
        num_persistent=given["num_persist_mem_tokens"],
        memory_layers=None if layers is None else [i - 1 for i in layers],
        memory_chunk=given["neural_memory_segment_len"],
        memory_rebase=given.get("neural_memory_batch_size"),
        memory={"depth": network["depth"], "expansion": network["expansion_factor"]},
        gate_attention=given.get("neural_mem_gate_attn_output", False),
        weight_residual=given.get("neural_mem_weight_residual", False),
        choose_views=given.get("neural_memory_qkv_receives_diff_views", False),
        streams=given["num_residual_streams"],
    ).double()
    own, params, _ = recorded
    load_official(model, params, "titans_pytorch")
    if given["num_residual_streams"] == 1:
        agree(model, our_names(model, params), model(own["x"]), None, recorded)
    else:  # the peer's hyper-connections compute in single precision, and rounding is all of some gradients
        torch.testing.assert_close(model(own["x"]), own["y"], rtol=1e-4, atol=1e-4 * float(own["y"].abs().max()))
    with torch.no_grad():
        y, state = model.prefill(own["x"][:, :6], model.init_state(2))
        outputs = [y]
        for token in own["x"][:, 6:].unbind(1):
            y, state = model.step(token, state)
            outputs.append(y[:, None])
    torch.testing.assert_close(torch.cat(outputs, 1), own["y"], rtol=1e-4, atol=1e-4 * float(own["y"].abs().max()))
