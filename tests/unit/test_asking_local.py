"""A model of transformers answers: the same alone and in a batch, by what it is shown, failures on record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foveate.asking.asked import Asked
from foveate.asking.run import ask
from foveate.asking.sampling import Sampling
from foveate.errors import InvalidValue
from foveate.files import read_jsonl
from tests.tiny_video_model import save_tiny
from tests.toy_clips import ToyClips, write_clip, write_suite

pytest.importorskip("av")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def local(tiny: Path, **options: Any):
    from foveate.asking.local import Local

    return Local(str(tiny), max_tokens=6, **options)


def answers(folder: Path, model: Any, name: str, **options: Any) -> dict[str, str]:
    suite = ToyClips(folder / "toy.json")
    ask(suite, model, folder / name, **{"videos": folder / "videos", **options})
    return {line["id"]: line["response"] for line in read_jsonl(folder / name)}


def test_batches_say_what_single_questions_say(tiny: Path, tmp_path: Path):
    write_suite(tmp_path, 5, 2)
    entries = json.loads((tmp_path / "toy.json").read_text())
    entries = [{**entry, "id": "way/" + i * "0"} for i, entry in enumerate(entries)]  # prompts differ in length
    (tmp_path / "toy.json").write_text(json.dumps(entries))
    alone = answers(tmp_path, local(tiny), "alone.jsonl")
    together = answers(tmp_path, local(tiny, batch=3), "together.jsonl")
    assert len(alone) == 5
    assert all(alone.values())
    assert alone == together


def test_only_as_many_frames_go_together(tiny: Path, tmp_path: Path):
    write_suite(tmp_path, 8, 2)
    model, sizes = local(tiny, batch=4), []
    inner = model._generate

    def watched(group: list[Any]) -> list[str]:
        sizes.append([len(asked.frames) for asked in group])
        return inner(group)

    model._generate = watched  # type: ignore[method-assign]
    # One frame a second: the question at 1 s sees one, that at 2 s two, then three.
    found = answers(tmp_path, model, "seconds.jsonl", sampling=Sampling.of(ToyClips.shown, fps=1))
    assert len(found) == 8
    assert sorted(sizes) == [[1], [2], [3, 3], [3, 3, 3, 3]]


def test_frames_and_their_order_matter(tiny: Path, tmp_path: Path):
    write_suite(tmp_path, 4, 1)
    model = local(tiny)
    seen: list[Any] = []
    inner = model.processor.__class__.__call__

    def watched(self: Any, *given: Any, **named: Any) -> Any:
        seen.append(named)
        return inner(self, *given, **named)

    model.processor.__class__.__call__ = watched
    try:
        answers(tmp_path, model, "a.jsonl", limit=1)
        answers(tmp_path, model, "b.jsonl", limit=1, sampling=Sampling("reversed", 4))
        answers(tmp_path, model, "c.jsonl", limit=1, videos=None)
    finally:
        model.processor.__class__.__call__ = inner
    straight, reverse, blind = seen
    assert [f.mean() for f in straight["images"][0]] == [f.mean() for f in reverse["images"][0]][::-1]
    assert "Look well." in straight["text"][0]
    assert straight["text"][0].count("<|image_pad|>") == 4
    assert "images" not in blind
    assert "<|image_pad|>" not in blind["text"][0]
    assert "[way/0] 0 frames." in blind["text"][0]


def test_what_the_model_fails_at_is_on_record_and_the_rest_goes_on(tiny: Path, tmp_path: Path):
    write_suite(tmp_path, 6, 6)
    (tmp_path / "videos" / "clip1.mp4").unlink()
    write_clip(tmp_path / "videos" / "clip2.mp4", 1)
    model = local(tiny, batch=3)
    inner = model._generate

    def failing(group: list[Any]) -> list[str]:
        if any(asked.question.id == "way/3" for asked in group):
            raise RuntimeError("out of\nmemory")
        return inner(group)

    model._generate = failing  # type: ignore[method-assign]
    suite = ToyClips(tmp_path / "toy.json")
    summary = ask(suite, model, tmp_path / "a.jsonl", videos=tmp_path / "videos")
    assert summary.failures.keys() == {"way/1", "way/3"}
    assert summary.failures["way/3"] == "the model fails: out of memory."
    assert summary.answered == 4


def test_a_model_without_a_chat_template_is_given_prompts_as_they_are(tmp_path: Path):
    model = local(save_tiny(tmp_path / "plain", template=None))
    assert "no chat template" in model.notes()[-1]
    write_suite(tmp_path, 2)
    assert len(answers(tmp_path, model, "a.jsonl")) == 2
    asked = Asked(next(iter(ToyClips(tmp_path / "toy.json").questions.values())), "Look.", "Which?", [0, 0])
    assert model._text(asked) == "<|image_pad|>\n<|image_pad|>\nLook.\nWhich?"
    assert model._text(replace(asked, frames=())) == "Look.\nWhich?"


def test_models_that_cannot_be_opened(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch):
    import transformers

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InvalidValue, match=r"model '.*none' cannot be opened"):
        local(tmp_path / "none")
    text = tmp_path / "text"
    transformers.AutoTokenizer.from_pretrained(tiny).save_pretrained(text)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.LlamaConfig(**small).save_pretrained(text)
    with pytest.raises(InvalidValue, match="reads no pictures"):
        local(text)
    with pytest.raises(InvalidValue, match="batch=0"):
        local(tiny, batch=0)
