"""The selective scan, SSD, their step, and the Mamba and Mamba-2 blocks against state-spaces/mamba."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from cases import Answer, Case
from torch import Tensor, nn

from foveate.mixers import Mixer
from foveate.mixers.mamba import Mamba
from foveate.mixers.mamba2 import Mamba2
from foveate.mixers.mamba_mixer import SelectiveTokenMixer
from foveate.models.official import load_official
from foveate.ops.selective_scan import selective_scan, selective_state_update
from foveate.ops.ssd import ssd_discrete


def run(case: Case) -> Answer:
    name = case.official_class.split(" ")[0].rsplit(".", 1)[-1]
    runs = {
        "selective_scan_ref": scan,
        "ssd_minimal_discrete": discrete,
        "selective_state_update_ref": steps,
        "Mamba": mamba,
        "Mamba2": mamba2,
    }
    if name not in runs:
        pytest.skip(f"{case.official_class} is not built")
    return runs[name](case)


def scan(case: Case) -> Answer:
    given = {name: value.requires_grad_() for name, value in case.inputs.items()}
    # Complex tensors are stored as pairs of reals; the maps that vary in time are interleaved by the official code.
    complex_ones = {"A", *(n for n in ("B", "C") if case.config["constant_BC"])} if case.config["complex"] else set()
    called = {n: torch.view_as_complex(v) if n in complex_ones else v for n, v in given.items()}
    y, last = selective_scan(**called, delta_softplus=case.config["delta_softplus"], return_last_state=True)
    last = torch.view_as_real(last) if last.is_complex() else last
    return {"y": y, "last_state": last}, case.gradients(y.square().mean(), given)


def discrete(case: Case) -> Answer:
    given = {name: value.requires_grad_() for name, value in case.inputs.items()}
    initial = given["initial_states"].squeeze(1) if "initial_states" in given else None
    x, a, B, C = (given[name] for name in ("X", "A", "B", "C"))
    y, final = ssd_discrete(x, a, B, C, case.config["block_len"], initial_states=initial)
    return {"Y": y, "final_state": final}, case.gradients(y.square().mean(), given)


def steps(case: Case) -> Answer:
    given = {name: value.requires_grad_() for name, value in case.inputs.items()}
    state = next(value for name, value in given.items() if "state" in name)
    constant = {name: given[name] for name in ("A", "D", "dt_bias") if name in given}
    moving = {name: value for name, value in given.items() if name in ("x", "dt", "B", "C", "z")}
    time = 1 if given["x"].shape[0] == state.shape[0] else 0
    softplus = next((bool(v) for k, v in case.config.items() if "softplus" in k), "softplus=False" not in case.notes)
    outputs, states = [], []
    for t in range(given["x"].shape[time]):
        token = {name: value.select(time, t) for name, value in moving.items()}
        y, state = selective_state_update(state, **token, **constant, dt_softplus=softplus)
        outputs.append(y)
        states.append(state)
    y = torch.stack(outputs, time)
    found = {
        n: y if "state" not in n else state if v.ndim == state.ndim else torch.stack(states, time)
        for n, v in case.outputs.items()
    }
    return found, case.gradients(y.square().mean(), given)


def mamba(case: Case) -> Answer:
    mixer = Mamba(
        case.config["d_model"],
        **_options(case, Mamba),
        conv_bias=case.has_param(r"conv1d\.bias"),
        bias=case.has_param(r"in_proj\.bias"),
    )
    y, x, state = _block(case, mixer, "x")
    _same_as_token_mixer(case, mixer, y)
    outputs = {"y": y, "conv_state": state.conv, "ssm_state": state.ssm}
    return outputs, case.gradients(y.square().mean(), {"x": x, **_parameters(mixer)})


def mamba2(case: Case) -> Answer:
    mixer = Mamba2(
        case.config["d_model"],
        **_options(case, Mamba2),
        conv_bias=case.has_param(r"conv1d\.bias"),
        bias=case.has_param(r"in_proj\.bias"),
        norm=case.has_param(r"norm\.weight"),
    )
    y, u, state = _block(case, mixer, "u")
    outputs = {"y": y, "final_state": state.ssm}
    return outputs, case.gradients(y.square().mean(), {"u": u, **_parameters(mixer)})


def _same_as_token_mixer(case: Case, mixer: Mamba, y: Tensor) -> None:
    """The token mixer of MambaMixer in one direction takes the same weights and gives the same bits."""
    twin = SelectiveTokenMixer(
        mixer.dim,
        causal=True,
        **_options(case, SelectiveTokenMixer),
        conv_bias=mixer.conv1d.bias is not None,
        bias=mixer.in_proj.bias is not None,
    )
    load_official(twin, case.params)
    assert torch.equal(twin(case.inputs["x"]), y)


def _options(case: Case, cls: type[Mixer]) -> dict[str, Any]:
    """The official configuration under our names; biases and norm are read from the parameters."""
    ours = {"headdim": "head_dim", "ngroups": "num_groups"}
    given = {ours.get(name, name): value for name, value in case.config.items()}
    legal = set(inspect.signature(cls).parameters) - {"dim", "bias", "conv_bias", "norm"}
    return {name: value for name, value in given.items() if name in legal}


def _block(case: Case, mixer: Mixer, name: str) -> tuple[Tensor, Tensor, object]:
    """Output of the whole sequence, its input, and the state after stepping through it."""
    load_official(mixer, case.params)
    x = case.inputs[name].requires_grad_()
    state = mixer.init_state(x.shape[0])
    with torch.no_grad():
        for t in range(x.shape[1]):
            _, state = mixer.step(x[:, t], state)
    return mixer(x), x, state


def _parameters(mixer: nn.Module) -> dict[str, Tensor]:
    """Parameters by official name, which is ours too."""
    assert all(re.fullmatch(r"[\w.]+", name) for name, _ in mixer.named_parameters())
    return dict(mixer.named_parameters())
