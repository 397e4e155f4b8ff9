"""The script behind benchmarks/long_context.md: what it reads, what it keeps, what it says of it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("transformers", reason="the script measures a model of transformers")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import long_context

    return long_context


def test_samples_are_cut_from_the_same_tokens(script: ModuleType) -> None:
    _, tokenizer = script.load()
    rows = script.pieces(tokenizer, 4096, 2)
    assert rows.shape == (2 * len(script.READ), 4097)
    assert torch.equal(rows[0, -1:], rows[1, :1])


def test_nats_are_those_of_each_sample_alone(script: ModuleType) -> None:
    model, tokenizer = script.load()
    rows = script.pieces(tokenizer, 256, 1)[:2]
    whole, halves = script.nats(model, rows, 256), script.nats(model, rows, 128)
    assert whole.shape == (2, 256)
    assert halves.shape == (4, 128)
    torch.testing.assert_close(halves[0::2], whole[:, :128])
    assert not torch.allclose(halves[1::2], whole[:, 128:])


@pytest.mark.parametrize("context", [2048, 4096, 8192, 16_384])
def test_budgets_are_a_quarter(script: ModuleType, context: int) -> None:
    model, _ = script.load()
    window, hip = script.sliding_window(model, context), script.hip_attention(model, context)
    assert window.window + window.sinks == context // 4
    assert hip.search.mask_k + hip.search.window + hip.num_sinks == context // 4


def test_a_system_leaves_the_model_as_it_was(script: ModuleType) -> None:
    model, tokenizer = script.load()
    rows = script.pieces(tokenizer, 256, 1)[:1]
    before = script.perplexities(model, rows, 256, "dense")
    assert script.perplexities(model, rows, 256, "sliding_window") != before
    assert script.perplexities(model, rows, 256, "dense") == before


def test_what_was_measured_is_kept(script: ModuleType, tmp_path: Path) -> None:
    kept = script.Kept(tmp_path / "a" / "found.json", again=False)
    kept.add({"2048 dense": [1.0, 2.0]})
    kept.add({"2048 hip_attention": [3.0, 4.0]})
    assert script.Kept(kept.path, again=False).found == {"2048 dense": [1.0, 2.0], "2048 hip_attention": [3.0, 4.0]}
    assert script.Kept(kept.path, again=True).found == {}


def test_the_page_says_what_does_not_hold(script: ModuleType) -> None:
    systems = ["dense", "sliding_window", "hip_attention"]
    found = {"2048 dense": [10.0, 9.0], "2048 sliding_window": [10.1, 9.5], "2048 hip_attention": [10.15, 9.1]}
    text = "\n".join(script.perplexity_section(found, [2048], systems))
    assert "| hip_attention | 10.150 (+1.5%) | 9.100 (+1.1%) |" in text
    assert "hip_attention at a quarter of the keys within 2% of dense at 2,048 tokens: holds (+1.50%)" in text
    assert "as many keys at 2,048 tokens: **does not hold** (10.150 against 10.100)" in text
    for left_out, holds in ((0.81, "holds"), (0.79, "**does not hold**")):
        found["2048 seer_attention"] = [10.1, 9.1, left_out]
        text = "\n".join(script.perplexity_section(found, [2048], [*systems, "seer_attention"]))
        assert f"within 2% at 2,048 tokens: {holds} (+1.00% without {left_out:.1%} of them)" in text
    times = {f"prefill {name}": [t, t, 9.0] for name, t in zip(systems, (4.0, 1.0, 2.5), strict=True)}
    text = "\n".join(script.prefill_section(times, systems))
    assert "| sliding_window | 1.00 | 4.00 |" in text
    assert "at least 2 times as fast as SDPA: **does not hold** (1.60 times)" in text


def test_half_of_it_is_not_written(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (
        ["--only", "prefill", "--write"],
        ["--contexts", "2048", "--write"],
        ["--systems", "hip_attention"],
    ):
        monkeypatch.setattr(sys, "argv", ["long_context.py", *arguments])
        with pytest.raises(SystemExit, match="2"):
            script.main()
