"""PatchTST against both releases and transformers' port: values recorded by ``record_patchtst.py``."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from foveate.models.official import load_official
from foveate.models.series.patchtst import PatchTST

from .record_patchtst import CLASSES, FILE, HORIZON, LIBRARY_TASKS

with safe_open(FILE, "pt") as file:
    SIZES = json.loads(file.metadata()["sizes"])
    RECORDED = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dictionary)


def case(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs and outputs of a case, and its parameters under the peer's names."""
    own = {key.removeprefix(f"{name}/"): value for key, value in RECORDED.items() if key.startswith(f"{name}/")}
    parameters = {key.removeprefix("param/"): value for key, value in own.items() if key.startswith("param/")}
    return {key: value for key, value in own.items() if not key.startswith("param/")}, parameters


@pytest.mark.parametrize("affine", [False, True])
def test_the_authors_release(affine: bool) -> None:
    given, parameters = case("authors-affine" if affine else "authors")
    model = PatchTST(task="forecast", pred_len=HORIZON, affine=affine, **SIZES).eval()
    load_official(model, parameters, "PatchTST")
    torch.testing.assert_close(model(given["x"]), given["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("task", LIBRARY_TASKS)
def test_the_library(task: str) -> None:
    given, parameters = case(f"library-{task}")
    needed = {"forecast": {"pred_len": HORIZON}, "classify-series": {"num_class": CLASSES}}.get(task, {})
    model = PatchTST(task=task, release="Time-Series-Library", **needed, **SIZES).eval()
    load_official(model, parameters, "Time-Series-Library")
    torch.testing.assert_close(model(given["x"], mask=given.get("mask")), given["y"], rtol=1e-5, atol=1e-5)


#: transformers' parameters to ours; its head reads tokens patch by patch, ours channel by channel.
PORT = {
    "model.encoder.embedder.input_embedding": "embedding.value",
    "model.encoder.positional_encoder.position_enc": "embedding.positions",
    "model.encoder.layers.0": "layers.0",
    "model.encoder.layers.1": "layers.1",
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.out_proj": "out",
    "norm_sublayer1.batchnorm": "attention_norm",
    "norm_sublayer3.batchnorm": "feed_norm",
    "ff.0": "up",
    "ff.3": "down",
    "head.projection": "head",
}


def test_transformers_port_behind_the_normalisation() -> None:
    """Its windows are not padded and its scores not handed on, so it is compared on padded windows without either."""
    given, parameters = case("transformers")
    sizes = {**SIZES, "seq_len": given["x"].shape[1]}
    model = PatchTST(task="forecast", pred_len=HORIZON, residual=False, **sizes).eval()
    own = {}
    for key, value in parameters.items():
        for theirs, ours in PORT.items():
            key = key.replace(theirs, ours)
        if key == "head.weight":
            value = value.unflatten(1, model.embedding.positions.shape).transpose(1, 2).flatten(1)
        own[key] = value
    model.load_state_dict(own)
    y = model.head(model.features(given["x"]).flatten(2)).transpose(1, 2)
    torch.testing.assert_close(y, given["y"], rtol=1e-5, atol=1e-5)
