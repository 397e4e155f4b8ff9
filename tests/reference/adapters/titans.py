"""titans-pytorch (the public re-implementation): its neural memory, its attention, its transformer."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from cases import Answer, Case
from torch import Tensor

from foveate.mixers.titans import ChunkMemoryState, NeuralMemory
from foveate.mixers.titans.chunk_writes import EXTRAS
from foveate.models.language.titans import TitansTransformer
from foveate.models.language.titans_attention import SegmentedAttention
from foveate.models.official import load_official
from foveate.ops.memory_kinds import Kind

#: Keys that say how parameters begin or which kernel runs: nothing is left of them in recorded parameters and numbers.
WITHOUT_TRACE = ("use_accelerated_scan", "init_adaptive_step_bias", "init_momentum_bias", "init_decay_bias")


def run(case: Case) -> Answer:
    name = case.official_class.rsplit(".", 1)[-1]
    if name not in CLASSES:
        pytest.skip(f"{case.official_class} is not built")
    return CLASSES[name](case)


#: The classes of memories: our name, and the depth and expansion that they have if a configuration names none.
NETWORKS: dict[str, tuple[Kind, tuple[int, float]]] = {
    "MemoryMLP": ("mlp", (2, 2.0)),
    "FactorizedMemoryMLP": ("factorized", (1, 1.0)),
    "GatedResidualMemoryMLP": ("gated_residual", (1, 4.0)),
    "MemorySwiGluMLP": ("swiglu", (1, 4.0)),
    "MemoryAttention": ("attention", (1, 2.0)),
}


def build_memory(config: dict) -> NeuralMemory:
    """The memory of a configuration; a key that we do not know is an error."""
    config = {key: value for key, value in config.items() if key not in WITHOUT_TRACE}
    dim, heads, chunk = config.pop("dim"), config.pop("heads", 1), config.pop("chunk_size", 1)
    head_dim = config.pop("dim_head", None) or dim
    network = config.pop("default_model_kwargs", {"depth": 2, "expansion_factor": 4.0})
    if isinstance(chunk, list | tuple):
        assert chunk[0] == chunk[1], "memories are read and written in chunks of one length"
        chunk = chunk[0]
    kind, (depth, expansion) = NETWORKS[config.pop("model", None) or "MemoryMLP"]
    memory = NeuralMemory(
        dim,
        num_heads=heads,
        head_dim=head_dim,
        chunk=chunk,
        rebase=config.pop("batch_size", None),
        network=kind,
        depth=network.pop("depth", depth),
        expansion=network.pop("expansion_factor", expansion),
        rank=network.pop("k", 32),
        scale=network.pop("scale", 8.0),
        momentum=config.pop("momentum", True),
        norm=config.pop("mem_model_norm_add_residual", True),
        max_lr=config.pop("default_step_transform_max_lr", 1.0),
        extras={key: config.pop(key) for key in EXTRAS if key in config},
    )
    assert not config, f"unknown in the configuration: {config}"
    assert not network, f"unknown in the memory's configuration: {network}"
    return memory


def neural_memory(case: Case) -> Answer:
    memory = build_memory(case.config)
    load_official(memory, case.params, "titans_pytorch")
    x = case.inputs["seq"].requires_grad_()
    views = torch.cat(x.unbind(0), -1) if x.ndim == 4 else x
    other = other_weights(memory, case.inputs)
    y = memory.read_views(views, None, other)[0]
    outputs = {"retrieved": y}
    with torch.no_grad():
        state = memory.read_views(views, memory.init_state(len(y)), other)[1]
        outputs |= official_state(memory, state)
        if other is None:
            state, steps = memory.init_state(len(y)), []
            for token in views.split(1, 1):
                answer, state, _ = memory.read_views(token, state)
                steps.append(answer)
            outputs["retrieved_streaming"] = torch.cat(steps, 1)
    return outputs, case.gradients(y.square().mean(), {"seq": x, **official_parameters(memory, case)})


def other_weights(memory: NeuralMemory, inputs: dict[str, Tensor]) -> tuple[Tensor, ...] | None:
    """Another memory's weights, recorded under ``prev_weights/``: before each chunk, and after the last."""
    if not memory.extras["accept_weight_residual"]:
        return None
    chunks = -(-inputs["seq"].shape[-2] // memory.chunk)
    given = [inputs[f"prev_weights/{name}"] for name in memory.net.names]
    return tuple(torch.cat([w, w[:, -1:]], 1)[:, :chunks] for w in given)


def official_state(memory: NeuralMemory, state: ChunkMemoryState) -> dict[str, Tensor]:
    """Weights and momenta by the recorded names: heads folded into the batch, orders first."""
    names = memory.net.names
    found = {f"state_weights/{n}": w.flatten(0, 1) for n, w in zip(names, state.memory, strict=True)}
    for n, w in zip(names, state.momentum or (), strict=bool(state.momentum)):
        found[f"state_momentum/{n}"] = w.flatten(0, 1).movedim(1, 0)
    return found


def official_parameters(memory: NeuralMemory, case: Case) -> dict[str, Tensor]:
    """Our parameters by the official names of the recorded ones."""
    own, named = dict(memory.named_parameters()), {}
    shared = not memory.extras["per_head_learned_parameters"]
    for key, value in case.params.items():
        (renamed,) = memory.convert_official({key: value}, "titans_pytorch")
        for pattern, replacement in memory.official_keys["titans_pytorch"].items():
            match = re.fullmatch(pattern, renamed)
            if match and replacement:
                named[key] = own[match.expand(replacement)]
                break
        if shared and key.startswith("memory_model."):  # there they are the same parameters
            place = memory.net.names.index(key.removeprefix("memory_model."))
            named[key] = own[f"weights.{place}"]
    return named


#: Keys of attention and transformer that say which kernel runs, or are read by nothing.
UNREAD = ("use_flex_attn", "neural_memory_add_value_residual")


def segmented_attention(case: Case) -> Answer:
    config = {key: value for key, value in case.config.items() if key not in UNREAD}
    attention = SegmentedAttention(
        config.pop("dim"),
        segment=config.pop("segment_len"),
        num_longterm=config.pop("num_longterm_mem_tokens", 0),
        num_persistent=config.pop("num_persist_mem_tokens", 0),
        head_dim=config.pop("dim_head", 64),
        num_heads=config.pop("heads", 8),
        sliding=config.pop("sliding", False),
        value_residual=config.pop("accept_value_residual", False),
    )
    assert not config, f"unknown in the configuration: {config}"
    load_official(attention, case.params, "titans_pytorch")
    x, first = case.inputs["seq"].requires_grad_(), case.inputs.get("value_residual")
    y = attention(x, None if first is None else first[:, :, : x.shape[1]])[0]
    own, named = dict(attention.named_parameters()), {}
    for key in case.params:
        name = _by_table(attention.official_keys, key)
        if name in own:
            named[key] = own[name]
    return {"out": y}, case.gradients(y.square().mean(), {"seq": x, **named})


def transformer(case: Case) -> Answer:
    config = {key: value for key, value in case.config.items() if key not in UNREAD}
    dim, segment = config.pop("dim"), config.pop("segment_len")
    longterm = config.pop("num_longterm_mem_tokens", 0)
    chunk = config.pop("neural_memory_segment_len", None) or segment + longterm
    rebase, layers = config.pop("neural_memory_batch_size", None), config.pop("neural_memory_layers", None)
    views = config.pop("neural_memory_qkv_receives_diff_views", False)
    weights = config.pop("neural_mem_weight_residual", False)
    memory = build_memory(
        {"dim": dim, "chunk_size": chunk, "batch_size": rebase, **config.pop("neural_memory_kwargs", {})}
    )
    names = ("num_heads", "head_dim", "chunk", "rebase", "momentum", "norm", "max_lr", "extras")
    for name in ("neural_memory_model", "token_emb"):
        assert config.pop(name, None) is None, f"{name} is a module, which no recording holds"
    model = TitansTransformer(
        vocabulary=config.pop("num_tokens"),
        dim=dim,
        depth=config.pop("depth"),
        num_heads=config.pop("heads", 8),
        head_dim=config.pop("dim_head", 64),
        segment=segment,
        num_longterm=longterm,
        num_persistent=config.pop("num_persist_mem_tokens", 0),
        memory_layers=None if layers is None else [index - 1 for index in layers],
        memory={
            **{name: getattr(memory, name) for name in names},
            "depth": memory.depth,
            "expansion": memory.expansion,
        },
        memory_chunk=chunk,
        gate_attention=config.pop("neural_mem_gate_attn_output", False),
        weight_residual=weights,
        choose_views=views,
        ff_mult=config.pop("ff_mult", 4),
        streams=config.pop("num_residual_streams", 4),
        sliding=config.pop("sliding_window_attn", False),
    )
    assert not config, f"unknown in the configuration: {config}"
    load_official(model, case.params, "titans_pytorch")
    logits = model(case.inputs["ids"])
    return {"logits": logits}, case.gradients(logits.square().mean(), transformer_parameters(model, case))


def transformer_parameters(model: TitansTransformer, case: Case) -> dict[str, Tensor]:
    """Our parameters by the official names of the recorded ones; where ours has one axis less, with that axis."""
    own, named = dict(model.named_parameters()), {}
    for key, value in case.params.items():
        for name in model.convert_official({key: value}, "titans_pytorch"):
            ours = own.get(_by_table(model.official_keys, name))
            if ours is not None:
                named[key] = ours
    return named


def _by_table(tables: dict[str, dict[str, str]], key: str) -> str:
    """Our name of an official one; "" where there is none."""
    for pattern, replacement in tables["titans_pytorch"].items():
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(replacement) if replacement else ""
    return ""


#: What each official class is run by.
CLASSES: dict[str, Callable[[Case], Answer]] = {
    "NeuralMemory": neural_memory,
    "SegmentedAttention": segmented_attention,
    "MemoryAsContextTransformer": transformer,
}
