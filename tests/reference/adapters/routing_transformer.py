"""Reference vectors of "Efficient Content-Based Sparse Attention with Routing Transformers" (arXiv 2003.05997).

Recorded from the PyTorch peer, lucidrains/routing-transformer: its attention alone, in eval and in training mode with
one update of the centroids, and its whole language model.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from cases import Answer, Case

from foveate.mixers import aux_losses
from foveate.mixers.routing_transformer import OnlineKMeans
from foveate.mixers.routing_transformer.routing_attention import route
from foveate.models.language.routing_transformer import RoutingTransformer
from foveate.models.official import load_official

TOLERANCE = 1e-5
# Keys of the official language model that change nothing here: how training goes on, and what the peer does not read.
IGNORED = {
    "attn_dropout", "ff_dropout", "attn_layer_dropout", "layer_dropout", "ff_chunks", "kmeans_ema_decay",
    "commitment_factor", "rel_pos_emb", "_register_kmeans_update", "use_absolute_pos_emb", "ff_mult", "pkm_num_keys",
    "moe_num_experts", "moe_loss_coef", "context_window_size", "context_shared_qk", "T", "batch", "train", "eval",
}  # fmt: skip
READ = {
    "num_tokens", "dim", "depth", "max_seq_len", "heads", "dim_head", "window_size", "local_attn_window_size",
    "local_attn_radius_blocks", "causal", "emb_dim", "weight_tie", "ff_activation", "ff_glu", "return_embeddings",
    "n_local_attn_heads", "reversible", "receives_context", "pkm_layers", "moe_layers", "num_mem_kv", "shared_qk",
    "use_rezero", "use_scale_norm", "tie_embedding", "shift_tokens",
}  # fmt: skip


def run(case: Case) -> Answer:
    return language_model(case) if "num_tokens" in case.config else attention(case)


def attention(case: Case) -> Answer:
    """``KmeansAttention``: queries, keys and values as they are."""
    config, given = case.config, case.inputs
    known = {
        "num_clusters", "window_size", "num_heads", "head_dim", "causal", "dropout", "ema_decay", "commitment",
        "context_window_size", "receives_context", "num_mem_kv", "shared_qk", "T", "train",
    }  # fmt: skip
    assert not set(config) - known, f"configuration keys that nothing reads: {sorted(set(config) - known)}"
    assert not set(given) - {"q", "k", "v"}, f"inputs that nothing reads: {sorted(given)}"
    assert not config.get("dropout"), "dropout cannot be repeated"
    if config.get("receives_context"):
        pytest.skip("routed attention to a context is not built")
    weights = case.params
    means, memory = weights.pop("kmeans.means"), [weights.pop("mem_key"), weights.pop("mem_value")]
    assert not set(weights) - {"kmeans.initted"}, f"parameters that nothing reads: {sorted(weights)}"
    kmeans = OnlineKMeans(
        config["num_heads"], config["num_clusters"], config["head_dim"], norm="l2", rule="peer",
        decay=config.get("ema_decay", 0.999), commitment=config.get("commitment", 1e-4),
    )  # fmt: skip
    kmeans.means.copy_(means)
    q, k, v = (given[name].requires_grad_() for name in "qkv")
    mem_key, mem_value = (m.requires_grad_() for m in memory)
    o, on, scores = route(
        kmeans, q, k, v, share_qk=config["shared_qk"], window=config["window_size"], causal=config["causal"],
        mask=None, count_eps=1e-5, memory_k=mem_key, memory_v=mem_value,
    )  # fmt: skip
    nearest = [s.argmax(-1) for s in scores]
    loss = torch.stack([kmeans.loss(x, of) for x, of in zip(on, nearest, strict=True)]).mean()
    outputs = {"o": o, "commitment_loss": loss.reshape(case.outputs["commitment_loss"].shape)}
    for x, of in zip(on, nearest, strict=True):
        kmeans.observe(x, of)
    kmeans.update()
    # Under which name the centroids afterwards were recorded is for the recording to say.
    for name in case.outputs:
        if "mean" in name and name not in outputs:
            fresh = (kmeans.means - kmeans.decay * means) / (1 - kmeans.decay)
            outputs[name] = fresh if name.startswith("new") else kmeans.means
    named = {"q": q, "k": k, "v": v, "mem_key": mem_key, "mem_value": mem_value}
    return outputs, case.gradients(o.square().mean(), named)


def language_model(case: Case) -> Answer:
    config: dict[str, Any] = case.config
    unknown = set(config) - READ - IGNORED
    assert not unknown, f"configuration keys that nothing reads: {sorted(unknown)}"
    for key in ("receives_context", "pkm_layers", "moe_layers"):
        if config.get(key):
            pytest.skip(f"{key}={config[key]!r} is not built")
    assert config.get("ff_activation") is None, f"ff_activation={config['ff_activation']!r}"
    assert config["max_seq_len"] % config.get("window_size", 64) == 0
    local = config.get("n_local_attn_heads", 0)
    model = RoutingTransformer(
        vocabulary=config["num_tokens"],
        context=config["max_seq_len"],
        dim=config["dim"],
        depth=config["depth"],
        num_heads=config.get("heads", 8),
        local_heads=local if isinstance(local, int) else list(local),
        head_dim=config.get("dim_head", 64),
        window=config.get("window_size", 64),
        local_window=config.get("local_attn_window_size"),
        local_radius=config.get("local_attn_radius_blocks", 1),
        causal=config.get("causal", False),
        share_qk=config.get("shared_qk"),
        num_mem_kv=config.get("num_mem_kv", 0),
        embedding_dim=config.get("emb_dim"),
        glu=config.get("ff_glu", False),
        rezero=config.get("use_rezero", False),
        scale_norm=config.get("use_scale_norm", False),
        shift_tokens=config.get("shift_tokens", False),
        reversible=config.get("reversible", False),
        tie=config.get("tie_embedding", False),
        features=config.get("return_embeddings", False),
        rotate_values=True,
    ).eval()
    load_official(model, {key: value for key, value in case.params.items() if value.numel()})
    inputs = case.inputs
    assert not set(inputs) - {"x", "input_mask"}, f"inputs that nothing reads: {sorted(inputs)}"
    logits = model(inputs["x"], mask=inputs.get("input_mask"))
    loss = aux_losses(model)["commitment"]
    outputs = {"logits": logits, "aux_loss": loss.reshape(case.outputs["aux_loss"].shape)}
    own = dict(model.named_parameters())
    named = {key: own[ours] for key, ours in official_names(model, case).items() if ours in own}
    empty = {key: grad for key, grad in case.grads.items() if not grad.numel()}  # a memory of no slots
    return outputs, {**case.gradients(logits.square().mean(), named), **empty}


def official_names(model: RoutingTransformer, case: Case) -> dict[str, str]:
    """Our names of the parameters by the official ones."""
    found = {}
    for key in case.grads:
        for pattern, ours in model.official_keys["lucidrains"].items():
            match = re.fullmatch(pattern, key)
            if match and ours:
                found[key] = match.expand(ours)
                break
    return found
