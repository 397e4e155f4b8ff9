"""Weights from elsewhere: files, folders, layouts, classes, and what is refused; nothing of it asks a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import foveate
from foveate.errors import InvalidType, InvalidValue, UnknownName
from foveate.models.vision.swin import Swin
from foveate.registry import entries, find

RECORDED = Path(__file__).parents[1] / "peers" / "swin.safetensors"
OPTIONS = {"size": 32, "embed_dim": 4, "depths": (2, 2), "num_heads": (1, 2), "window": 4, "patch_size": 2}


def create(**options: Any) -> torch.nn.Module:
    return foveate.create("swin", "model", **{**OPTIONS, **options})


def recorded(case: str) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """A peer's weights, an image and its logits."""
    found = load_file(RECORDED)
    start = f"{case}/param/"
    weights = {key.removeprefix(start): value for key, value in found.items() if key.startswith(start)}
    return weights, found[f"{case}/x"], found[f"{case}/y"]


@pytest.fixture
def file(tmp_path) -> Path:
    """A file of timm's weights."""
    save_file(recorded("timm-plain")[0], tmp_path / "timm.safetensors")
    return tmp_path / "timm.safetensors"


@pytest.mark.parametrize("case", ["timm-plain", "transformers-plain"])
@pytest.mark.parametrize("as_folder", [False, True])
def test_a_file_or_folder_in_a_layout_that_is_told_by_its_names(case, as_folder, tmp_path):
    weights, x, y = recorded(case)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "swin"}')  # somebody else's
    model = create(pretrained=tmp_path if as_folder else str(tmp_path / "model.safetensors"))
    assert not model.training
    assert model.num_classes == 3
    with torch.no_grad():
        torch.testing.assert_close(model(x), y, rtol=1e-5, atol=1e-5)
    assert create(pretrained=tmp_path, source=case.split("-")[0]).num_classes == 3


