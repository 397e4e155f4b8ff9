"""What Selective S4 stands on, against ``S4`` and ``ViS4mer`` of md-mohaiminul/ViS4mer; it has no code of its own."""

from __future__ import annotations

import pytest
from cases import Answer, Case
from torch import Tensor

from foveate.mixers.s4 import S4
from foveate.models.official import load_official
from foveate.models.series.selective_s4 import ViS4mer

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
    kind = case.official_class.rpartition(".")[2]
    if kind == "ViS4mer":
        return _network(case)
    if kind != "S4":
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


def _network(case: Case) -> Answer:
    config = case.config
    names = ("d_input", "l_max", "d_output", "d_model", "n_layers", "dropout", "prenorm")
    model = ViS4mer(**{name: config.pop(name) for name in names if name in config}).eval()
    assert not config, f"unknown in the configuration: {config}"
    load_official(model, case.params, source="ViS4mer")
    x = case.inputs["x"].requires_grad_()
    features = model.forward_features(x)
    y = model.decoder(features)
    official: dict[str, Tensor] = {"x": x, "decoder.weight": model.decoder.weight, "decoder.bias": model.decoder.bias}
    if model.encoder is not None:
        official |= {"encoder.weight": model.encoder.weight, "encoder.bias": model.encoder.bias}
    for i, layer in enumerate(model.layers):
        own = dict(layer.named_parameters())
        for theirs, ours in (("s4_layers", "s4"), ("norms", "norm"), ("linears", "linear")):
            for name, value in own.items():
                part, _, rest = name.partition(".")
                if part == ours:
                    official[f"{theirs}.{i}.{_released(rest) if part == 's4' else rest}"] = value
    grads = case.gradients(y.square().mean(), official)
    columns = {name: grad.reshape(case.grads[name].shape) for name, grad in grads.items()}
    return {"y": y, "logits": y, "out": y, "features": features}, columns


def _released(name: str) -> str:
    """The released name of a parameter of an S4 layer."""
    if name == "D":
        return name
    return name.replace("out.", "output_linear.") if name.startswith("out.") else f"kernel.krylov.{name}"
