"""Checkpoints: what is written comes back, and what is not ours is refused."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

import foveate
from foveate.checkpoint import save
from foveate.mixers import Mixer, MixerSpec
from foveate.models import resolve
from foveate.tasks.forecast.task import ForecastTask


@pytest.fixture(scope="module")
def task():
    return ForecastTask.prepare(horizon=6, lookback=24)


@pytest.fixture
def trained(task, tmp_path):
    torch.manual_seed(0)
    model = task.package(resolve("dlinear").build(task.info, {}))
    folder = tmp_path / "best"
    save(
        folder,
        model,
        {"task": "forecast", "system": "dlinear", "options": {}, "package": task.package(torch.nn.Identity()).config},
    )
    return folder, model


def test_a_model_comes_back(trained, task):
    folder, model = trained
    again = foveate.load(folder)
    assert isinstance(again, torch.nn.Module)
    assert not again.training
    x = torch.randn(2, 24, task.info.channels)
    torch.testing.assert_close(again(x), model.eval()(x), rtol=0, atol=0)


def test_ones_own_class_must_be_given(task, tmp_path):
    class Skip(Mixer):
        spec = MixerSpec()

        def __init__(self, dim, *, causal=False):
            super().__init__(dim, causal=causal)

        def forward(self, x, *, mask=None, context=None, layout=None):
            return x

    contestant = foveate.models.Contestant("mine:Skip", "custom", Skip)
    model = task.package(contestant.build(task.info, {"dim": 8}))
    config = {
        "task": "forecast",
        "system": "mine:Skip",
        "options": {"dim": 8},
        "package": task.package(torch.nn.Identity()).config,
    }
    save(tmp_path, model, config)
    with pytest.raises(ValueError, match="was trained from your own class mine:Skip: pass it as"):
        foveate.load(tmp_path)
    x = torch.randn(1, 24, task.info.channels)
    torch.testing.assert_close(foveate.load(tmp_path, system=Skip)(x), model.eval()(x), rtol=0, atol=0)


def _drop(tensors):
    tensors.pop(sorted(tensors)[0])


def _add(tensors):
    tensors["surprise"] = torch.zeros(1)


def _reshape(tensors):
    name = sorted(k for k in tensors if tensors[k].ndim == 2)[0]
    tensors[name] = tensors[name][:, :-1]


@pytest.mark.parametrize(
    ("damage", "message"), [(_drop, "it lacks"), (_add, "it has unknown surprise"), (_reshape, "in the wrong shape")]
)
def test_wrong_tensors_are_named(trained, damage, message):
    folder, _ = trained
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        foveate.load(folder)


def test_pickles_are_never_opened(trained, tmp_path):
    folder, _ = trained

    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was opened",))

    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="is not a safetensors file"):
        foveate.load(folder)
    other = tmp_path / "weights.pt"
    other.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="is a pickle, which can run code when opened"):
        foveate.load(other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not readable as JSON"),
        ("[]", "was not written by foveate"),
        ('{"format": 1}', "was not written by foveate: it lacks system, options"),
        ('{"format": 1, "system": "a", "options": {}, "task": "b"}', "was not written by foveate: it lacks package"),
        (None, "it has no config.json"),
    ],
)
def test_damaged_configurations_are_refused(trained, content, message):
    folder, _ = trained
    file = folder / "config.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(ValueError, match=message):
        foveate.load(folder)


def test_other_formats_and_missing_weights_are_refused(trained):
    folder, _ = trained
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format": 99}))
    with pytest.raises(ValueError, match="has format 99"):
        foveate.load(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="is missing: the checkpoint is incomplete"):
        foveate.load(folder)
