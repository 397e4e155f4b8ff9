"""foveate.export: what is asked for is written and verified, everything else is refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import foveate
from foveate.errors import InvalidType, InvalidValue, MissingExtra
from foveate.exporting import formats, read_facts, verify
from foveate.exporting.subject import subject_of
from foveate.exporting.verify import spread_of
from foveate.models.language.language_model import LanguageModel
from foveate.models.mixer_net import MixerNet
from foveate.models.series.timesnet import TimesNet
from foveate.ops.linear_attention import reference
from foveate.ops.linear_attention_chunks import _any_length
from foveate.tasks.forecast.package import Forecaster
from foveate.tasks.forecast.protocol import ForecastInfo


def mixer(name: str = "gated_conv", **options) -> nn.Module:
    torch.manual_seed(0)
    return foveate.create(name, kind="mixer", dim=8, **options)


def forecaster(model: nn.Module, channels: int = 2, marks: int = 4) -> Forecaster:
    info = ForecastInfo(16, 4, channels, tuple(range(channels)), 1, "h", marks)
    mean, scale = torch.tensor([[1000.0, -3.0]]), torch.tensor([[5.0, 0.1]])
    return Forecaster(model, info, columns=("a", "b"), mean=mean[:, :channels], scale=scale[:, :channels]).eval()


def timesnet() -> TimesNet:
    torch.manual_seed(0)
    return TimesNet(task="forecast", seq_len=16, pred_len=4, enc_in=2, d_model=4, d_ff=4, top_k=2, marks=4).eval()


def run(file: Path, *args, **kwargs) -> torch.Tensor:
    return torch.export.load(file).module()(*args, **kwargs)


def test_a_mixer_without_an_example_serves_every_length(tmp_path):
    model = mixer()
    made = foveate.export(model, tmp_path / "m.pt2")
    assert made.facts["inputs"][0]["shape"] == ["batch", "length", 8]
    assert made.facts["output"]["shape"] == ["batch", "length", 8]
    for shape in ((1, 5, 8), (4, 100, 8)):
        x = torch.randn(shape)
        torch.testing.assert_close(run(made.file, x), model(x))


def test_a_length_or_a_batch_size_can_be_fixed(tmp_path):
    made = foveate.export(mixer(), tmp_path / "m.pt2", length=6, batch_size=2)
    assert made.facts["inputs"][0]["shape"] == [2, 6, 8]
    assert made.facts["verified"]["batches"] == (2,)
    run(made.file, torch.zeros(2, 6, 8))
    for shape in ((1, 6, 8), (2, 7, 8)):
        with pytest.raises((AssertionError, RuntimeError)):
            run(made.file, torch.zeros(shape))


def test_a_mask_is_an_input_if_the_example_has_one(tmp_path):
    model = mixer("softmax_attention", num_heads=2)
    x, mask = torch.randn(2, 6, 8), torch.rand(2, 6) < 0.7
    mask[:, 0] = True
    made = foveate.export(model, tmp_path / "m.pt2", example={"x": x, "mask": mask})
    x, mask = torch.randn(3, 9, 8), torch.ones(3, 9, dtype=torch.bool)
    mask[0, 4:] = False
    torch.testing.assert_close(run(made.file, x, mask=mask), model(x, mask=mask))


def test_images_of_any_size(tmp_path):
    model = mixer("softmax_attention", num_heads=2)
    made = foveate.export(model, tmp_path / "m.pt2", example=torch.randn(2, 6, 5, 8))
    assert made.facts["inputs"][0]["shape"] == ["batch", "length_1", "length_2", 8]
    x = torch.randn(1, 4, 9, 8)
    torch.testing.assert_close(run(made.file, x), model(x))


def test_tokens_of_any_number(tmp_path):
    model = LanguageModel("gated_conv", vocabulary=11, dim=8, depth=1).eval()
    made = foveate.export(model, tmp_path / "m.pt2")
    assert made.facts["inputs"][0]["shape"] == ["batch", "length"]
    tokens = torch.randint(11, (2, 130))
    torch.testing.assert_close(run(made.file, tokens), model(tokens))


def test_the_module_is_left_as_it_was(tmp_path):
    model = mixer().train()
    foveate.export(model, tmp_path / "m.pt2")
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_a_packaged_model_answers_in_its_units_and_reads_what_matters(tmp_path):
    model = forecaster(foveate.create("dlinear", kind="model", seq_len=16, pred_len=4, enc_in=2))
    made = foveate.export(model, tmp_path / "m.pt2")
    assert [one["name"] for one in made.facts["inputs"]] == ["x"]  # it has no use for marks
    assert made.facts["package"]["columns"] == ["a", "b"]
    x = model.example_inputs(3, seed=7)["x"]
    torch.testing.assert_close(run(made.file, x), model(x))
    assert read_facts(made.file) == json.loads(json.dumps(made.facts))


def test_facts_name_the_systems_with_licence_and_citation(tmp_path):
    made = foveate.export(
        MixerNet("mamba", size=16, channels=2, outputs=4, dim=8, depth=1),
        tmp_path / "m.pt2",
        example=torch.randn(2, 16, 2),
    )
    (system,) = made.facts["systems"]
    assert system["slug"] == "mamba"
    assert "@" in system["citation"]
    assert system["licence"]


def test_a_module_of_ones_own_needs_an_example(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    with pytest.raises(InvalidType, match="example="):
        foveate.export(model, tmp_path / "m.pt2")
    made = foveate.export(model, tmp_path / "m.pt2", example=torch.randn(2, 3))
    x = torch.randn(5, 3)
    torch.testing.assert_close(run(made.file, x), model(x).detach())


def test_onnx_carries_its_facts(tmp_path):
    pytest.importorskip("onnxruntime")
    made = foveate.export(mixer(), tmp_path / "m.onnx")
    assert read_facts(made.file)["file"] == "onnx"


# Refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"format": "h5"}, "format='h5' is not possible: it must be pt2 or onnx"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"length": 0}, "length=0"),
        ({"length": 5, "dynamic_length": True}, "leave one of them out"),
        ({"example": torch.zeros(0, 4, 8)}, "at least one sample"),
        ({"example": {"y": torch.zeros(1, 4, 8)}}, "example has 'y'"),
        ({"example": (torch.zeros(1, 4, 8),) * 9}, "example has 9 inputs"),
        ({"example": {"x": torch.zeros(1, 4, 8), "mask": torch.ones(2, 4, dtype=torch.bool)}}, "different batch"),
    ],
)
def test_what_cannot_be(options, says, tmp_path):
    with pytest.raises(InvalidValue) as raised:
        foveate.export(mixer(), tmp_path / "m.pt2", **options)
    assert says in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_specs_decide_and_say_why(tmp_path):
    with pytest.raises(InvalidType, match=r"s4d has no ONNX form \(ONNX has no complex numbers.*export it as pt2"):
        foveate.export(mixer("s4d"), tmp_path / "m.onnx", example=torch.zeros(1, 4, 8))
    with pytest.raises(InvalidType, match=r"mamba cannot be exported for any length \(its scan is unrolled"):
        foveate.export(mixer("mamba"), tmp_path / "m.pt2", dynamic_length=True)
    with pytest.raises(InvalidType, match="mamba is exported for one length"):
        foveate.export(mixer("mamba"), tmp_path / "m.pt2")
    net = MixerNet("s4d", size=16, channels=2, outputs=4, dim=8, depth=1)
    with pytest.raises(InvalidType, match=r"MixerNet has no ONNX form \(s4d inside it: ONNX has no complex"):
        foveate.export(net, tmp_path / "m.onnx", example=torch.zeros(1, 16, 2))


def test_a_baseline_without_a_graph_names_what_can_be_exported(tmp_path):
    pytest.importorskip("statsmodels")
    model = forecaster(foveate.create("theta", kind="model", seq_len=16, pred_len=4, enc_in=2))
    with pytest.raises(InvalidType, match=r"Forecaster cannot be exported .theta inside it: statsmodels fits.*dlinear"):
        foveate.export(model, tmp_path / "m.pt2")


def test_targets_that_cannot_be_written(tmp_path):
    model = mixer()
    (tmp_path / "there.pt2").write_text("mine")
    for name, says in (("no/m.pt2", "does not exist"), ("there.pt2", "exists"), ("", "folder")):
        with pytest.raises(InvalidValue, match=says):
            foveate.export(model, tmp_path / name, format="pt2")
    assert (tmp_path / "there.pt2").read_text() == "mine"
    foveate.export(model, tmp_path / "there.pt2", force=True)
    assert read_facts(tmp_path / "there.pt2")["model"] == "gated_conv"


def test_onnx_without_its_packages(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(MissingExtra, match=r"onnxruntime: install it with pip install 'foveate\[export\]'"):
        foveate.export(mixer(), tmp_path / "m.onnx")


def test_an_op_that_torch_does_not_know_is_refused(tmp_path):
    @torch.library.custom_op("foveate_test::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    double.register_fake(torch.empty_like)

    class Doubles(nn.Module):
        def forward(self, x):
            return double(x)

    with pytest.raises(InvalidValue, match=r"Doubles cannot be exported: its graph holds foveate_test.double"):
        foveate.export(Doubles(), tmp_path / "m.pt2", example=torch.ones(2, 3))
    assert not list(tmp_path.iterdir())


def test_a_module_that_torch_cannot_follow_is_told_so(tmp_path):
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum().item() > 0 else -x

    with pytest.raises(InvalidValue, match=r"torch.export cannot follow Branches"):
        foveate.export(Branches(), tmp_path / "m.pt2", example=torch.ones(2, 3))


def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    honest = formats.pt2_runner
    monkeypatch.setattr(formats, "pt2_runner", lambda *a: lambda inputs: honest(*a)(inputs) * 1.001)
    with pytest.raises(InvalidValue, match="differs from the model by"):
        foveate.export(mixer(), tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_answers_that_are_not_finite_are_refused(tmp_path):
    class Divides(nn.Module):
        def forward(self, x):
            return x / 0

    with pytest.raises(InvalidValue, match="not finite"):
        foveate.export(Divides(), tmp_path / "m.pt2", example=torch.ones(2, 3))


def test_a_channel_of_small_size_is_not_hidden_by_a_large_one():
    answers = torch.stack([1000 + torch.randn(4, 8), 0.01 * torch.randn(4, 8)], -1)
    spread = spread_of(answers)
    assert spread.shape == (1, 1, 2)
    assert spread[..., 1] < 0.1
    subject = subject_of(nn.Identity(), answers)
    with pytest.raises(InvalidValue, match="differs"):
        verify.verify(lambda inputs: inputs["input"] + torch.tensor([0.0, 0.01]), subject, (4,), ((),))


def test_no_folder_of_a_model(tmp_path):
    with pytest.raises(InvalidValue, match="is not a trained model"):
        foveate.export(tmp_path, tmp_path / "m.pt2")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidValue, match="was not written by foveate"):
        foveate.export(tmp_path, tmp_path / "m.pt2")


def test_a_folder_of_save_pretrained(tmp_path):
    model = LanguageModel("gated_conv", vocabulary=11, dim=8, depth=1).eval()
    model.save_pretrained(tmp_path / "saved")
    made = foveate.export(tmp_path / "saved", tmp_path / "m.pt2", system=LanguageModel)
    tokens = torch.randint(11, (2, 9))
    torch.testing.assert_close(run(made.file, tokens), model(tokens))


def test_facts_of_a_file_that_is_not_ours(tmp_path):
    with pytest.raises(InvalidValue, match="is not there"):
        read_facts(tmp_path / "no.pt2")
    (tmp_path / "x.pt2").write_bytes(b"something")
    with pytest.raises(InvalidValue, match="was not exported by foveate"):
        read_facts(tmp_path / "x.pt2")


# TimesNet -----------------------------------------------------------------------------------------------------------


def test_periods_are_frozen_by_inputs_and_stated_in_the_file(tmp_path):
    model, x = timesnet(), torch.randn(6, 16, 2)
    x = x + 5 * (torch.arange(16) * 2 * torch.pi / 4).sin()[:, None]
    with pytest.raises(InvalidType, match=r"timesnet cannot be exported .its periods follow the data.*--calibration"):
        foveate.export(model, tmp_path / "m.pt2", example=x)
    made = foveate.export(model, tmp_path / "m.pt2", example=x, calibration=x)
    assert model.frozen_periods is None, "export froze the user's own model"
    assert model.spec.batch_independent is False
    model.freeze_periods(x)
    assert made.facts["calibration"]["periods"] == model.frozen_periods
    assert made.facts["calibration"]["windows"] == 6
    torch.testing.assert_close(run(made.file, x), model(x))
    made = foveate.export(model, tmp_path / "again.pt2", example=x)
    assert made.facts["calibration"] == {"by": "freeze_periods", "periods": model.frozen_periods}


def test_frozen_on_a_batch_it_answers_that_batch_as_before():
    model, x = timesnet(), torch.randn(5, 16, 2)
    with torch.no_grad():
        before = model(x)
        model.freeze_periods(x)
        torch.testing.assert_close(model(x), before)
        assert torch.equal(model(x)[:1], model(torch.cat([x[:1], 9 * torch.randn(4, 16, 2)]))[:1])
    assert model.spec.export
    assert model.spec.batch_independent


def test_calibration_is_refused_where_nothing_follows_the_data(tmp_path):
    with pytest.raises(InvalidType, match="calibration is not for gated_conv"):
        foveate.export(mixer(), tmp_path / "m.pt2", calibration=torch.zeros(1, 4, 8))
    with pytest.raises(InvalidType, match="needs a model that a comparison trained"):
        foveate.export(timesnet(), tmp_path / "m.pt2", calibration="some.csv")


def test_a_calibration_table_that_does_not_fit(tmp_path):
    (tmp_path / "other.csv").write_text("time,c\n2020-01-01,1\n2020-01-02,2\n")
    with pytest.raises(LookupError, match="'a'"):
        foveate.export(forecaster(timesnet()), tmp_path / "m.pt2", calibration=tmp_path / "other.csv")
    assert not (tmp_path / "m.pt2").exists()


# Forms for exporters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 31, 32, 33, 200])
@pytest.mark.parametrize("with_runs", [False, True])
def test_linear_attention_of_any_length_is_the_definition(length, with_runs):
    torch.manual_seed(length)
    q, k, v = (torch.randn(2, 3, length, 4, dtype=torch.float64) for _ in range(3))
    slope, state = torch.tensor([0.0, 0.1, 2.0], dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    runs = (torch.rand(2, length) < 0.1).long().cumsum(1) if with_runs else None
    expected, _ = reference(q, k, v, slope, state, runs)
    torch.testing.assert_close(_any_length(q, k, v, slope, state, runs, 32), expected)
