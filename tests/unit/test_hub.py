"""Saving, loading and pushing: the same bits back, one folder for all models, a hub over HTTP, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import nn

import foveate
from foveate import hub
from foveate.cli.export import export
from foveate.cli.main import main
from foveate.compare import Settings, run
from foveate.compare.record import base_name
from foveate.errors import FoveateError, InvalidType, InvalidValue, UnknownName
from foveate.mixers import Mixer, MixerSpec
from foveate.models.base import Model
from foveate.models.mixer_net import MixerNet
from foveate.models.series.dlinear import DLinear
from foveate.models.series.patchtst import PatchTST
from foveate.spec import ModelSpec
from foveate.tasks.forecast.package import Forecaster
from foveate.tasks.forecast.task import ForecastTask
from foveate.tasks.impute.package import Imputer
from foveate.tasks.packaged import Packaged
from tests.fake_hub import commit_id, running


class Halves(Mixer):
    """A mixer of one's own."""

    spec = MixerSpec()

    def __init__(self, dim: int, *, causal: bool = False, share: float = 0.5) -> None:
        super().__init__(dim, causal=causal)
        self.share = nn.Parameter(torch.tensor(share))

    def forward(self, x, *, mask=None, context=None, layout=None):
        return x * self.share


class Backboned(Model):
    """A model of one's own around a module that the caller hands in."""

    spec = ModelSpec(reads="series", tasks=())

    def __init__(self, backbone: nn.Module, *, gain: float = 1.0, sizes: tuple[int, ...] = (1, 2), kind: Any = None):
        super().__init__()
        self.backbone, self.gain, self.sizes = backbone, gain, sizes

    def forward(self, x):
        return self.backbone(x) * self.gain


def dlinear(**options: Any) -> DLinear:
    torch.manual_seed(0)
    return DLinear(**{"seq_len": 24, "pred_len": 6, "enc_in": 2, **options}).eval()


