"""TimesNet against thuml/Time-Series-Library: all tasks of ``models.TimesNet.Model``."""

from __future__ import annotations

import re

import torch
from cases import Answer, Case

from foveate.models.official import load_official
from foveate.models.series.timesnet import TimesNet, fft_periods

TOLERANCE = 1e-5

TASKS = {
    "long_term_forecast": "forecast",
    "short_term_forecast": "forecast",
    "imputation": "impute",
    "classification": "classify-series",
    "anomaly_detection": "detect-anomalies",
}
#: Constructor options of the official configuration that ours has under the same name.
SAME = ("seq_len", "enc_in", "d_model", "d_ff", "e_layers", "top_k", "num_kernels", "dropout", "embed", "freq")


def run(case: Case) -> Answer:
    config, inputs = case.config, case.inputs
    task = TASKS[config["task_name"]]
    model = TimesNet(
        task=task,
        pred_len=config["pred_len"] if task == "forecast" else 0,
        num_class=config["num_class"] if task == "classify-series" else None,
        **{name: config[name] for name in SAME if name in config},
    ).eval()
    load_official(model, case.params)

    x = inputs["x_enc"].requires_grad_()
    marks = inputs.get("x_mark_enc") if task in ("forecast", "impute") else None
    padding = inputs.get("x_mark_enc") if task == "classify-series" else None  # the official classifier's mask
    mask = inputs.get("mask") if task == "impute" else padding
    seen: list[torch.Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    y = model(x, marks, None if mask is None else mask == 1)
    periods, amplitudes = fft_periods(seen[0], config["top_k"])

    outputs = {
        "y": y,
        "first_block_input": seen[0],
        "first_block_periods": periods,
        "first_block_period_weight": amplitudes,
    }
    loss = y.square().mean()
    return outputs, case.gradients(loss, {"x_enc": x, **official_parameters(model, case)})


def official_parameters(model: TimesNet, case: Case) -> dict[str, torch.Tensor]:
    """Our parameters by their official names, through the table that loaded them."""
    ours, named = dict(model.named_parameters()), {}
    for key in case.params:
        for pattern, replacement in TimesNet.official_keys["Time-Series-Library"].items():
            match = re.fullmatch(pattern, key)
            if match and match.expand(replacement) in ours:
                named[key] = ours[match.expand(replacement)]
    return named
