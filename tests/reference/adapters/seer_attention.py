"""SeerAttention's gate, its choices, its target and its loss against ``AttnGate`` of microsoft/SeerAttention."""

from __future__ import annotations

import re

import pytest
import torch
from cases import Answer, Case

from foveate.mixers.seer_attention.gate import AttnGate
from foveate.models.official import load_official
from foveate.ops.block_gate import blocks_from_ratio, blocks_from_threshold, gate_kl_loss
from foveate.ops.block_sparse_attention import block_sparse_attention
from foveate.ops.pooled_attention_target import pooled_attention_target
from foveate.ops.positions import apply_rope

TOLERANCE = 1e-5

READ = {"b", "n", "num_q_head", "num_k_head", "head_dim", "gate_hidden", "block_size", "force_double", "rope_base"}


def run(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    unknown = set(config) - READ
    assert not unknown, f"configuration keys that nothing reads: {sorted(unknown)}"
    named = re.fullmatch(r"(?:.*\.)?Q((?:max|min|avg)+)_K((?:max|min|avg)+)", case.official_class)
    if named is None:
        pytest.skip(f"{case.official_class} is not built")
    q_pool, k_pool = (tuple(re.findall("max|min|avg", pools)) for pools in named.groups())
    size, base = config["block_size"], float(config["rope_base"])
    gate = AttnGate(
        head_dim=config["head_dim"],
        num_q_heads=config["num_q_head"],
        num_k_heads=config["num_k_head"],
        block_size=size,
        gate_dim=config["gate_hidden"],
        q_pool=q_pool,  # type: ignore[arg-type]
        k_pool=k_pool,  # type: ignore[arg-type]
        force_double=config["force_double"],
        rope_base=base,
    )
    load_official(gate, case.params)
    q, k, v = (inputs[name].transpose(1, 2) for name in ("q", "k", "v"))
    assert q.shape[0] == config["b"]
    assert q.shape[2] == config["n"]

    ours = gate.rope(-(-config["n"] // size))
    for mine, recorded in zip(ours, (inputs["block_cos"], inputs["block_sin"]), strict=True):
        torch.testing.assert_close(mine, recorded[:1], rtol=0, atol=1e-5)
    logits = gate(q, k, block_rope=(inputs["block_cos"], inputs["block_sin"]), softmax=False)
    score = logits.softmax(-1)
    positions = torch.arange(q.shape[2])
    turned_q, turned_k = apply_rope(q, positions, base), apply_rope(k, positions, base)
    target = pooled_attention_target(turned_q, turned_k, block_size=size)
    loss = gate_kl_loss(logits, target)

    outputs = {"gate_logits": logits, "gate_score": score, "ground_truth": target, "kl_loss": loss.view(1)}
    for name in case.outputs:
        kind, _, number = name.rpartition("_")
        if kind == "mask_threshold":
            outputs[name] = blocks_from_threshold(score, float(number), empty="leave")
        elif kind == "mask_nz":
            outputs[name] = blocks_from_ratio(logits, float(number), empty="leave")
        elif kind == "sparse_attn":
            kept = blocks_from_threshold(score, float(number), empty="leave")
            o = block_sparse_attention(turned_q, turned_k, v, kept, block_size=size)
            outputs[name] = o.transpose(1, 2)
    return outputs, case.gradients(loss, dict(gate.named_parameters()))
