"""Tiny transformers decoders with random weights, one of every family that controls know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

VOCABULARY = 50
_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_SIZES |= {"max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GROUPED = {**_SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
_OF_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
_OF_GPT2 |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_OF_GPT2 |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


def _made(model: str, config: str, **options: Any) -> Any:
    return getattr(transformers, model)(getattr(transformers, config)(**options))


DECODERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: _made("LlamaForCausalLM", "LlamaConfig", **_GROUPED),
    "qwen2": lambda: _made("Qwen2ForCausalLM", "Qwen2Config", **_GROUPED),
    "qwen2-slides": lambda: _made(
        "Qwen2ForCausalLM", "Qwen2Config", **_GROUPED, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "qwen3": lambda: _made("Qwen3ForCausalLM", "Qwen3Config", **_GROUPED, head_dim=16),
    "mistral": lambda: _made("MistralForCausalLM", "MistralConfig", **_GROUPED, sliding_window=None),
    "mistral-slides": lambda: _made("MistralForCausalLM", "MistralConfig", **_GROUPED, sliding_window=6),
    "gpt2": lambda: _made("GPT2LMHeadModel", "GPT2Config", **_OF_GPT2),
    "gpt2-upcasts": lambda: _made(
        "GPT2LMHeadModel",
        "GPT2Config",
        **_OF_GPT2,
        scale_attn_by_inverse_layer_idx=True,
        reorder_and_upcast_attn=True,
    ),
    "neox": lambda: _made("GPTNeoXForCausalLM", "GPTNeoXConfig", **_SIZES, intermediate_size=48),
}


def decoder(family: str, attention: str = "eager", seed: int = 0) -> Any:
    """A model of a family, in evaluation, that generates to the length it is told."""
    torch.manual_seed(seed)
    model = DECODERS[family]().eval()
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    # Larger weights than the default: attention is to make a difference.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    return model


def texts(length: int = 12, batch: int = 2, seed: int = 0) -> Tensor:
    """Random tokens, int64 ``(batch, length)``."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def padded(ids: Tensor, *, left: int = 0, right: int = 0) -> Tensor:
    """A mask of ones for these tokens, but for the first row's first ``left`` and last ``right``."""
    mask = torch.ones_like(ids)
    mask[0, :left] = 0
    if right:
        mask[0, -right:] = 0
    return mask


def fingerprint(model: Any) -> dict[str, Any]:
    """Everything that a control could leave behind."""
    found: dict[str, Any] = {k: v.clone() for k, v in model.state_dict().items()}
    found["config"] = model.config.to_dict()
    for name, module in model.named_modules():
        found[f"{name} attributes"] = {k: id(v) for k, v in vars(module).items()}
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        found[f"{name} hooks"] = [list(h) for h in hooks]
        if hasattr(module, "config"):
            found[f"{name} attention"] = module.config._attn_implementation
    for name, parameter in model.named_parameters():
        found[f"{name} flag"] = (id(parameter), parameter.requires_grad)
    return found


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two fingerprints are equal to the last bit."""
    equal = (torch.equal(v, b[k]) if isinstance(v, Tensor) else v == b[k] for k, v in a.items() if k in b)
    return a.keys() == b.keys() and all(equal)
