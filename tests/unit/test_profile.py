"""Profiles: what kind of work each operator is, what is an attention, lengths over depth, and what is refused."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.analysis.beyond_llms import amdahl, attention_flops, crossover_frames, similarity_bytes, unet_lengths
from foveate.analysis.profile import profile
from foveate.analysis.report import Report
from foveate.claims._generators import Decoder, SelfAttention, UNet, VideoAttention
from foveate.errors import InvalidType, InvalidValue, UnknownName
from foveate.measure.flops import count_flops


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Networks this small spend most of their time in Python, which is told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def run(model: nn.Module, *inputs: Tensor, **options: object) -> Report:
    torch.manual_seed(0)
    return profile(model.eval(), inputs, repeats=1, **options)  # type: ignore[arg-type]


def kinds(report: Report) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for record in report.records:
        found.setdefault(record.kind, []).append(record.name)
    return found


class ByHand(nn.Module):
    """Attention written with products, with everything that may stand between them and the softmax."""

    def __init__(self, softmax: bool = True) -> None:
        super().__init__()
        self.qkv, self.softmax = nn.Linear(8, 24), softmax

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(8)
        scores = scores.masked_fill(torch.ones(x.shape[1], x.shape[1]).triu(1).bool(), -torch.inf)
        weights = scores.softmax(-1) if self.softmax else scores.sigmoid()
        return F.dropout(weights, 0.1, self.training).to(v.dtype) @ v


@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_found_fused_or_not(fused: bool):
    report = run(SelfAttention(8, heads=2), torch.randn(3, 10, 8), fused_attention=fused)
    (found,) = report.sequence_lengths()
    assert (found.maps, found.queries, found.keys, found.kind) == (6, 10, 10, "self")
    assert report.totals(of="flops")["attention"] == 4 * 3 * 2 * 10 * 10 * 4
    assert report.totals(of="flops")["linear"] == 2 * 30 * (8 * 24 + 8 * 8)
    names = kinds(report)["attention"]
    assert sum("bmm" in name for name in names) == (0 if fused else 2)
    assert "addmm" not in names


def test_attention_by_hand_is_found_through_scale_mask_and_dropout():
    report = run(ByHand(), torch.randn(3, 10, 8))
    assert [(a.maps, a.queries, a.keys) for a in report.sequence_lengths()] == [(3, 10, 10)]
    assert kinds(report)["attention"].count("bmm") == 2
    assert "product" not in kinds(report)
    assert set(report.seconds_by_length()) == {10}
    assert report.seconds_by_length()[10] == pytest.approx(report.totals()["attention"])


def test_products_without_a_softmax_are_no_attention():
    report = run(ByHand(softmax=False), torch.randn(3, 10, 8))
    assert report.sequence_lengths() == []
    assert kinds(report)["product"] == ["bmm", "bmm"]
    assert "attention" not in kinds(report)


def test_a_softmax_over_a_layer_is_an_activation():
    report = run(nn.Sequential(nn.Linear(8, 5), nn.Softmax(-1)), torch.randn(3, 8))
    assert kinds(report)["activation"] == ["_softmax"]
    assert "attention" not in kinds(report)


def test_kinds_of_common_layers():
    class Everything(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 8)
            self.norm, self.convolution = nn.LayerNorm(8), nn.Conv1d(8, 8, 1)
            self.scale = RootNorm()

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.norm(self.embedding(tokens))
            x = self.scale(F.gelu(self.convolution(x.mT)).mT)
            return torch.cat([x + 1, x], 1).sum(1)

    class RootNorm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.square().mean(-1, keepdim=True).rsqrt()

    found = kinds(run(Everything(), torch.zeros(2, 5, dtype=torch.int64)))
    assert found["embedding"] == ["embedding"]
    assert "native_layer_norm" in found["norm"]
    assert {"mul", "rsqrt", "mean"} <= set(found["norm"])
    assert found["convolution"] == ["convolution"]  # 1 x 1 as well
    assert found["activation"] == ["gelu"]
    assert {"add", "sum"} <= set(found["elementwise"])
    assert "cat" in found["memory"]


def test_a_module_class_may_be_given_a_kind():
    report = run(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), torch.randn(2, 8), kinds={nn.Linear: "other"})
    assert "linear" not in kinds(report)
    assert "addmm" in kinds(report)["other"]


@pytest.mark.parametrize("fused", [True, False])
def test_flops_are_those_of_the_counter(fused: bool):
    model, x = UNet(2), torch.randn(1, 32, 8, 8)
    report = run(model, x, fused_attention=fused)
    assert report.flops() == count_flops(lambda: model(x)) > 0


def test_shares_sum_to_one_and_groups_are_those_asked_for():
    report = run(UNet(2), torch.randn(1, 32, 8, 8))
    for by in ("kind", "module", "operator"):
        for of in ("seconds", "flops", "bytes"):
            assert sum(report.breakdown(by, of).values()) == pytest.approx(1)  # type: ignore[arg-type]
    assert "down.0.attention.qkv" in report.totals("module")
    with pytest.raises(UnknownName, match="unknown grouping 'class'"):
        report.totals("class")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="unknown figure 'time'"):
        report.totals(of="time")  # type: ignore[arg-type]


def test_lengths_over_the_depth_of_a_unet():
    report = run(UNet(3), torch.randn(1, 32, 16, 16))
    assert [a.queries for a in report.sequence_lengths()] == [256, 64, 16, 64, 256] == unet_lengths(128, 128, 3)
    assert report.phase == "prefill"
    assert list(report.seconds_by_length()) == [256, 64, 16]


def test_decoding_cross_and_temporal_attention_are_told_apart():
    cache = torch.randn(2, 1, 2, 12, 4)
    decode = run(Decoder(8, 2), torch.randn(1, 1, 8), *cache)
    assert [(a.kind, a.queries, a.keys) for a in decode.sequence_lengths()] == [("decode", 1, 12)]
    assert decode.phase == "decode"
    cross = run(Decoder(8, 2), torch.randn(1, 5, 8), *cache)
    assert [a.kind for a in cross.sequence_lengths()] == ["cross"]


def test_temporal_attention_is_known_by_its_name():
    class Video(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spatial, self.temporal = VideoAttention(8, temporal=False), VideoAttention(8, temporal=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.temporal(self.spatial(x))

    found = run(Video(), torch.randn(1, 8, 3, 4, 4)).sequence_lengths()
    assert [(a.maps, a.queries, a.kind) for a in found] == [(3, 16, "self"), (16, 3, "temporal")]


def test_steps_are_added_up_with_a_growing_cache():
    def inputs(step: int) -> tuple[Tensor, ...]:
        return torch.randn(1, 1, 8), *torch.randn(2, 1, 2, 10 + step, 4)

    report = profile(Decoder(8, 2).eval(), inputs, steps=3, repeats=2)
    assert [a.keys for a in report.sequence_lengths()] == [10, 11, 12]
    assert report.seconds_by_length()[1] == pytest.approx(report.totals()["attention"])
    assert report.steps == 3


def test_hooks_are_gone_afterwards_even_after_an_error():
    model = UNet(2)
    with pytest.raises(RuntimeError):
        run(model, torch.randn(1, 3, 8, 8))
    run(model, torch.randn(1, 32, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_time_outside_of_operators_is_told():
    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sum(i * i for i in range(200_000))
            return x + 1

    with pytest.warns(UserWarning, match=r"\d\d % of the time was spent outside of PyTorch's operators"):
        report = profile(Slow(), (torch.zeros(4),))
    assert report.unattributed > 0.5


def test_nothing_is_computed_on_the_meta_device():
    with torch.device("meta"):
        report = run(Decoder(4096, 32), torch.empty(1, 4096, 4096))
    assert report.flops() == 2 * 4096 * 4096**2 * 12 + 4 * 4096**2 * 4096
    assert report.intensity() > 100


def test_the_report_becomes_json_and_text():
    report = run(UNet(2), torch.randn(1, 32, 8, 8))
    told = json.loads(json.dumps(report.to_json()))
    assert told["kinds"]["flops"]["convolution"] == report.totals(of="flops")["convolution"]
    assert [a["queries"] for a in told["sequence_lengths"]] == [64, 16, 64]
    assert len(told["records"]) == len(report.records)
    assert report.text().splitlines()[-1] == "lengths: 64 16 64"


def test_reports_compare_and_predict():
    before = run(UNet(2), torch.randn(1, 32, 8, 8), fused_attention=False)
    after = run(UNet(2), torch.randn(1, 32, 8, 8))
    found = before.compare(after)
    assert found["times"]["attention"] == pytest.approx(before.totals()["attention"] / after.totals()["attention"])
    share, gain = before.breakdown()["attention"], found["times"]["attention"]
    assert found["predicted"] == pytest.approx(1 / (1 - share + share / gain))
    assert sum(before.accelerated("attention", 10).values()) == pytest.approx(1)


def test_what_is_impossible_is_refused():
    model, x = nn.Linear(2, 2), torch.zeros(1, 2)
    with pytest.raises(InvalidValue, match="steps=0 is not possible: at least 1 is needed"):
        profile(model, (x,), steps=0)
    with pytest.raises(InvalidValue, match="warmup=-1 is not possible"):
        profile(model, (x,), warmup=-1)
    with pytest.raises(InvalidType, match=r"inputs is a tensor: give the arguments as a tuple, \(x,\)"):
        profile(model, x)  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="unknown kind 'matmul'"):
        profile(model, (x,), kinds={nn.Linear: "matmul"})
    with pytest.raises(InvalidValue, match="no operator ran"):
        profile(nn.Identity(), (x,))


# ----- arithmetic of lengths


def test_lengths_of_a_latent_unet():
    assert unet_lengths(512, 512) == [4096, 1024, 256, 64, 256, 1024, 4096]
    assert unet_lengths(64, 32, levels=2, vae_factor=1) == [2048, 512, 2048]
    assert unet_lengths(8, 8, levels=1) == [1]
    with pytest.raises(InvalidValue, match="width=500 is not possible: 4 levels need a multiple of 64"):
        unet_lengths(512, 500)
    with pytest.raises(InvalidValue, match="must be positive"):
        unet_lengths(512, 512, levels=0)


def test_bytes_of_similarity():
    assert similarity_bytes([4, 2], heads=3) == 2 * 3 * (16 + 4)
    assert similarity_bytes([4], heads=1, text_length=5, each=4) == 4 * (16 + 20)


def test_attention_of_videos():
    assert attention_flops("spatial", 4, 9, 8) == 4 * 4 * 81 * 8
    assert attention_flops("temporal", 4, 9, 8) == 4 * 9 * 16 * 8
    assert crossover_frames(9) == 9
    with pytest.raises(UnknownName, match="unknown attention 'both'"):
        attention_flops("both", 4, 9, 8)  # type: ignore[arg-type]


def test_amdahl():
    assert amdahl({"a": 0.5, "b": 0.5}, "a", 5) == pytest.approx({"a": 1 / 6, "b": 5 / 6})
    with pytest.raises(UnknownName, match="unknown kind 'c'"):
        amdahl({"a": 1.0}, "c", 2)
    with pytest.raises(InvalidValue, match="times=0 is not possible"):
        amdahl({"a": 1.0}, "a", 0)