def mixer_net(mixer: Any = "mamba", **options: Any) -> MixerNet:
    torch.manual_seed(0)
    return MixerNet(mixer, size=24, outputs=6, channels=2, dim=8, depth=1, patch=4, num_heads=2, **options).eval()


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``best/`` of a real comparison."""
    folder = tmp_path_factory.mktemp("compared")
    given = {"systems": ["dlinear"], "steps": 30, "learning_rates": (1e-2,), "workers": 1, "seeds": 2}
    data = {"horizon": 6, "lookback": 24}
    run(Settings(task="forecast", data=data, out=str(folder), **given))
    return folder / "best"


@pytest.fixture
def copied(best: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "best"
    folder.mkdir()
    for file in best.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with running(monkeypatch, tmp_path / "cache") as server:
        yield server


X = torch.randn(3, 24, 2, generator=torch.Generator().manual_seed(1))


def same(one: nn.Module, other: nn.Module, x: torch.Tensor = X) -> bool:
    """Whether two models give the same bits; those of the comparison have six channels."""
    x = x.repeat(1, 1, 3) if isinstance(one, Forecaster) else x
    return torch.equal(one(x), other(x))


# ----- folders


def test_a_model_comes_back_by_its_class_by_the_base_class_and_by_load(tmp_path):
    model = dlinear(individual=True)
    model.save_pretrained(tmp_path)
    for again in (DLinear.from_pretrained(tmp_path), Model.from_pretrained(str(tmp_path)), foveate.load(tmp_path)):
        assert type(again) is DLinear
        assert same(again, model)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["kind"], config["system"], config["options"]["individual"]) == ("model", "dlinear", True)


def test_a_mixer_of_ones_own_is_handed_in_again(tmp_path):
    model = mixer_net(Halves, mixer_options={"share": 0.25})
    model.save_pretrained(tmp_path)
    assert same(MixerNet.from_pretrained(tmp_path, mixer=Halves), model)
    assert same(foveate.load(tmp_path, system=Halves), model)
    with pytest.raises(InvalidType, match=r"needs mixer=\.\.\.: it was handed in when the model was made"):
        foveate.load(tmp_path)


def test_a_module_is_handed_in_again_and_a_class_of_ones_own_must_be_named(tmp_path):
    torch.manual_seed(0)
    model = Backboned(nn.Linear(2, 2), gain=3.0)
    model.save_pretrained(tmp_path)
    again = Backboned.from_pretrained(tmp_path, backbone=nn.Linear(2, 2))
    assert same(again, model)
    for opened in (Backboned.from_pretrained, lambda folder: foveate.load(folder, system=Backboned)):
        with pytest.raises(
            InvalidType, match=r"needs backbone=\.\.\.: .* call Backboned.from_pretrained\(\.\.\., backbone="
        ):
            opened(tmp_path)
    with pytest.raises(
        InvalidValue, match=r"was saved from your own class .*:Backboned: pass it as load\(\.\.\., system"
    ):
        foveate.load(tmp_path)
    with pytest.raises(InvalidValue, match="your own class"):
        Model.from_pretrained(tmp_path)


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    for value, kind in ((torch.float32, "dtype"), ({1: 2}, "dict"), ([torch.zeros(1)], "Tensor"), (1j, "complex")):
        model = Backboned(nn.Linear(2, 2), kind=value)
        with pytest.raises(InvalidType, match=f"Backboned cannot be saved: its option kind holds a {kind}, which"):
            model.save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_options_are_those_of_the_call_whatever_happens_to_them_later(tmp_path):
    options = {"share": 0.25}
    model = mixer_net(Halves, mixer_options=options)
    options["share"] = 0.75
    assert model._record()["options"]["mixer_options"] == {"share": 0.25}
    assert "mixer" not in model._record()["options"]
    assert Backboned(nn.Linear(2, 2))._record()["options"] == {"gain": 1.0, "sizes": [1, 2], "kind": None}


def test_dtypes_and_tied_weights_come_back(tmp_path):
    model = dlinear().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    again = foveate.load(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert same(again, model, X.to(torch.bfloat16))

    class Tied(Model):
        spec = ModelSpec(reads="series", tasks=())

        def __init__(self) -> None:
            super().__init__()
            self.one = self.two = nn.Linear(2, 2)

    Tied().save_pretrained(tmp_path / "tied")
    tied = Tied.from_pretrained(tmp_path / "tied")
    assert tied.one.weight is tied.two.weight
    assert set(load_file(tmp_path / "tied" / "model.safetensors")) == {
        "one.weight",
        "one.bias",
        "two.weight",
        "two.bias",
    }


def test_another_class_than_the_one_on_record_is_refused(tmp_path, best):
    dlinear().save_pretrained(tmp_path)
    with pytest.raises(InvalidType, match="holds 'dlinear', a DLinear, not a PatchTST: open it as that"):
        PatchTST.from_pretrained(tmp_path)
    with pytest.raises(InvalidType, match="holds a bare 'dlinear', not a Forecaster"):
        Forecaster.from_pretrained(tmp_path)
    with pytest.raises(InvalidType, match="holds a Forecaster, not a Imputer"):
        Imputer.from_pretrained(best)
    with pytest.raises(InvalidType, match="packed for the task 'forecast', not a bare DLinear: open it with foveate"):
        DLinear.from_pretrained(best)


def test_a_subclass_may_open_what_its_base_saved(tmp_path):
    class Longer(DLinear):
        pass

    model = dlinear()
    model.save_pretrained(tmp_path)
    assert type(Longer.from_pretrained(tmp_path)) is Longer


def test_a_configuration_names_no_code(tmp_path):
    dlinear().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    for system in ("os:system", "tests.toy:MLP"):
        file.write_text(json.dumps({**config, "system": system}))
        with pytest.raises(UnknownName, match="unknown model"):
            foveate.load(tmp_path)
    file.write_text(json.dumps({**config, "kind": "mixer", "system": "os:system", "options": {}}))
    with pytest.raises(InvalidType, match="needs mixer"):
        foveate.load(tmp_path)
    file.write_text(json.dumps({**config, "options": {**config["options"], "surprise": 1}}))
    with pytest.raises(InvalidType, match="'dlinear' has no option 'surprise'"):
        foveate.load(tmp_path)
    file.write_text(json.dumps({**config, "options": ["seq_len"]}))
    with pytest.raises(InvalidValue, match="is damaged: options must be of type dict"):
        foveate.load(tmp_path)


def test_pickles_are_named_and_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was opened",))

    dlinear().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    for opened in (foveate.load, DLinear.from_pretrained):
        with pytest.raises(InvalidValue, match=r"holds its weights as pytorch_model.bin, a pickle, which can run code"):
            opened(tmp_path)


def test_weights_of_another_kind_are_refused(tmp_path):
    dlinear().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = min(tensors)
    save_file({**tensors, name: tensors[name].long()}, file)
    with pytest.raises(InvalidValue, match=f"it has, in the wrong type, {re.escape(name)}"):
        foveate.load(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidValue, match="cannot be written"):
        dlinear().save_pretrained(tmp_path / "file" / "x")
    with pytest.raises(InvalidValue, match="config= is not possible"):
        dlinear().save_pretrained(tmp_path, config={})  # type: ignore[arg-type]
    with pytest.raises(InvalidType, match="a model card has no option 'language': its options are license, repo"):
        dlinear().save_pretrained(tmp_path, model_card_kwargs={"language": "en"})


def test_a_missing_folder_is_never_looked_for_on_the_hub(tmp_path, fake, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("OUT/best", "me/model", "best"):
        with pytest.raises(InvalidValue, match=r"is not a trained model: it has no config.json; give a folder such as"):
            foveate.load(name)
    with pytest.raises(InvalidValue, match="revision='v1' is not possible for me/model: a folder has none"):
        foveate.load("me/model", revision="v1")
    for name in ("./best", "a/b/c", "/nowhere/best"):
        with pytest.raises(InvalidValue, match="is no folder here, and no repo's id"):
            DLinear.from_pretrained(name)
    assert fake.asked == []


# ----- model cards


def test_the_card_of_a_comparison_tells_what_the_numbers_mean(best):
    text = (best / "README.md").read_text()
    card = ModelCard.load(best / "README.md")
    board = json.loads((best.parent / "leaderboard.json").read_text())
    assert card.data.pipeline_tag == "time-series-forecasting"
    assert {"foveate", "dlinear", "forecast", "arxiv:2205.13504"} <= set(card.data.tags)
    assert card.data.eval_results is None  # these weights were never scored
    assert "license" not in card.data.to_dict()
    rows = {row["system"]: row for row in board["rows"]}
    assert rows.keys() == {"dlinear", "seasonal_naive"}
    for name in rows:
        assert f"{rows[name]['test']['mse']['mean']:.4g}" in re.search(rf"^.*`{name}`.*$", text, re.MULTILINE)[0]
    assert f"{rows['dlinear']['val']['mse']['mean']:.4g} ± {rows['dlinear']['val']['mse']['std']:.2g}" in text
    for part in (
        "the weights here were trained anew on all data, and have no score",
        "MSE and MAE are of standardised values",
        board["data"]["sha256"],
        f"steps of the refit on all data: {board['best']['refit_steps']}",
        "`temperature`, `dew_point`, `humidity`",
        "`x`: float `(batch, 24, 6)`, the last 24 rows, one every `h`, in the units of the training data",
        "Official code of dlinear (https://github.com/cure-lab/LTSF-Linear): Apache-2.0.",
        "@inproceedings{zeng2023transformers,",
        board["machine"]["cpu"],
        f"torch {torch.__version__}",
    ):
        assert part in text, part
    assert not re.search(r"not recorded|None|nan\b", text)


def test_three_lines_of_the_card_work(best, monkeypatch):
    source = re.search(r"```python\n(.*?)```", (best / "README.md").read_text(), re.DOTALL)[1]
    names: dict[str, Any] = {}
    exec(source.replace(json.dumps("path/to/this/folder"), repr(str(best))), names)
    assert f"# {tuple(names['y'].shape)}" in source


def test_scored_weights_carry_their_scores_as_metadata(best):
    config = json.loads((best / "config.json").read_text())
    card = ModelCard(hub.render({**config, "refit": False}))
    found = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert found == config["test"]
    assert card.data.eval_results[0].dataset_name == config["comparison"]["data"]["name"]
    assert ModelCard(hub.render(config, licence="mit")).data.license == "mit"


def test_a_bare_model_says_what_is_known_and_no_more(tmp_path):
    mixer_net().save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert heads == ["Use", "Inputs and outputs", "Limits", "Licences", "Citation", "Made with"]
    assert "Reads a float tensor `(batch, time, channels)`." in text
    Backboned(nn.Linear(2, 2)).save_pretrained(tmp_path / "own")
    text = (tmp_path / "own" / "README.md").read_text()
    assert f"from {__name__} import Backboned  # the author's own code" in text
    assert 'model = Backboned.from_pretrained("path/to/this/folder", backbone=backbone)' in text
    assert "Citation" not in text
    mixer_net(Halves).save_pretrained(tmp_path / "mixer")
    text = (tmp_path / "mixer" / "README.md").read_text()
    assert 'model = foveate.load("path/to/this/folder", system=Halves)' in text


def test_names_from_the_users_file_cannot_write_into_the_card(best):
    config = json.loads((best / "config.json").read_text())
    evil = "a`|\n# no <script>alert(1)</script>\u202e ---"
    config["comparison"]["data"] |= {"name": evil, "columns": [evil]}
    config["comparison"]["rows"][0]["system"] = evil
    text = hub.render(config)
    assert "\u202e" not in text
    assert "\n# no" not in text
    spans = re.sub(r"`[^`\n]*`", "", text)
    assert not re.search(r"(?<!\\)<script", spans)
    for line in re.search(r"## Among others\n\n(.*?)\n\n", text, re.DOTALL)[1].splitlines():
        assert line.count("|") == 7, line
    for path in ("/home/me/secret/prices.csv", r"C:\Users\me\secret\prices.csv", "prices.csv"):
        assert base_name(path) == "prices.csv"


def test_the_same_folder_has_the_same_card(best):
    config = json.loads((best / "config.json").read_text())
    assert hub.render(config) == (best / "README.md").read_text()


def test_a_readme_of_ones_own_stays(tmp_path):
    model, card = dlinear(), tmp_path / "README.md"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path)
        (tmp_path / "README.md").write_text(card.read_text())
        model.save_pretrained(tmp_path, model_card_kwargs={"license": "mit"})  # an untouched card of ours is replaced
    assert "license: mit" in card.read_text()
    for own in (card.read_text() + "\nMine.\n", card.read_text().replace("dlinear", "my model"), "# Mine\n"):
        card.write_text(own)
        with pytest.warns(UserWarning, match=r"README.md is your own and stays as it is: no model card was written"):
            model.save_pretrained(tmp_path)
        assert card.read_text() == own


# ----- what a comparison made


def test_a_packaged_model_is_saved_again_with_its_card(best, tmp_path):
    model = foveate.load(best)
    assert isinstance(model, Forecaster)
    model.save_pretrained(tmp_path)
    for name in ("model.safetensors", "README.md", "config.json"):
        assert (tmp_path / name).read_bytes() == (best / name).read_bytes()
    assert same(Packaged.from_pretrained(tmp_path), model)
    assert same(Forecaster.from_pretrained(tmp_path), model)


def test_changed_weights_lose_the_scores_of_the_earlier_ones(best, tmp_path):
    model = foveate.load(best)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "The weights were changed after they had been loaded" in text
    assert not {"Scores", "Data", "Training", "Among others"} & set(re.findall(r"^## (.*)$", text, re.MULTILINE))
    assert "## Inputs and outputs" in text
    assert same(foveate.load(tmp_path), model)


def test_a_packaged_model_without_a_record_is_refused(tmp_path):
    task = ForecastTask.prepare(horizon=6, lookback=24)
    with pytest.raises(InvalidType, match=r"this Forecaster does not know how its model is built: save one that fov"):
        task.package(nn.Identity()).save_pretrained(tmp_path)


def test_a_hand_written_card_survives_the_same_command(best, tmp_path):
    out = best.parent
    settings = json.loads((out / "leaderboard.json").read_text())["settings"]
    given = {k: settings[k] for k in ("task", "data", "systems", "steps", "seeds", "out")}
    given |= {"learning_rates": (1e-2,), "workers": 1}
    before, events = (best / "README.md").read_text(), []
    run(Settings(**given), events.append)
    assert (best / "README.md").read_text() == before
    try:
        (best / "README.md").write_text("# Mine\n")
        run(Settings(**given), events.append)
        assert (best / "README.md").read_text() == "# Mine\n"
        said = [e["text"] for e in events if e["type"] == "warning"]
        assert len(said) == 1
        assert "was changed by hand: it stays" in said[0]
    finally:
        (best / "README.md").write_text(before)


# ----- the hub


def test_pushed_and_loaded_it_has_the_same_bits(fake, best, tmp_path):
    forecaster = foveate.load(best)
    cases = {"me/dlinear": dlinear(), "me/mamba": mixer_net(), "me/forecaster": forecaster}
    for repo, model in cases.items():
        address = model.push_to_hub(repo)
        assert address.startswith(f"{fake.url}/{repo}/commit/")
        for again in (type(model).from_pretrained(repo), foveate.load(f"hub:{repo}")):
            assert type(again) is type(model)
            assert same(again, model)
        card = fake.files(repo)["README.md"].decode()
        assert f'foveate.load("hub:{repo}")' in card
        assert set(fake.files(repo)) == {".gitattributes", "README.md", "config.json", "model.safetensors"}


def test_a_folder_is_pushed_without_what_else_lies_in_it(fake, copied):
    (copied / "secret.txt").write_text("mine")
    _, said = hub.push_folder(copied, "hub:me/best", private=True, licence="cc-by-4.0")
    files = fake.files("me/best")
    assert said == []
    assert fake.private == {"me/best"}
    assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert files["model.safetensors"] == (copied / "model.safetensors").read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "cc-by-4.0"
    assert 'foveate.load("hub:me/best")' in card.text
    (copied / "README.md").write_text("# Mine\n")
    hub.push_folder(copied, "me/own")
    assert fake.files("me/own")["README.md"] == b"# Mine\n"
    assert same(foveate.load("hub:me/best"), foveate.load(copied))


def test_a_model_on_the_hub_is_exported(fake, copied, tmp_path, capsys):
    hub.push_folder(copied, "hub:me/best")
    with pytest.raises(
        InvalidValue, match="hub:me/best has no folder here that the file could go to: name it with --o"
    ):
        export("hub:me/best")
    export("hub:me/best", out=tmp_path / "model.pt2")
    assert "verified with batches of" in capsys.readouterr().out
    module = torch.export.load(tmp_path / "model.pt2").module()
    model = foveate.load(copied)
    x = torch.randn(2, model.info.lookback, model.info.channels, dtype=torch.float64)
    torch.testing.assert_close(module(x), model(x).detach())


def test_a_card_on_the_hub_that_was_changed_there_stays(fake, copied):
    model = dlinear()
    model.push_to_hub("dlinear")  # the user's name is put in front
    assert 'foveate.load("hub:me/dlinear")' in fake.files("me/dlinear")["README.md"].decode()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.push_to_hub("me/dlinear", model_card_kwargs={"license": "mit"})
    assert b"license: mit" in fake.files("me/dlinear")["README.md"]
    fake.repos["me/dlinear"].append({**fake.files("me/dlinear"), "README.md": b"# Edited there\n"})
    with pytest.warns(UserWarning, match=r"README.md of me/dlinear is not foveate's or was changed: it stays"):
        model.push_to_hub("dlinear")
    _, said = hub.push_folder(copied, "me/dlinear")
    assert said == ["The README.md of me/dlinear is not foveate's or was changed: it stays as it is."]
    assert fake.files("me/dlinear")["README.md"] == b"# Edited there\n"


def test_a_revision_is_kept_to(fake, tmp_path):
    first, second = dlinear(), dlinear()
    nn.init.normal_(next(second.parameters()))
    first.push_to_hub("me/model")
    commit = commit_id(fake.files("me/model"))
    fake.tags["me/model", "v1"] = commit
    second.push_to_hub("me/model")
    cache = tmp_path / "elsewhere"
    assert same(foveate.load("hub:me/model", revision="v1", cache_dir=cache), first)
    assert same(DLinear.from_pretrained("me/model", revision=commit, cache_dir=cache), first)
    assert same(foveate.load("hub:me/model"), second)
    assert (cache / "models--me--model").is_dir()
    with pytest.raises(UnknownName, match=r"hub:me/model has no revision 'v2': give a branch, a tag or a commit"):
        foveate.load("hub:me/model", revision="v2")
    asked = len(fake.asked)
    assert same(foveate.load("hub:me/model", local_files_only=True), second)
    assert len(fake.asked) == asked


def test_a_repo_of_pickles_is_refused_and_nothing_of_it_is_fetched(fake):
    fake.repos["them/old"] = [{"config.json": b"{}", "pytorch_model.bin": b"\x80"}]
    for opened in (lambda: foveate.load("hub:them/old"), lambda: DLinear.from_pretrained("them/old")):
        with pytest.raises(
            InvalidValue, match=r"hub:them/old holds its weights as pytorch_model.bin, a pickle, which can"
        ):
            opened()
    assert not any("pytorch_model.bin" in line for line in fake.asked)
    fake.repos["them/empty"] = [{"README.md": b""}]
    with pytest.raises(InvalidValue, match=r"hub:them/empty has no model.safetensors: it is not a model of foveate's"):
        foveate.load("hub:them/empty")
    fake.repos["them/other"] = [{"config.json": b'{"model_type": "bert"}', "model.safetensors": b"\x00" * 8}]
    with pytest.raises(InvalidValue, match="was not written by foveate: it lacks format, system, options"):
        foveate.load("hub:them/other")


def test_what_the_hub_refuses_is_one_sentence(fake, monkeypatch, copied):
    dlinear().push_to_hub("me/secret", private=True)
    fake.repos["them/gated"], fake.gated = [{"config.json": b"{}"}], {"them/gated"}
    cases: list[tuple[Any, type[FoveateError], str]] = [
        (lambda: foveate.load("hub:me/none"), UnknownName, "hub:me/none does not exist, or it is private: check the"),
        (lambda: foveate.load("hub:them/gated"), InvalidValue, "hub:them/gated is gated: ask for access on its page"),
        (lambda: foveate.load("hub:a/b/c"), InvalidValue, "'a/b/c' is no repo's id: write user/name"),
        (lambda: foveate.load("hub:me/secret", token="hf_wrong"), UnknownName, "hub:me/secret does not exist, or it"),
        (lambda: dlinear().push_to_hub("me/x", token="hf_wrong"), InvalidValue, r"hub:me/x cannot be written \(401\)"),
        (lambda: hub.push_folder(copied, "me/x", token="hf_wrong"), InvalidValue, r"cannot be written \(401\): log in"),
        (lambda: dlinear().push_to_hub("me/secret", branch="b"), UnknownName, "hub:me/secret has no revision 'b'"),
        (
            lambda: foveate.load("hub:me/secret", local_files_only=True),
            InvalidValue,
            "is not in the cache, and the hub",
        ),
        (lambda: dlinear().push_to_hub("a b"), InvalidValue, "'a b' is no repo's id"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    fake.fails_with = 418
    with pytest.raises(InvalidValue, match=r"the hub refused hub:me/x \(418\): .*out of order"):
        hub.push_folder(copied, "me/x")


def test_no_network_is_one_sentence(monkeypatch, tmp_path, copied):
    with running(monkeypatch, tmp_path / "cache") as gone:
        pass  # its port is closed now
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", gone.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for call, message in (
        (lambda: foveate.load("hub:me/x"), "hub:me/x is not in the cache, and the hub was not asked or did not answer"),
        (lambda: DLinear.from_pretrained("me/x", force_download=True), "hub:me/x"),
        (lambda: hub.push_folder(copied, "me/x"), r"hub:me/x: the hub cannot be reached \(ConnectError"),
    ):
        with pytest.raises(InvalidValue, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    """Run ``foveate`` in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["foveate", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_the_command_line_pushes_and_predicts(fake, copied, tmp_path, monkeypatch):
    # In a process of its own, which takes the fake hub for the hub as a user's mirror is taken.
    given = [sys.executable, "-m", "foveate", "push", str(copied), "me/best", "--private", "--license", "mit"]
    environment = {**os.environ, "HF_ENDPOINT": fake.url, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(given, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{fake.url}/me/best/commit/{commit_id(fake.files('me/best'))}\n")
    assert "Open it with foveate.load('hub:me/best')." in done.stdout
    assert b"license: mit" in fake.files("me/best")["README.md"]
    outs = [tmp_path / "here.csv", tmp_path / "hub.csv"]
    for place, out in zip((copied, "hub:me/best"), outs, strict=True):
        assert command(monkeypatch, "predict", place, "--out", out) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_the_command_line_refuses_in_one_sentence(fake, copied, tmp_path, monkeypatch, capsys):
    dlinear().save_pretrained(tmp_path / "bare")
    for arguments, message in (
        (("push", tmp_path / "none", "me/x"), "is not a trained model: it has no config.json"),
        (("push", copied, "a/b/c"), "'a/b/c' is no repo's id: write user/name."),
        (("predict", "hub:me/none"), "hub:me/none does not exist, or it is private"),
        (("predict", copied, "--revision", "v1"), "revision='v1' is not possible"),
        (("predict", tmp_path / "bare"), "holds a bare 'dlinear', trained for no task: open it with foveate.load."),
    ):
        assert command(monkeypatch, *arguments) == 2
        said = capsys.readouterr().err
        assert message in said
        assert len(said.strip().splitlines()) == 1, said
