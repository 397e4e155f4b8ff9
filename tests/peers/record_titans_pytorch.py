"""Record ``titans_pytorch.safetensors``: titans-pytorch's memories and transformer, with tiny random weights.

    python -m tests.peers.record_titans_pytorch

titans-pytorch 0.5.5 must be installed. Of each case of :data:`MEMORIES` and :data:`TRANSFORMERS` the file holds
``CASE/param/*`` (the peer's own names), ``CASE/x``, ``CASE/y`` and, of ``mean(y^2)``, ``CASE/grad/*``.
"""

from __future__ import annotations

import random
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = Path(__file__).with_name("titans_pytorch.safetensors")
DIM, HEADS, LENGTH = 8, 2, 14
#: The peer's classes of memory networks, and the options that they are made with.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("MemoryMLP", {"depth": 2, "expansion_factor": 2.0}),
    "factorized": ("FactorizedMemoryMLP", {"depth": 2, "k": 3}),
    "gated_residual": ("GatedResidualMemoryMLP", {"depth": 2, "expansion_factor": 2.0}),
    "swiglu": ("MemorySwiGluMLP", {"depth": 2, "expansion_factor": 2.0}),
    "attention": ("MemoryAttention", {"scale": 6.0, "expansion_factor": 2.0}),
}
MEMORY = {"dim": DIM, "heads": HEADS, "dim_head": 6, "chunk_size": 3}
#: Options of the peer's ``NeuralMemory``; "network" names one of :data:`NETWORKS`.
MEMORIES: dict[str, dict[str, Any]] = {
    **{f"{kind}-plain": {"network": kind, "mem_model_norm_add_residual": False} for kind in NETWORKS},
    **{f"{kind}-normed": {"network": kind} for kind in NETWORKS},
    "attention-rebased": {"network": "attention", "batch_size": 6, "gated_transition": True, "qk_rmsnorm": True},
    "swiglu-modulated": {
        "network": "swiglu",
        "per_parameter_lr_modulation": True,
        "max_grad_norm": 1.0,
        "spectral_norm_surprises": True,
    },
    "gated_residual-several": {
        "network": "gated_residual",
        "momentum_order": 2,
        "num_kv_per_token": 2,
        "per_head_learned_parameters": False,
        "store_with_lookahead_value": True,
    },
    "attention-one": {"network": "attention", "chunk_size": 1},
    "views": {"network": "mlp", "qkv_receives_diff_views": True, "batch_size": 6},
    "views-attention": {"network": "attention", "qkv_receives_diff_views": True},
}
TRANSFORMER = {
    "num_tokens": 11,
    "dim": DIM,
    "depth": 3,
    "segment_len": 4,
    "num_longterm_mem_tokens": 1,
    "num_persist_mem_tokens": 1,
    "dim_head": 4,
    "heads": HEADS,
    "neural_memory_segment_len": 3,
    "neural_memory_kwargs": {
        "dim_head": 4,
        "heads": HEADS,
        "default_model_kwargs": {"depth": 2, "expansion_factor": 2.0},
    },
}
#: Options of the peer's ``MemoryAsContextTransformer``.
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "weights": {"neural_mem_weight_residual": True, "num_residual_streams": 1},
    "weights-rebased": {
        "neural_mem_weight_residual": True,
        "num_residual_streams": 1,
        "neural_memory_batch_size": 6,
        "neural_memory_layers": (1, 3),
    },
    "views": {"neural_memory_qkv_receives_diff_views": True, "num_residual_streams": 2},
    "both": {
        "neural_memory_qkv_receives_diff_views": True,
        "neural_mem_weight_residual": True,
        "num_residual_streams": 1,
        "neural_mem_gate_attn_output": True,
    },
}


def recorded(model: nn.Module, x: Tensor, run: Any) -> dict[str, Tensor]:
    """A model's parameters, input, answer and gradients, computed in double precision."""
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    model.double()
    y = run(x)
    y.square().mean().backward()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = {f"param/{name}": p.detach() for name, p in parameters.items()}
    found |= {f"grad/{name}": p.grad for name, p in parameters.items() if p.grad is not None}
    if x.grad is not None:
        found["grad/x"] = x.grad
    found |= {"x": x.detach(), "y": y.detach()}
    return {name: t.float() if t.is_floating_point() else t for name, t in found.items()}


def memory(options: dict[str, Any]) -> dict[str, Tensor]:
    """One of :data:`MEMORIES`."""
    kinds, package = import_module("titans_pytorch.memory_models"), import_module("titans_pytorch")
    options = {**MEMORY, **options}
    name, given = NETWORKS[options.pop("network")]
    model = package.NeuralMemory(model=getattr(kinds, name)(options["dim_head"], **given), **options).eval()
    shape = (3, 2, LENGTH, DIM) if options.get("qkv_receives_diff_views") else (2, LENGTH, DIM)
    x = torch.randn(shape).double().requires_grad_()
    return recorded(model, x, lambda x: model(x)[0])


def transformer(options: dict[str, Any]) -> dict[str, Tensor]:
    """One of :data:`TRANSFORMERS`."""
    model = import_module("titans_pytorch").MemoryAsContextTransformer(**TRANSFORMER, **options).eval()
    return recorded(model, torch.randint(11, (2, LENGTH)), model)


def main() -> None:
    """Record all cases."""
    tensors: dict[str, Tensor] = {}
    for made, record in ((MEMORIES, memory), (TRANSFORMERS, transformer)):
        for number, (name, options) in enumerate(made.items()):
            torch.manual_seed(number)
            random.seed(number)  # the peer draws the first stream of a connection by it
            case = f"{record.__name__}/{name}"
            tensors |= {f"{case}/{key}": value.contiguous().clone() for key, value in record(options).items()}
    save_file(tensors, FILE)


if __name__ == "__main__":
    main()
