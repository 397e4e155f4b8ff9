"""Sparsifiner against lim142857/Sparsifiner: its attention alone, and the whole network."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from cases import Answer, Case
from torch import Tensor

from foveate.mixers.sparsifiner import SparsifinerAttention
from foveate.models.official import load_official

TOLERANCE = 1e-5
#: Keys of the official configuration file that change the forward pass, and those that do not.
READ = {
    "SPAR": {
        "BASIS_THRESHOLD", "BASIS_COEF", "ATTN_SCORE", "PRUNE_ATTN_MATRIX_ROW",
        "OUT_BASIS_SPARSITY", "OUT_BASIS_COEF_SPARSITY", "OUT_ATTN_MASK_SPARSITY",
    },
    "LOSS": {"USE_ATTN_RECON"},
}  # fmt: skip


def run(case: Case) -> Answer:
    name = case.official_class.rsplit(".", 1)[-1]
    if name not in ("Attention", "Sparsifiner"):
        pytest.skip(f"{case.official_class} is not built")
    return attention(case) if name == "Attention" else network(case)


def shared_options(config: dict[str, Any]) -> dict[str, Any]:
    """Options that both classes read from the configuration file."""
    given = config.pop("cfg")
    for part, keys in READ.items():
        unknown = set(given.get(part, {})) - keys
        assert not unknown, f"configuration keys that nothing reads: {part} {sorted(unknown)}"
    assert not set(given) - set(READ), f"configuration keys that nothing reads: {sorted(given)}"
    spar = given["SPAR"]
    coef, score = spar["BASIS_COEF"], spar["ATTN_SCORE"]
    for part in (coef, score):
        assert not set(part) - {"USE_TOPK", "TOPK", "THRESHOLD"}, f"keys that nothing reads: {sorted(part)}"
    return {
        "reduce_n_factor": config.pop("reduce_n_factor", 8),
        "reduce_c_factor": config.pop("reduce_c_factor", 2),
        "share_inout_proj": config.pop("share_inout_proj", False),
        "qk_scale": config.pop("qk_scale", None),
        "basis_threshold": spar["BASIS_THRESHOLD"],
        "coef_topk": coef["TOPK"] if coef["USE_TOPK"] else None,
        "coef_threshold": coef["THRESHOLD"],
        "score_topk": score["USE_TOPK"],
        "score_threshold": score["THRESHOLD"],
        "prune_rows": spar.get("PRUNE_ATTN_MATRIX_ROW", False),
        "phase": "reconstruct" if given.get("LOSS", {}).get("USE_ATTN_RECON", False) else "sparse",
        "self_distil": 0.0,
    }


def attention(case: Case) -> Answer:
    config = case.config
    options = shared_options(config)
    for key in ("attn_drop", "proj_drop"):
        assert not config.pop(key, 0.0), f"{key} cannot be repeated"
    keep, prunes = config.pop("token_keep_rate", 0.5), config.pop("token_pruning_this_layer", False)
    mixer = SparsifinerAttention(
        config.pop("dim"),
        num_heads=config.pop("num_heads", 8),
        num_tokens=config.pop("num_tokens", 197),
        attn_keep_rate=config.pop("attn_keep_rate", 0.25),
        qkv_bias=config.pop("qkv_bias", False),
        class_token=True,
        **options,
    )
    mixer.train(trains(case, config, options["phase"]))
    assert not config, f"configuration keys that nothing reads: {sorted(config)}"
    load_official(mixer, case.params)
    dense = mixer.training and mixer.phase == "reconstruct"
    x = case.inputs["x"].requires_grad_()
    before = next((case.inputs[n].bool() for n in ("prev_token_mask", "token_mask") if n in case.inputs), None)
    alive = None
    if before is not None:
        alive = torch.cat([torch.ones_like(before[:, :1]), before], 1)
        mixer.mask_predictor.budget = min(mixer.mask_predictor.budget, int(before[0].sum()))
    q, k, v = mixer.project(x, alive)
    links, whole = mixer.connect(q, k, alive), mixer.dense_map(q, k)
    weights = whole if dense else mixer.sparse_map(q, k, links.mask)
    # What a pruned token reads is recorded as well; ours is left out.
    y = mixer(x) if alive is None else mixer.proj((weights @ v).transpose(1, 2).flatten(2))
    outputs = {"y": y, "x": y, "masked_attn": weights, "unmasked_attn": whole}
    outputs |= {"attn_mask": links.mask, "approx_attn": links.guess, "basis_coef": links.coef}
    if before is not None:
        outputs["token_mask"] = before
    if prunes and not dense:
        scores = mixer.class_scores(x, alive)
        outputs["token_mask"] = kept(scores, before, math.ceil(keep * scores.shape[1]))
    named = {"x": x, **dict(mixer.named_parameters())}
    return outputs, case.gradients(loss_of(case, outputs), named)


def trains(case: Case, config: dict[str, Any], phase: str) -> bool:
    """Whether the case was recorded in training mode: its configuration says so, or its notes, or its phase."""
    said = [config.pop(key) for key in ("train", "training") if key in config]
    if said:
        return bool(said[0])
    return not re.search(r"\beval\b", case.notes) and (phase == "reconstruct" or "train" in case.notes)


def loss_of(case: Case, outputs: dict[str, Tensor]) -> Tensor:
    """The sum of the squares that the notes name; else of ``y``, and of the guess if the predictor has gradients."""
    terms = re.findall(r"(\w+)\.(?:square\(\)|pow\(2\)|sq)\.(mean|sum)", case.notes)
    terms += [(name, "mean") for name in re.findall(r"mean\((\w+)\^2\)", case.notes)]
    if not terms:
        terms = [("y" if "y" in outputs else "logits", "mean")]
        terms += [("approx_attn", "mean")] * any("mask_predictor" in key for key in case.grads)
    return sum((getattr(outputs[name].square(), how)() for name, how in terms), torch.zeros(()))
