"""The layer below Selective S4 against ``S4`` of md-mohaiminul/ViS4mer; the paper itself has no public code."""

from __future__ import annotations

import pytest
from cases import Answer, Case

from foveate.mixers.s4 import S4
from foveate.models.official import load_official

#: Options of the official constructor that change nothing once weights are given, without training.
WITHOUT_EFFECT = {
    *("measure", "dt_min", "dt_max", "trainable", "lr", "length_correction", "weight_decay", "precision"),
    *("cache", "dropout", "initializer", "verbose", "keops"),
}
#: What is built, of options that change the layer.
BUILT = {
    "mode": ("nplr",),
    "stride": (1,),
    "activation": ("gelu",),
    "postact": (None,),
    "weight_norm": (False,),
    "input_linear": (False,),
    "hyper_act": (None,),
    "resample": (False,),
    "use_state": (False,),
}


def run(case: Case) -> Answer:
    if case.official_class.rpartition(".")[2] != "S4":
        pytest.skip(f"{case.official_class} is not built")
    config = {key: value for key, value in case.config.items() if key not in WITHOUT_EFFECT}
    for name, legal in BUILT.items():
        if config.pop(name, legal[0]) not in legal:
            pytest.skip(f"S4 with {name}={case.config[name]!r} is not built")
    transposed = config.pop("transposed", True)
    layer = S4(
        config.pop("H"),
        config.pop("l_max"),
        d_state=config.pop("d_state", 64),
        rank=config.pop("rank", 1),
        shared_rates=case.params["kernel.krylov.w"].ndim == 2,
    ).eval()
    assert not config, f"unknown in the configuration: {config}"
    load_official(layer, case.params, source="ViS4mer")
    x = case.inputs["x"].requires_grad_()
    y = layer(x.transpose(1, 2)).transpose(1, 2) if transposed else layer(x)
    loss = y.square().mean()
    official = {"x": x, "D": layer.D, "output_linear.weight": layer.out.weight, "output_linear.bias": layer.out.bias}
    official |= {f"kernel.krylov.{name}": getattr(layer, name) for name in ("w", "B", "C", "log_dt")}
    grads = dict(case.gradients(loss, official))
    if "output_linear.bias" in grads:
        grads["output_linear.bias"] = grads["output_linear.bias"].reshape(case.grads["output_linear.bias"].shape)
    return {"y": y, "kernel": layer.kernel()}, grads
