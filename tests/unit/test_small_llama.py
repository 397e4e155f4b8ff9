"""The small Llama that the project ships reads, writes and remembers; its training resumes and keeps texts back."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the small Llama is a model of transformers")
from transformers import AutoTokenizer, LlamaForCausalLM

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "small_llama"
#: Of the weights, in bytes.
LARGEST = 4_000_000


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """``library_text`` and ``train_small_llama``, imported as they are when run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import library_text
    import train_small_llama

    return library_text, train_small_llama


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


def excerpt(tokenizer: Any, tokens: int) -> torch.Tensor:
    """The first tokens of a module that was not trained on: ``(1, tokens)``."""
    text = Path(inspect.getfile(inspect)).read_text(encoding="utf-8")
    return torch.tensor([tokenizer(text)["input_ids"][:tokens]])


@torch.inference_mode()
def nats(model: LlamaForCausalLM, x: torch.Tensor, last: int) -> float:
    """Per token, over the last ones."""
    logits = model(input_ids=x).logits[0, -last - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits, x[0, -last:]))


def test_the_weights_are_those_of_the_log_and_small() -> None:
    weights = (FOLDER / "model.safetensors").read_bytes()
    *_, last = (FOLDER / "training.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(weights) < LARGEST
    assert hashlib.sha256(weights).hexdigest() == json.loads(last)["weights"]


def test_it_predicts_sources_that_it_was_not_trained_on(model: LlamaForCausalLM, tokenizer: Any) -> None:
    assert nats(model, excerpt(tokenizer, 1024), 512) < math.log(25)


def test_it_uses_what_lies_far_back(model: LlamaForCausalLM, tokenizer: Any) -> None:
    x = excerpt(tokenizer, 4096)
    near, far = nats(model, x[:, -1152:], 1024), nats(model, x[:, -2048:], 1024)
    assert far < near - 0.01, "more context must make the same tokens likelier"


def test_it_generates_what_its_cache_does_not_change(model: LlamaForCausalLM, tokenizer: Any) -> None:
    x = excerpt(tokenizer, 64)
    options = {"attention_mask": torch.ones_like(x), "max_new_tokens": 12, "do_sample": False}
    cached = model.generate(x, **options)
    torch.testing.assert_close(model.generate(x, use_cache=False, **options), cached)
    assert cached.shape[1] > 64


def test_the_tokenizer_gives_any_text_back(tokenizer: Any) -> None:
    text = "def größe(self):\n\treturn '\u4f60\u597d'  # \N{GRINNING FACE}\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_subjects_are_kept_back_with_their_tests(scripts: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    files = (
        "inspect.py",
        "test/test_inspect/test_inspect.py",
        "test/test_os.py",
        "email/parser.py",
        "email/mime/text.py",
        "logging/__init__.py",
        "os.py",
        "encodings/ascii.py",
        "site-packages/torch.py",
        "_sysconfigdata__linux.py",
    )
    for file in files:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"x = {file!r}\n", encoding="utf-8")
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    found = {split: scripts[0].documents(split, tmp_path) for split in ("train", "validation", "test")}
    assert list(found["train"]) == ["os.py", "test/test_os.py"]
    assert list(found["validation"]) == ["logging"]
    assert list(found["test"]) == ["email", "inspect.py", "test/test_inspect"]
    assert found["test"]["email"].startswith("# email/mime/text.py\nx =")
    assert "# email/parser.py\nx =" in found["test"]["email"]


def test_steps_read_the_same_whenever_they_are_done(scripts: tuple[ModuleType, ModuleType]) -> None:
    script = scripts[1]
    tokens = torch.arange(100_000)
    seen = 0
    for stage in script.STAGES:
        x, y, positions = script.batch(tokens, seen)
        assert x.shape == (max(1, script.TOKENS // stage.length), stage.length)
        assert torch.equal(y[:, :-1], x[:, 1:])
        for again, once in zip(script.batch(tokens, seen), (x, y, positions), strict=True):
            assert torch.equal(again, once)
        drawn = [script.batch(tokens, seen + i)[2] for i in range(16)]
        assert all(p.min() == 0 and p.max() < script.LONGEST and (p.diff() > 0).all() for p in drawn)
        assert any((p.diff() != 1).any() for p in drawn) is (stage.spread > 0)
        seen += stage.steps
    assert seen == script.STEPS
    assert script.rate_of(0) < script.rate_of(script.WARM_UP) == 1
    assert 0 < script.rate_of(script.STEPS - 1) < 0.01


def test_a_gap_in_positions_is_no_border(scripts: tuple[ModuleType, ModuleType], model: LlamaForCausalLM) -> None:
    x = torch.arange(1, 41)[None]
    positions = torch.arange(40)[None] + 1000 * (torch.arange(40) >= 20)
    with torch.inference_mode():
        losses = [
            scripts[1].loss_of(model, torch.cat([first, x[:, 1:]], 1), x, positions)
            for first in (x[:, :1], 0 * x[:, :1])
        ]
        parts = [
            model(input_ids=v, position_ids=positions, attention_mask=torch.ones_like(v)).logits[0, -1]
            for v in (x, x.flip(1))
        ]
    assert not torch.equal(*losses)
    assert not torch.equal(*parts)


def test_training_goes_on_where_it_was_stopped(
    scripts: tuple[ModuleType, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = scripts[1]
    texts = {"a.py": "def one(two):\n    return two + 1\n" * 400}
    stages = (script.Stage(3, 64), script.Stage(3, 128, spread=0.5))
    for name, value in {"STAGES": stages, "STEPS": 6, "TOKENS": 256, "EVERY": 2, "WARM_UP": 2}.items():
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr(script, "documents", lambda split: texts)
    threads = torch.get_num_threads()

    class Killed(Exception):
        pass

    def evaluate(*_: Any) -> float:
        if kills.pop(0):
            raise Killed
        return 0.0

    monkeypatch.setattr(script, "evaluate", evaluate)
    try:
        kills = [False] * 6
        script.train(tmp_path / "whole")
        kills = [False, True]
        with pytest.raises(Killed):
            script.train(tmp_path / "parts")
        kills = [False] * 6
        script.train(tmp_path / "parts")
    finally:
        torch.set_num_threads(threads)
    whole, parts = (
        [json.loads(line) for line in (tmp_path / name / "training.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    )
    assert whole[-1]["weights"] == parts[-1]["weights"]
    assert [line.get("loss") for line in parts] == [line.get("loss") for line in whole]
    assert not (tmp_path / "parts" / "checkpoint.safetensors").exists()
