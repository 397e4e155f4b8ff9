"""Record ``patchtst.safetensors``: both releases of PatchTST, and transformers' port, with tiny random weights.

    python -m tests.peers.record_patchtst AUTHORS LIBRARY

AUTHORS is ``PatchTST_supervised`` of a checkout of yuqinie98/PatchTST (commit 204c21e), LIBRARY a checkout of
thuml/Time-Series-Library (commit 4e938a17); transformers (5.x) and einops must be installed. Keys of the file:
``CASE/param/*`` (the peer's own names), ``CASE/x``, ``CASE/y`` and, for imputation, ``CASE/mask``; sizes as JSON in
the header.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = Path(__file__).with_name("patchtst.safetensors")
SIZES = {"d_model": 8, "n_heads": 2, "d_ff": 12, "e_layers": 2, "patch_len": 6, "stride": 3}
STEPS, HORIZON, CHANNELS, CLASSES = 20, 5, 2, 3
LIBRARY_TASKS = {
    "forecast": "long_term_forecast",
    "impute": "imputation",
    "detect-anomalies": "anomaly_detection",
    "classify-series": "classification",
}


def shaken(model: nn.Module) -> nn.Module:
    """The model in eval mode with weights and statistics away from their starts."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    return model.eval()


def module_of(folder: str, name: str) -> Any:
    """A module of a checkout; what another checkout left under the same names is forgotten first."""
    for known in [k for k in sys.modules if k.split(".")[0] in ("models", "layers", "utils")]:
        del sys.modules[known]
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


def authors(folder: str) -> dict[str, dict[str, Tensor]]:
    """Forecasts of the authors' network, without and with RevIN's scale and shift."""
    cases = {}
    for name, affine in (("authors", 0), ("authors-affine", 1)):
        fixed = {"revin": 1, "subtract_last": 0, "decomposition": 0, "kernel_size": 25, "padding_patch": "end"}
        dropouts = {"dropout": 0.1, "fc_dropout": 0.1, "head_dropout": 0.0, "individual": 0}
        sizes = {"enc_in": CHANNELS, "seq_len": STEPS, "pred_len": HORIZON, "affine": affine}
        config = SimpleNamespace(**SIZES, **fixed, **dropouts, **sizes)
        model = shaken(module_of(folder, "models.PatchTST").Model(config))
        x = torch.randn(3, STEPS, CHANNELS)
        cases[name] = {"x": x, "y": model(x), **parameters(model)}
    return cases


def library(folder: str) -> dict[str, dict[str, Tensor]]:
    """The library's network in all its tasks."""
    cases = {}
    sizes = {name: size for name, size in SIZES.items() if name not in ("patch_len", "stride")}
    for task, theirs in LIBRARY_TASKS.items():
        config = SimpleNamespace(
            task_name=theirs,
            seq_len=STEPS,
            pred_len=HORIZON if task == "forecast" else 0,
            enc_in=CHANNELS,
            num_class=CLASSES,
            dropout=0.1,
            factor=1,
            activation="gelu",
            **sizes,
        )
        network = module_of(folder, "models.PatchTST").Model(config, SIZES["patch_len"], SIZES["stride"])
        model = shaken(network)
        x, mask = torch.randn(3, STEPS, CHANNELS), torch.rand(3, STEPS, CHANNELS) > 0.3
        case = {"x": x, **parameters(model)}
        if task == "impute":
            case |= {"mask": mask, "y": model(x.masked_fill(~mask, 0), None, None, None, mask.float())}
        else:
            case["y"] = model(x.clone(), None, None, None)
        cases[f"library-{task}"] = case
    return cases


def transformers() -> dict[str, dict[str, Tensor]]:
    """The port of transformers from patches to standardised forecasts: it has no padding and no residual scores.

    Where patches do not fill the window it cuts at the start, the releases at the end: one step more fits.
    """
    from transformers import PatchTSTConfig, PatchTSTForPrediction

    config = PatchTSTConfig(
        num_input_channels=CHANNELS,
        context_length=STEPS + 1 + SIZES["stride"],
        prediction_length=HORIZON,
        patch_length=SIZES["patch_len"],
        patch_stride=SIZES["stride"],
        d_model=SIZES["d_model"],
        num_attention_heads=SIZES["n_heads"],
        ffn_dim=SIZES["d_ff"],
        num_hidden_layers=SIZES["e_layers"],
        norm_type="batchnorm",
        pre_norm=False,
        positional_encoding_type="random",
        use_cls_token=False,
        pooling_type=None,
        scaling=None,
        share_embedding=True,
        share_projection=True,
        loss="mse",
        do_mask_input=False,
    )
    model = shaken(PatchTSTForPrediction(config))
    x = torch.randn(3, STEPS + 1, CHANNELS)
    padded = torch.cat([x, x[:, -1:].expand(-1, SIZES["stride"], -1)], 1)
    return {"transformers": {"x": x, "y": model(past_values=padded).prediction_outputs, **parameters(model)}}


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {f"param/{name}": value for name, value in model.state_dict().items() if name.split(".")[-1] != "pe"}


def main() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        cases = authors(sys.argv[1]) | library(sys.argv[2]) | transformers()
    tensors = {f"{case}/{name}": v.clone().contiguous() for case, t in cases.items() for name, v in t.items()}
    save_file(tensors, FILE, {"sizes": json.dumps({**SIZES, "seq_len": STEPS, "enc_in": CHANNELS})})


if __name__ == "__main__":
    main()
