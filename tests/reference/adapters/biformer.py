"""BiFormer against its release: both forms of the routed attention, the dense one, whole models of all layouts."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from cases import Answer, Case
from torch import Tensor, nn

import foveate
from foveate.mixers.biformer import BiLevelRoutingAttention, LePEAttention, RegionalRoutingAttention
from foveate.models.vision.biformer import BiFormer

TOLERANCE = 1e-5

#: Options that the release has and ours does not, with the values that change nothing.
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "kv_downsample_kernel": (None,),
    "attn_backend": ("torch",),
}


def run(case: Case) -> Answer:
    name, config = case.official_class.rpartition(".")[2], case.config
    for option, legal in WITHOUT_EFFECT.items():
        assert config.pop(option, legal[0]) in legal, f"{option} is not built"
    if name == "BiLevelRoutingAttention":
        return _mixer(case, BiLevelRoutingAttention(config.pop("dim"), **_routing(case, config)), "bra_legacy")
    if name == "nchwBRA":
        config.pop("auto_pad", None)  # it is not read
        return _mixer(case, RegionalRoutingAttention(config.pop("dim"), **config), "bra_nchw", channels_first=True)
    if name in ("AttentionLePE", "Attention"):
        config = {**config, **({"side_dwconv": 0} if name == "Attention" else {})}
        return _mixer(case, LePEAttention(config.pop("dim"), **config), "legacy")
    if name == "nchwAttentionLePE":
        config = {**config, "lepe_reads": "values"}
        return _mixer(case, LePEAttention(config.pop("dim"), **config), "nchw", channels_first=True)
    if name in ("BiFormer", "BiFormerSTL", "nchwBiFormerSTL"):
        return _model(case, name, config)
    pytest.skip(f"{case.official_class} is not built")


def _model(case: Case, name: str, config: dict[str, Any]) -> Answer:
    """A whole model: the release's defaults under what the case says."""
    assert not config.pop("use_checkpoint_stages", []), "checkpoints rename weights"
    for option in ("qk_scale" if name != "BiFormer" else "", "drop_rate", "representation_size", "pe"):
        assert not config.pop(option, None), f"{option} is not built"
    config.pop("pe_stages", None)
    config.pop("kv_downsample_kernels", None)  # of a pooling that is not built there either
    if name == "BiFormer":
        defaults = {"depth": [3, 4, 8, 3], "embed_dim": [64, 128, 320, 512], "mlp_ratios": [4] * 4, "head_dim": 64}
        config = {**defaults, "topks": [8, 8, -1, -1], "kv_downsample_mode": "ada_avgpool", "auto_pad": False, **config}
        config["routing"] = _kind(config)
    else:
        layout = {"layout": "stl" if name == "BiFormerSTL" else "stl_nchw", "before_attn_dwconv": 0}
        defaults = {"depth": [2, 2, 6, 2], "embed_dim": [96, 192, 384, 768], "mlp_ratios": [4] * 4, **layout}
        norms = [str(config.pop(option, None)) for option in ("norm_layer", "pre_head_norm_layer")]
        assert norms[1] in ("None", norms[0]), "a norm of the head of its own is not built"
        batch = "BatchNorm2d" in norms[0] or case.has_param(r"downsample_layers\.0\.1\.running_mean")
        config = {**defaults, "norm": "batch" if batch else "layer", "n_win": config.pop("n_wins", (7,) * 4), **config}
    model = BiFormer(**config)
    given = {**case.buffers, **case.params}
    counts = {k: m for k, m in model.state_dict().items() if k.endswith("num_batches_tracked")}
    foveate.load_official(model, {**counts, **given}, "biformer" if name == "BiFormer" else "stl")
    model.eval()
    x = case.inputs["x"].requires_grad_()
    maps = model.pyramid(x)
    features = model.norm(maps[-1])
    y = model.forward_head(features)
    ours = dict(model.named_parameters())
    official = {official: ours[key] for official, key in _renamed(model, given, name).items() if key in ours}
    grads = case.gradients(y.square().mean(), {"x": x, **official})
    outputs = {"y": y, "logits": y, "features": features, "feat": features, "forward_features": features}
    outputs |= {f"{word}{i}": m for i, m in enumerate(maps) for word in ("stage", "stage_", "feature_", "stages.")}
    return outputs, {key: g.reshape(case.grads[key].shape) for key, g in grads.items()}


def _renamed(model: BiFormer, given: dict[str, Tensor], name: str) -> dict[str, str]:
    """Ours for the release's keys."""
    table = model.official_keys["biformer" if name == "BiFormer" else "stl"]
    found = {}
    for key in given:
        for pattern, replacement in table.items():
            match = re.fullmatch(pattern, key)
            if match:
                found[key] = match.expand(replacement)
                break
    return found


def _routing(case: Case, config: dict[str, Any]) -> dict[str, Any]:
    """Our one option for the release's three, and its padding, which ours does always."""
    routing, shape = _kind(config), case.inputs["x"].shape[1:3]
    assert config.pop("auto_pad", False) or not any(length % config["n_win"] for length in shape)
    return {**config, "routing": routing}


def _kind(config: dict[str, Any]) -> str:
    flags = tuple(bool(config.pop(f"{name}_routing", False)) for name in ("soft", "diff", "param"))
    kinds = {
        (False,) * 3: "hard",
        (True, False, False): "soft",
        (True, True, False): "differentiable",
        (True,) * 3: "learned",
    }
    return kinds[flags]


def _mixer(case: Case, mixer: Any, source: str, channels_first: bool = False) -> Answer:
    foveate.load_official(mixer, case.params, source)
    mixer.eval()
    x = case.inputs["x"].requires_grad_()
    read = x.movedim(1, -1) if channels_first else x
    routing = {}
    if isinstance(mixer, BiLevelRoutingAttention):
        y, found = mixer.forward_with_routing(read)
        assert torch.allclose(y, mixer(read), rtol=1e-5, atol=1e-5)
        batch, heads, regions, n, seen = found.attention.shape
        apart = found.attention.transpose(1, 2).reshape(batch * regions, heads, n, seen)
        routing = {"r_idx": found.routes, "r_weight": found.weights, "attn_weight": apart, "attn": apart}
        if source == "bra_nchw":
            routing |= {"attn_mat": found.attention, "attn": found.attention}
        y = mixer(read)
    else:
        y = mixer(read)
    y = y.movedim(-1, 1) if channels_first else y
    grads = case.gradients(y.square().mean(), {"x": x, **_official(mixer, source)})
    return {"y": y, **routing}, {name: g.reshape(case.grads[name].shape) for name, g in grads.items()}


def _official(module: nn.Module, source: str) -> dict[str, Tensor]:
    """Our parameters by the release's names."""
    ours = dict(module.named_parameters())
    names = (
        {"qkv": "qkv.qkv", "router": "router.emb"}
        if source == "bra_legacy"
        else {"qkv": "qkv_linear", "wo": "output_linear"}
    )
    if isinstance(module, LePEAttention):
        names = {}
    return {".".join((names.get(k.split(".")[0], k.split(".")[0]), k.split(".")[1])): m for k, m in ours.items()}
