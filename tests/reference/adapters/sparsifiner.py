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
from foveate.models.vision.sparsifiner import Sparsifiner

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
    dense = mixer.is_dense
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


def network(case: Case) -> Answer:
    config = case.config
    options = shared_options(config)
    assert config.pop("hybrid_backbone", None) is None, "a hybrid backbone is not built"
    assert not config.pop("attn_drop_rate", 0.0), "dropout of the attention cannot be repeated"
    for key in ("norm_layer", "distill"):  # which norm is said by its parameters; the other changes nothing
        config.pop(key, None)
    depth = config.pop("depth", 12)
    prunes = config.pop("token_pruning_loc_indicator", None) or [False] * depth
    layers = [i for i, here in enumerate(prunes) if here]
    rates = config.pop("token_keep_rate_list", None) or [1.0] * depth
    train = trains(case, config, options["phase"])
    given = {"embed_dim": 768, "num_heads": 12, "qkv_bias": True, **config}
    known = {
        "img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "num_heads", "mlp_ratio", "qkv_bias",
        "representation_size", "drop_rate", "drop_path_rate", "attn_keep_rate_list",
    }  # fmt: skip
    assert not set(given) - known, f"configuration keys that nothing reads: {sorted(set(given) - known)}"
    model = Sparsifiner(
        depth=depth,
        attn_keep_rate=given.pop("attn_keep_rate_list"),
        token_prune_layers=layers,
        token_keep_rate=[rates[i] for i in layers],
        **given,
        **options,
    )
    load_official(model, case.params)
    model.train(train)
    seen: list[dict[str, Any]] = [{} for _ in range(depth)]
    for one, block in zip(seen, model.blocks, strict=True):
        block.register_forward_hook(lambda m, a, out, one=one: one.update(token_mask=out[1]))
        block.attn.register_forward_pre_hook(
            lambda m, a, k, one=one: one.update(x=a[0], alive=k["mask"]), with_kwargs=True
        )
    x = case.inputs["x"].requires_grad_()
    logits = model(x)
    outputs = {"logits": logits, "y": logits, "x": logits, "features": model.forward_features(x)[:, 1:]}
    for i, (one, block) in enumerate(zip(seen, model.blocks, strict=True)):
        q, k, _ = block.attn.project(one["x"], one["alive"])
        links = block.attn.connect(q, k, one["alive"])
        whole = block.attn.dense_map(q, k)
        outputs |= {f"attn_mask_{i}": links.mask, f"approx_attn_{i}": links.guess, f"basis_coef_{i}": links.coef}
        outputs[f"unmasked_attn_{i}"] = whole
        outputs[f"masked_attn_{i}"] = whole if block.attn.is_dense else block.attn.sparse_map(q, k, links.mask)
        if one["token_mask"] is not None:
            outputs[f"token_mask_{i}"] = one["token_mask"][:, 1:]
    return outputs, case.gradients(loss_of(case, outputs), {"x": x, **dict(model.named_parameters())})


def kept(scores: Tensor, before: Tensor | None, count: int) -> Tensor:
    """bool: the so many tokens of the best scores among those that were left before."""
    scores = scores if before is None else scores.masked_fill(~before, -math.inf)
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.topk(count, sorted=False)[1], True)
