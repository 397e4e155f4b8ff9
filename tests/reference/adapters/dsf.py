"""The layers of IntelligentControlSystems/dsf-mqar: attention (softmax, linear, normalised), quasi-LSTM, S6, Mamba."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Answer, Case
from torch import Tensor

from foveate.mixers import Mixer
from foveate.mixers.dsf.normalized_attention import DSFLinearAttention, NormalizedAttention
from foveate.mixers.dsf.quasi_lstm import QuasiLSTM
from foveate.mixers.dsf.s6 import S6, ScalarS6
from foveate.mixers.mamba import Mamba
from foveate.mixers.softmax_attention import SoftmaxAttention
from foveate.models.official import load_official

TOLERANCE = 1e-5

#: Keys that say how weights start, where they lie, or what happens in training: a loaded layer in eval mode has none.
_NO_EFFECT = {"layer_idx", "dropout", "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path"}
_NO_EFFECT |= {"device", "dtype"}


class Config:
    """An official configuration of which every key must be read."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values, self.read = values, set(_NO_EFFECT)

    def take(self, key: str, default: Any) -> Any:
        """The value, or the official default."""
        self.read.add(key)
        return self.values.get(key, default)

    def finish(self) -> None:
        """Refuse keys that nobody read."""
        left = sorted(set(self.values) - self.read)
        assert not left, f"the adapter does not know these keys of the configuration: {', '.join(left)}"


def build(case: Case) -> Mixer:
    """The layer of this case, with random weights."""
    config, name = Config(case.config), case.official_class.rsplit(".", 1)[-1]
    builders = {"MHA": attention, "MHNA": normalized, "qLSTM": quasi_lstm, "S6": s6, "S6_2": scalar_s6, "Mamba": mamba}
    if name not in builders:
        pytest.skip(f"{case.official_class} is not built")
    mixer = builders[name](config.take("d_model", 256), config)
    config.finish()
    return mixer


def attention(dim: int, config: Config) -> Mixer:
    options = {"num_heads": config.take("num_heads", 1), "qk_dim": config.take("d_qk", None), "causal": True}
    options["bias"] = config.take("bias", True)
    if config.take("lin_att", True):
        return DSFLinearAttention(dim, **options)
    return SoftmaxAttention(dim, **options, out_bias=True)


def normalized(dim: int, config: Config) -> Mixer:
    config.take("lin_att", True)  # of its signature, never read
    heads, width = config.take("num_heads", 1), config.take("d_qk", None)
    return NormalizedAttention(dim, num_heads=heads, qk_dim=width, bias=config.take("bias", True))


def quasi_lstm(dim: int, config: Config) -> Mixer:
    config.take("d_qk", 100)  # of its signature, never read
    return QuasiLSTM(
        dim,
        expansion=config.take("expansion_factor", 2),
        kernel=config.take("kernel_size", 4),
        reversed=config.take("reversed", True),
    )


def s6(dim: int, config: Config) -> Mixer:
    assert config.take("expand", 1) == 1, "the scan of S6 reads the token itself: expand must be 1"
    options = {"d_state": config.take("d_state", 16), "dt_rank": config.take("dt_rank", "auto")}
    return S6(dim, **options, bias=config.take("bias", False))


def scalar_s6(dim: int, config: Config) -> Mixer:
    assert config.take("expand", 1) == 1, "the step sizes of S6_2 are repeated d_model times: expand must be 1"
    config.take("dt_rank", "auto")  # of its signature; it is 1 whatever is given
    return ScalarS6(dim, d_state=config.take("d_state", 16), bias=config.take("bias", False))


def mamba(dim: int, config: Config) -> Mixer:
    options = {key: config.take(key, value) for key, value in (("d_state", 16), ("d_conv", 4), ("expand", 1))}
    options |= {"dt_rank": config.take("dt_rank", "auto"), "bias": config.take("bias", False)}
    return Mamba(dim, **options, conv_bias=config.take("conv_bias", True))


def run(case: Case) -> Answer:
    mixer = build(case).eval()
    load_official(mixer, case.params, "state-spaces/mamba" if isinstance(mixer, Mamba) else "dsf-mqar")
    x = case.inputs["x"].requires_grad_()
    y = mixer(x)
    grads = torch.autograd.grad(y.square().mean(), [x, *mixer.parameters()])
    found = dict(zip(["x", *(name for name, _ in mixer.named_parameters())], grads, strict=True))
    return {"y": y}, {name: official(name, found) for name in case.grads}


def official(name: str, found: dict[str, Tensor]) -> Tensor:
    """A gradient by its official name; queries and keys have one projection there."""
    module, _, kind = name.rpartition(".")
    if module == "Wqk" and f"q_proj.{kind}" in found:
        return torch.cat([found[f"q_proj.{kind}"], found[f"k_proj.{kind}"]])
    ours = {"Wqk": f"qk_proj.{kind}", "Wv": f"v_proj.{kind}", "Wn": f"n_proj.{kind}"}.get(module, name)
    return found["dt_bias" if name == "dt_proj.bias" and name not in found else ours]
