"""BiFormer against its release: both forms of the routed attention, the dense one, whole models of all layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Answer, Case
from torch import Tensor, nn

import foveate
from foveate.mixers.biformer import BiLevelRoutingAttention, LePEAttention

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
        config = {"auto_pad": False, **config}
        return _mixer(case, BiLevelRoutingAttention(config.pop("dim"), **config), "legacy")
    if name == "nchwBRA":
        config = {**config, "auto_pad": True, "form": "nchw"}  # its own option is not read
        return _mixer(case, BiLevelRoutingAttention(config.pop("dim"), **config), "nchw", channels_first=True)
    if name in ("AttentionLePE", "Attention"):
        config = {**config, **({"side_dwconv": 0} if name == "Attention" else {})}
        return _mixer(case, LePEAttention(config.pop("dim"), **config), "legacy")
    if name == "nchwAttentionLePE":
        config = {**config, "lepe_reads": "values"}
        return _mixer(case, LePEAttention(config.pop("dim"), **config), "nchw", channels_first=True)
    pytest.skip(f"{case.official_class} is not built")


def _mixer(case: Case, mixer: Any, source: str, channels_first: bool = False) -> Answer:
    foveate.load_official(mixer, case.params, source)
    mixer.eval()
    x = case.inputs["x"].requires_grad_()
    read = x.movedim(1, -1) if channels_first else x
    routing = {}
    if isinstance(mixer, BiLevelRoutingAttention):
        y, found = mixer(read, return_routing=True)
        assert torch.allclose(y, mixer(read), rtol=1e-5, atol=1e-5)
        batch, heads, regions, n, seen = found.attention.shape
        apart = found.attention.transpose(1, 2).reshape(batch * regions, heads, n, seen)
        routing = {"r_idx": found.routes, "r_weight": found.weights, "attn_weight": apart, "attn": apart}
        if source == "nchw":
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
        if source == "legacy"
        else {"qkv": "qkv_linear", "wo": "output_linear"}
    )
    if isinstance(module, LePEAttention):
        names = {}
    return {".".join((names.get(k.split(".")[0], k.split(".")[0]), k.split(".")[1])): m for k, m in ours.items()}
