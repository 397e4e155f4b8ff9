"""FaViT: its attention (``Attention``) and the whole network (``FactorizationTransformer``), official code.

A recorded network's sizes are read off the shapes of its parameters; what its configuration says must agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from cases import Answer, Case

from foveate.mixers.favit import FaSA
from foveate.models.official import load_official
from foveate.models.vision.favit import FaViT

TOLERANCE = 1e-4


def run(case: Case) -> Answer:
    return network(case) if case.has_param(r"^patch_embed1\.") else attention(case)


def attention(case: Case) -> Answer:
    config = case.config
    mixer = FaSA(
        config.pop("dim"),
        num_heads=config.pop("num_heads", 8),
        qkv_bias=config.pop("qkv_bias", False),
        sr_ratio=config.pop("sr_ratio", 1),
        window_size=config.pop("windowsize", 7),
    )
    refuse_unknown(config)
    load_official(mixer, case.params)
    given = case.inputs["x"].requires_grad_()
    height, width = case.meta["size"]
    y = mixer.eval()(given.unflatten(1, (height, width))).flatten(1, 2)
    return {"y": y}, case.gradients(y.square().mean(), {"x": given, **dict(mixer.named_parameters())})


def network(case: Case) -> Answer:
    shapes = {name: tuple(value.shape) for name, value in case.params.items()}
    stages = count(r"patch_embed\d\.norm\.weight", shapes)
    first = [f"block{i + 1}.0" for i in range(stages)]
    dims = [shapes[f"patch_embed{i + 1}.norm.weight"][0] for i in range(stages)]
    ratios = [shapes[f"{block}.attn.sr.weight"][2] for block in first]
    options: dict[str, Any] = {
        "in_chans": shapes["patch_embed1.proj.weight"][1],
        "embed_dims": dims,
        "depths": [
            sum(bool(re.fullmatch(rf"block{i + 1}\.\d+\.norm1\.weight", n)) for n in shapes) for i in range(stages)
        ],
        "num_heads": [
            shapes[f"{block}.attn.local_convs.0.weight"][0] // shapes[f"{block}.attn.fcs.0.weight"][0]
            for block in first
        ],
        "mlp_ratios": [shapes[f"{b}.mlp.fc1.weight"][0] / d for b, d in zip(first, dims, strict=True)],
        "sr_ratios": ratios,
        "qkv_bias": f"{first[0]}.attn.q.bias" in shapes,
        "num_classes": shapes["head.weight"][0] if "head.weight" in shapes else 0,
    }
    config = case.config
    for name in list(config):
        if name in options:
            said, found = config.pop(name), options[name]
            assert said == found, f"{name} is {said}, the parameters say {found}"
    assert config.pop("num_stages", stages) == stages
    refuse_unknown(config)
    model = FaViT(**options).eval()
    load_official(model, case.params)
    x = case.inputs["x"].requires_grad_()
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    y = model(x)
    own = {official_name(name): p for name, p in model.named_parameters()}
    answers = {"y": y, "logits": y, "features": features}
    return answers, case.gradients(y.square().mean(), {"x": x, **own})


def count(pattern: str, names: Iterable[str]) -> int:
    return sum(bool(re.fullmatch(pattern, name)) for name in names)


def official_name(name: str) -> str:
    name = re.sub(r"^stages\.(\d)\.(\w+)\.", r"\2\1.", name)
    return name.replace(".mlp.dwconv.", ".mlp.dwconv.dwconv.")


def refuse_unknown(config: dict[str, Any]) -> None:
    """What changes nothing in eval mode, or only the size of an image that the network never asks for, is let by."""
    silent = ("qk_scale", "attn_drop", "proj_drop", "img_size", "patch_size", "drop_rate", "attn_drop_rate")
    silent += ("drop_path_rate", "norm_layer", "name", "model", "arch", "variant")
    left = set(config) - set(silent)
    assert not left, f"unknown options {sorted(left)}"
