"""The two-dimensional scan of LaMamba-Diff, which is VMamba's, by MambaMixer's token mixer on maps."""

from __future__ import annotations

import pytest
import torch
from cases import Answer, Case
from torch import Tensor

from foveate.mixers.mamba_mixer import GridTokenMixer
from foveate.mixers.mamba_mixer.grid_scans import CROSS_SCAN
from foveate.models.official import load_official

TOLERANCE = 1e-5

#: The release's paths on square maps of even sides.
SERPENTINE = ("serpentine_rows", "serpentine_rows_backward", "serpentine_columns", "serpentine_columns_backward")


def _official_gradients(mixer: GridTokenMixer, loss: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Gradients under the release's names, which stacks those of the orders."""
    names, tensors = zip(*mixer.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, (x, *tensors))
    given = dict(zip(names, found[1:], strict=True))

    def of_orders(name: str) -> list[Tensor]:
        return [given[f"branches.{i}.{name}"] for i in range(len(mixer.scans))]

    official = {
        "x": found[0],
        "x_proj_weight": torch.stack(of_orders("x_proj.weight")),
        "dt_projs_weight": torch.stack(of_orders("dt_proj.weight")),
        "dt_projs_bias": torch.stack(of_orders("dt_proj.bias")),
        "A_logs": torch.cat(of_orders("A_log")),
        "Ds": torch.cat(of_orders("D")),
    }
    plain = {"conv.": "conv2d.", "norm.": "out_norm.", "in_proj.": "in_proj.", "out_proj.": "out_proj."}
    for ours, theirs in plain.items():
        official |= {k.replace(ours, theirs, 1): v for k, v in given.items() if k.startswith(ours)}
    return official


def run(case: Case) -> Answer:
    if case.official_class != "SS2D":
        pytest.skip(f"{case.official_class} is not built")
    config, x = case.config, case.inputs["x"].requires_grad_()
    dim = config.pop("d_model")
    options = {"d_state": config.pop("d_state", 16), "d_conv": config.pop("d_conv", 3)}
    options["dt_rank"] = case.params["dt_projs_weight"].shape[-1]
    expand, continuous = config.pop("ssm_ratio", 2.0), config.pop("continuous_scan", True)
    options["conv_bias"] = config.pop("conv_bias", case.has_param(r"conv2d\.bias"))
    assert not set(config) - {"dropout", "bias", "initialize"}, f"options that nobody reads: {config}"
    if continuous and (x.shape[1] % 2 or x.shape[2] % 2 or x.shape[1] != x.shape[2]):
        pytest.skip("the release's paths on maps that are not square and even are not built")
    mixer = GridTokenMixer(
        dim,
        scans=SERPENTINE if continuous else CROSS_SCAN,
        expand=int(expand),
        bias=case.has_param(r"in_proj\.bias"),
        norm=case.has_param(r"out_norm\.weight"),
        **options,
    )
    load_official(mixer, case.params)
    y = mixer(x)
    return {"y": y}, _official_gradients(mixer, y.square().mean(), x)