def test_weights_in_pieces(tmp_path):
    weights, x, y = recorded("timm-plain")
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, of in parts.items():
        save_file({name: weights[name] for name in of}, tmp_path / part)
    index = {"weight_map": {name: part for part, of in parts.items() for name in of}}
    with pytest.raises(InvalidValue, match=r"holds several files of weights \(a.safetensors, b.safetensors\)"):
        create(pretrained=tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with torch.no_grad():
        torch.testing.assert_close(create(pretrained=tmp_path)(x), y, rtol=1e-5, atol=1e-5)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(InvalidValue, match="is not an index of weights"):
        create(pretrained=tmp_path)


def test_other_classes_get_a_fresh_classifier(file):
    whole, other = create(pretrained=file), create(pretrained=file, num_classes=7)
    x = recorded("timm-plain")[1]
    assert other(x).shape == (1, 7)
    assert other.num_classes == 7
    torch.testing.assert_close(other.forward_features(x), whole.forward_features(x))
    assert create(pretrained=file, num_classes=3)(x).equal(whole(x))
    assert create(pretrained=file, num_classes=None)(x).equal(whole(x))
    none = create(pretrained=file, num_classes=0)
    torch.testing.assert_close(none(x), whole.forward_head(whole.forward_features(x), pre_logits=True))


def test_weights_without_a_classifier(file, tmp_path):
    weights = {k: v for k, v in load_file(file).items() if not k.startswith("head.")}
    save_file(weights, tmp_path / "headless.safetensors")
    assert create(pretrained=tmp_path / "headless.safetensors").num_classes == 0
    assert create(pretrained=tmp_path / "headless.safetensors", num_classes=5).num_classes == 5


def test_a_folder_of_our_own(file, tmp_path):
    model, x = create(pretrained=file), recorded("timm-plain")[1]
    model.save_pretrained(tmp_path / "ours")
    again = foveate.create("swin", "model", pretrained=tmp_path / "ours")  # with the options on record
    assert again(x).equal(model(x))
    assert foveate.load(tmp_path / "ours")(x).equal(model(x))
    save_file(model.state_dict(), tmp_path / "bare.safetensors")  # our names, and no configuration
    assert create(pretrained=tmp_path / "bare.safetensors")(x).equal(model(x))
    with pytest.raises(InvalidType, match=r"ours holds 'swin', not a ConvNeXt: open it as that"):
        foveate.create("convnext", pretrained=tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    (tmp_path / "ours" / "config.json").write_text(json.dumps({**config, "task": "classify-images", "package": {}}))
    with pytest.raises(InvalidType, match=r"a model packed for the task 'classify-images': open it with foveate.load"):
        create(pretrained=tmp_path / "ours")


def test_by_the_name_of_a_size_and_from_the_hub(file, tmp_path, monkeypatch):
    from foveate.hub import weights

    model = Swin(num_classes=2, **{**OPTIONS, "size": 32})
    model.save_pretrained(tmp_path / "repo")
    asked = []

    def fetched(where: str) -> Path:
        asked.append(where)
        return tmp_path / "repo"

    monkeypatch.setattr(weights, "local_folder", fetched)
    monkeypatch.chdir(tmp_path)
    assert create(pretrained="somebody/swin").num_classes == 2
    assert create(pretrained="hub:somebody/swin").num_classes == 2
    assert asked == ["hub:somebody/swin"] * 2
    (tmp_path / "repo" / "config.json").unlink()
    with pytest.raises(InvalidValue, match="does not hold the weights of 'swin_tiny'"):
        foveate.create("swin_tiny", pretrained=tmp_path / "repo")


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({}, {"source": "mmseg"}, UnknownName, "unknown source 'mmseg': known: foveate, official, timm, transformers"),
        ({}, {"source": "transformers"}, InvalidValue, "its names are not those of transformers; nearest is transf"),
        ({}, {"in_chans": 1}, InvalidValue, "in_chans=1 is not possible with .*: its weights read 3 channels; leave"),
        ({}, {"embed_dim": 8}, InvalidValue, r"holds the weights of another size than 'swin': head.weight \(3, 8\)"),
        ({}, {"depths": (2, 4)}, InvalidValue, "are not those of foveate or official or timm or transformers; nearest"),
        ({"extra.weight": torch.ones(1)}, {}, InvalidValue, "nearest is timm: missing nothing; left over extra.weight"),
        ({}, {"colour": 1}, InvalidType, "'swin' has no option 'colour'"),
    ],
)
def test_what_does_not_fit_is_named(change, options, error, message, file):
    save_file({**load_file(file), **change}, file)
    with pytest.raises(error, match=message):
        create(pretrained=file, **options)


def test_what_is_no_file_of_weights_is_refused(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({}, tmp_path / "weights.pth")
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    (tmp_path / "empty").mkdir()
    (tmp_path / "old").mkdir()
    shutil.copy(tmp_path / "weights.pth", tmp_path / "old" / "pytorch_model.bin")
    for where, message in (
        ("weights.pth", "weights.pth is a pickle, which can run code when opened: only safetensors are read"),
        ("damaged.safetensors", "is not a safetensors file"),
        ("empty", "model.safetensors is missing"),
        ("old", "holds its weights as pytorch_model.bin, a pickle"),
        ("no/such/file.safetensors", "is no folder here, and no repo's id"),
        (Path("no/such/file.safetensors"), "does not exist: give a safetensors file"),
    ):
        with pytest.raises(InvalidValue, match=message):
            create(pretrained=where)


def test_only_models_take_weights():
    with pytest.raises(InvalidType, match="'softmax_attention' has no option 'pretrained'"):
        foveate.create("softmax_attention", "mixer", dim=8, pretrained="x")


CLASSIFIERS = [e.name for e in entries("model") if e.spec.reads == "image" and "classify-images" in e.spec.tasks]


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if hasattr(find(name, "model").load(), "small")])
def test_converting_leaves_alone_what_is_not_known(name):
    """Layouts are tried one after the other, so that no conversion may stumble over another's names."""
    info = SimpleNamespace(task="classify-images", size=(32, 32), channels=3, classes=4)
    with torch.device("meta"):
        model = find(name, "model").load().for_task(info)
    for source in model.official_keys:
        if hasattr(model, "convert_official"):
            assert "some.foreign.weight" in model.convert_official({"some.foreign.weight": torch.ones(2)}, source)
