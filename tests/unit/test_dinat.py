"""transformers' DiNAT runs on our neighborhood attention."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate.control import enable_dinat
from foveate.ops.neighborhood_attention import neighborhood_mask

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture
def model() -> Any:
    enable_dinat()
    config = transformers.DinatConfig(
        embed_dim=16, depths=[2, 2], num_heads=[2, 4], dilations=[[1, 2], [1, 1]], kernel_size=3, drop_path_rate=0.0
    )
    torch.manual_seed(0)
    made = transformers.DinatForImageClassification(config).eval()
    for parameter in made.parameters():  # biases by position begin at zero, and would go unnoticed
        torch.nn.init.normal_(parameter, std=0.1)
    return made


def dense(attention: Any, x: Tensor) -> Tensor:
    """The layer as dense attention under the mask, written out."""
    height, width = x.shape[1:3]
    heads, window, dilation = attention.num_attention_heads, attention.kernel_size, attention.dilation
    q, k, v = (m(x).flatten(1, 2).unflatten(-1, (heads, -1)) for m in (attention.query, attention.key, attention.value))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    for query in range(height * width):
        for key in range(height * width):
            down, right = (key // width - query // width), (key % width - query % width)
            down, right = down // dilation + window - 1, right // dilation + window - 1
            if 0 <= down <= 2 * window - 2 and 0 <= right <= 2 * window - 2:
                scores[:, :, query, key] += attention.rpb[:, down, right]
    mask = neighborhood_mask((height, width), window, dilation=dilation)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(-2).unflatten(1, (height, width))


@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_is_dense_attention_under_the_mask(model: Any, layer: int):
    attention = model.dinat.encoder.levels[0].layers[layer].attention.self
    assert attention.dilation == layer + 1
    x = torch.randn(2, 7, 6, 16)  # not square: rows and columns must not be exchanged
    expected = dense(attention, x)
    torch.testing.assert_close(attention(x)[0], expected)
    out, weights = attention(x, output_attentions=True)
    torch.testing.assert_close(out, expected)
    assert weights.shape == (2, 2, 7, 6, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 7, 6))


def test_images_are_classified_and_trained(model: Any):
    pixels = torch.randn(2, 3, 40, 56)
    plain = model(pixels).logits
    shown = model(pixels, output_attentions=True)
    torch.testing.assert_close(shown.logits, plain)
    assert len(shown.attentions) == 2
    plain.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_dropout_on_the_weights_is_drawn(model: Any):
    attention = model.dinat.encoder.levels[0].layers[0].attention.self
    attention.dropout.p = 0.5
    attention.train()
    x = torch.randn(1, 4, 4, 16)
    assert not torch.equal(attention(x)[0], attention(x)[0])


WITH_NEW_NATTEN = """
import sys, types, importlib.machinery
for name in ("natten", "natten.functional"):  # a version without the old functions
    sys.modules[name] = module = types.ModuleType(name)
    module.__spec__, module.__path__, module.__version__ = importlib.machinery.ModuleSpec(name, None), [], "0.21.0"
from foveate.control import enable_dinat
enable_dinat()
enable_dinat()
import transformers
config = transformers.DinatConfig(embed_dim=8, depths=[1], num_heads=[2], dilations=[[1]], kernel_size=3)
import torch
print(tuple(transformers.DinatModel(config)(torch.randn(1, 3, 32, 32)).last_hidden_state.shape))
"""


def test_a_natten_without_the_functions_is_no_obstacle():
    done = subprocess.run([sys.executable, "-c", WITH_NEW_NATTEN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2].startswith("(1, 8, 8, 8)")
