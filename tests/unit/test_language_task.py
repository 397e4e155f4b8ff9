"""The task language: the store, parts without leakage, packed windows, scores against sums by hand, what is shipped."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_language_tokenise import byte_level
from torch import nn

import foveate
from foveate.errors import InvalidType, InvalidValue
from foveate.models.build import resolve
from foveate.models.language.ngram import NGram
from foveate.tasks.fit import FitStream
from foveate.tasks.language import protocol
from foveate.tasks.language.package import Score
from foveate.tasks.language.protocol import (
    LanguageInfo,
    borders,
    by_document,
    scoring_windows,
    training_begin,
    training_count,
    training_step,
)
from foveate.tasks.language.task import LanguageTask

SPLITS = ("train", "val", "test")
TEXT = "the quick brown fox jumps over the lazy dog, and then it sleeps. " * 60
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu")


def documents(count=60, seed=0):
    generator = np.random.default_rng(seed)
    return [f"{i}: " + " ".join(generator.choice(WORDS, generator.integers(1, 20))) + "." for i in range(count)]


def every(task, split):
    return task.batch(split, torch.arange(task.size(split)))


class Uniform(nn.Module):
    """Every token is as likely as any other; what it was given is kept."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary, self.seen = vocabulary, []

    def forward(self, x, segments=None):
        self.seen.append((x, segments))
        return torch.zeros(*x.shape, self.vocabulary)


# ----- windows


@settings(max_examples=200, deadline=None)
@given(
    begin=st.integers(0, 50), places=st.integers(1, 200), context=st.integers(1, 40), stride=st.integers(1, 40),
    most=st.none() | st.integers(1, 250),
)  # fmt: skip
def test_scored_windows_cover_a_part_once(begin, places, context, stride, most):
    stride = min(stride, context)
    windows = scoring_windows(begin, begin + places, context, stride, most)
    covered = [p for f, e in zip(windows.first, windows.end, strict=True) for p in range(f, e)]
    assert len(covered) == len(set(covered)) == windows.targets
    assert min(covered) >= begin
    assert max(covered) < begin + places
    if most is None or most >= places:
        assert covered == list(range(begin, begin + places))
    else:
        assert len(covered) <= most + context
    assert (windows.begin >= begin).all()
    assert (windows.end - windows.begin <= context).all()
    assert (windows.first >= windows.begin).all()
    full = windows.end - windows.begin == context
    assert full.all() or places < context


@settings(max_examples=100, deadline=None)
@given(places=st.integers(1, 500), context=st.integers(1, 40), most=st.integers(1, 100))
def test_training_windows_leave_no_token_out(places, context, most):
    before, protocol.MOST_WINDOWS = protocol.MOST_WINDOWS, most
    try:
        count = training_count(places, context)
        begin = training_begin(np.arange(count), places, context)
        step = training_step(places, context)
    finally:
        protocol.MOST_WINDOWS = before
    assert len(set(begin.tolist())) == count
    assert set(np.concatenate([np.arange(b, b + context) for b in begin])) >= set(range(places))
    assert begin.max() + context <= max(places, context)
    assert count <= most + 1 or step == context


# ----- reading and dividing


def test_a_single_text_is_divided_by_position():
    task = LanguageTask.prepare([TEXT], context=32)
    assert task.info == LanguageInfo(257, 32, False)
    facts = task.describe()
    assert facts["divided_by"] == "position"
    assert [facts["parts"][s]["bytes"] for s in SPLITS] == [3510, 195, 195]
    assert facts["tokens"] == len(TEXT) + 1
    first = task.batch("train", torch.tensor([0]))
    assert first.keys() == {"x", "y"}
    assert first["x"][0, :4].tolist() == [256, *b"the"]
    assert first["y"][0, :3].tolist() == list(b"the")
    last = task.batch("train", torch.tensor([task.size("train") - 1]))
    assert last["y"][0, -1] == ord(TEXT[3509])
    val, test = every(task, "val"), every(task, "test")
    read = bytes(val["y"][val["y"] >= 0].tolist()) + bytes(test["y"][test["y"] >= 0].tolist())
    assert read.decode() == TEXT[3510:]


def test_documents_are_divided_whole_and_packed():
    texts = documents()
    texts[7] = texts[3] = texts[50]  # copies stay together
    task = LanguageTask.prepare([texts[0], "", *texts[1:], "  \n"], context=48)
    facts = task.describe()
    assert (facts["documents"], facts["empty_documents"], facts["divided_by"]) == (60, 2, "document")
    assert facts["notes"] == ["2 empty documents were left out."]
    found = {}
    for split in SPLITS:
        stream = task.stream(split)
        whole = bytes(t if t < 256 else 0 for t in stream["y"][0].tolist()).decode().split("\0")
        assert whole[-1] == ""
        found[split] = whole[:-1]
        assert len(stream["segments"].unique()) == len(found[split])
    assert sorted(found["train"] + found["val"] + found["test"]) == sorted(texts)
    assert not set(found["train"]) & set(found["val"] + found["test"])
    for split in ("val", "test"):
        share = facts["parts"][split]["tokens"] / (facts["tokens"] - 1)
        assert 0.02 < share <= 0.05
    again = LanguageTask.prepare(texts, context=48, split_seed=1).describe()
    assert again["parts"] != facts["parts"]


def test_segments_say_where_documents_end():
    task = LanguageTask.prepare(documents(), context=48)
    for split in SPLITS:
        batch = every(task, split)
        x, y, segments = batch["x"], batch["y"], batch["segments"]
        assert (segments[:, 0] == 0).all()
        opens = (x[:, 1:] == 256) & (segments[:, 1:] != segments[:, :-1])
        assert torch.equal(segments[:, 1:], segments[:, :-1] + opens.long())
        asked = y[:, :-1] >= 0
        assert torch.equal(y[:, :-1][asked], x[:, 1:][asked])
        # What is asked at a document's last token is its end, and nothing of the next one.
        assert (y[:, :-1][opens & asked] == 256).all()


def test_few_documents_are_divided_by_position():
    task = LanguageTask.prepare(documents(10), context=16)
    assert task.describe()["divided_by"] == "position"
    assert task.info.packed
    assert by_document(np.ones(19), [bytes([i]) for i in range(19)], (0.9, 0.05, 0.05), 0) is None
    assert by_document(np.ones(40), [b"same"] * 40, (0.9, 0.05, 0.05), 0) is None
    part = by_document(np.ones(100), [bytes([i]) for i in range(100)], (0.8, 0.15, 0.05), 0)
    assert np.bincount(part).tolist() == [80, 15, 5]
    lengths = np.array([1000, *np.ones(99)])  # one document is larger than any share
    part = by_document(lengths, [bytes([i]) for i in range(100)], (0.9, 0.05, 0.05), 0)
    assert part[0] == 0


def test_texts_shorter_than_a_window_are_padded():
    task = LanguageTask.prepare(["a quick little text of forty-two characters"], context=64)
    for split in SPLITS:
        assert task.size(split) == 1
        batch = every(task, split)
        asked = batch["y"] >= 0
        assert 0 < asked.sum() < 64
        assert (batch["x"][~asked] == 256).all()
    assert every(task, "train")["x"].shape == (1, 64)
    packed = LanguageTask.prepare(["one " * 4, "two " * 4, "three " * 4], context=64)
    segments = every(packed, "train")["segments"]
    real = int((every(packed, "train")["y"] >= 0).sum())
    assert not set(segments[0, real:].tolist()) & set(segments[0, :real].tolist())


def test_whole_trains_on_everything():
    task = LanguageTask.prepare([TEXT], context=32)
    whole = task.whole()
    assert whole.info == task.info
    assert whole.size("train") == len(TEXT) - 32 + 1
    assert bytes(whole.stream("train")["y"][0].tolist()).decode() == TEXT
    assert torch.equal(every(whole, "val")["x"], every(task, "val")["x"])


# ----- the store


@pytest.mark.parametrize("tokenizer", ["bytes", "characters", "bpe"])
@pytest.mark.parametrize("packed", [True, False])
def test_what_is_saved_comes_back(tmp_path, tokenizer, packed):
    if tokenizer == "bpe":
        byte_level().save(str(tmp_path / "tokenizer.json"))
        tokenizer = tmp_path
    task = LanguageTask.prepare(documents() if packed else [TEXT], context=24, tokenizer=tokenizer, stride=10)
    task.save(tmp_path / "data")
    again = LanguageTask.load(tmp_path / "data")
    assert again.info == task.info
    assert again.describe() == task.describe()
    assert isinstance(again._store.tokens, np.memmap)
    assert again._store.tokens.dtype == (np.uint8 if tokenizer == "characters" else np.uint16)
    for split in SPLITS:
        for name, value in every(task, split).items():
            assert torch.equal(every(again, split)[name], value)
    model = Uniform(task.info.vocabulary)
    assert again.evaluate(model, "test").metrics == task.evaluate(model, "test").metrics


def test_damaged_stores_are_refused(tmp_path):
    task = LanguageTask.prepare([TEXT], context=32)
    task.save(tmp_path)
    whole = (tmp_path / "tokens.bin").read_bytes()
    (tmp_path / "tokens.bin").write_bytes(whole[:-2])
    with pytest.raises(InvalidValue, match=r"tokens\.bin has 7800 bytes instead of 7802: the prepared data is damaged"):
        LanguageTask.load(tmp_path)
    (tmp_path / "tokens.bin").unlink()
    with pytest.raises(InvalidValue, match=r"tokens\.bin is missing"):
        LanguageTask.load(tmp_path)
    with pytest.raises(InvalidValue, match="is missing"):
        LanguageTask.load(tmp_path / "elsewhere")


# ----- scores


@pytest.mark.parametrize("stride", [None, 5])
@pytest.mark.parametrize("source", [[TEXT], documents()], ids=["text", "documents"])
def test_a_uniform_model_costs_what_it_must(source, stride):
    task = LanguageTask.prepare(source, context=32, stride=stride)
    for split in ("val", "test"):
        part = task.describe()["parts"][split]
        found = task.evaluate(Uniform(257), split, batch_size=3)
        assert list(found.metrics) == list(task.spec.metrics)
        assert found.metrics["nats_per_token"] == pytest.approx(math.log(257), rel=1e-6)
        assert found.metrics["perplexity"] == pytest.approx(257, rel=1e-5)
        bits = math.log2(257) * part["tokens"] / part["bytes"]
        assert found.metrics["bits_per_byte"] == pytest.approx(bits, rel=1e-6)
        assert float(found.per_sample.mean()) == found.metrics["bits_per_byte"]
        assert len(found.per_sample) == task.size(split)


def test_bits_per_byte_do_not_depend_on_the_tokens(tmp_path):
    """A model that knows the text but for a fixed cost per byte scores the same, whatever the tokens."""
    byte_level().save(str(tmp_path / "tokenizer.json"))
    for tokenizer in ("bytes", tmp_path):
        task = LanguageTask.prepare(documents(), context=32, tokenizer=tokenizer)
        widths = task._store.widths
        scored = task.describe()["parts"]["test"]["scored_bytes"]
        batch = every(task, "test")
        nats = (batch["y"] >= 0).sum() * math.log(task.info.vocabulary)
        found = task.evaluate(Uniform(task.info.vocabulary), "test").metrics["bits_per_byte"]
        assert found == pytest.approx(float(nats) / scored / math.log(2), rel=1e-6)
        text = sum(len(t.encode()) for t in documents())
        assert sum(task.describe()["parts"][s]["bytes"] for s in SPLITS) == text == task.describe()["bytes"]
        assert widths is None or int(widths.sum()) == text


def test_an_overlap_gives_context_and_changes_no_target():
    plain, overlapping = (LanguageTask.prepare([TEXT], context=32, stride=s) for s in (None, 4))
    model = NGram(257, order=12, entries=20_000)
    model.fit(plain.stream())
    without, with_it = (t.evaluate(model, "test").metrics["bits_per_byte"] for t in (plain, overlapping))
    assert with_it < without
    asked = [b["y"][b["y"] >= 0].tolist() for b in (every(plain, "test"), every(overlapping, "test"))]
    assert asked[0] == asked[1]


def test_only_some_windows_are_scored_of_much_text():
    task = LanguageTask.prepare([TEXT * 4], context=16, eval_tokens=64, test_tokens=100)
    parts = task.describe()["parts"]
    assert (parts["val"]["windows"], parts["val"]["scored_tokens"]) == (4, 64)
    assert (parts["test"]["windows"], parts["test"]["scored_tokens"]) == (6, 96)
    assert parts["val"]["tokens"] == 780
    starts = task._windows["val"].begin
    assert (np.diff(starts) > 150).all()


def test_training_samples_do_not_see_the_other_parts():
    task = LanguageTask.prepare([TEXT], context=32)
    changed = LanguageTask.prepare([TEXT[:3510] + TEXT[3510:].upper()], context=32)
    for name, value in every(task, "train").items():
        assert torch.equal(every(changed, "train")[name], value)


def test_wrong_answers_are_refused():
    task = LanguageTask.prepare([TEXT], context=16)
    with pytest.raises(InvalidValue, match=r"Uniform returned \(195, 16, 3\): logits are a tensor"):
        task.apply(Uniform(3), task.batch("val", torch.zeros(195, dtype=torch.int64)))
    with pytest.raises(InvalidValue, match="val and test are scored"):
        task.evaluate(Uniform(257), "train")


def test_the_baselines_are_fitted_to_the_stream():
    task = LanguageTask.prepare(documents(200), context=32)
    scores = {}
    for name in task.spec.baselines:
        model = resolve(name).build(task.info, {})
        FitStream(task).fit(model, None)
        scores[name] = task.evaluate(model, "test").metrics["bits_per_byte"]
    assert scores["ngram"] < 0.6 * scores["token_frequencies"] < math.log2(257)


def test_a_model_is_given_segments_only_where_there_are_several_documents():
    for source, packed in ((documents(), True), ([TEXT], False)):
        task, model = LanguageTask.prepare(source, context=32), Uniform(257)
        task.loss(model, task.batch("train", torch.arange(3)))
        assert (model.seen[0][1] is not None) == packed
        assert task.loss(model, task.batch("train", torch.arange(3))) == pytest.approx(math.log(257))


# ----- what is shipped


@pytest.fixture(scope="module")
def packaged():
    task = LanguageTask.prepare(documents(200), context=24)
    model = NGram(257, order=4)
    model.fit(task.stream())
    return task, task.package(model)


def test_texts_are_scored_as_in_a_comparison(packaged):
    task, model = packaged
    texts = [t + "\0" for t in documents(200)]
    stream = task.stream("test")["y"][0].tolist()
    whole = bytes(t if t < 256 else 0 for t in stream).decode()
    test = [t[:-1] for t in texts if t in whole]
    scores = model.score(test, batch_size=3)
    assert sum(s.tokens for s in scores) == len(stream)
    assert [s.bytes for s in scores] == [len(t) for t in test]
    alone = model.score([test[0]])[0]
    assert alone.nats == pytest.approx(scores[0].nats, rel=1e-9)
    bits = sum(s.nats for s in scores) / sum(s.bytes for s in scores) / math.log(2)
    # Windows of the comparison cut documents in two, these do not.
    assert bits == pytest.approx(task.evaluate(model.model, "test").metrics["bits_per_byte"], rel=0.15)


def test_a_score_is_the_chain_of_its_tokens(packaged):
    _, model = packaged
    tokens = torch.tensor([[256, *model.encode("alpha beta"), 256]])
    logits = model(tokens[:, :-1])
    nats = -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).sum()
    found = model.score(["alpha beta", ""])
    assert found[0].nats == pytest.approx(float(nats), rel=1e-6)
    assert (found[0].tokens, found[0].bytes) == (11, 10)
    assert (found[1].tokens, found[1].bytes) == (1, 0)
    assert math.isnan(found[1].bits_per_byte)
    assert Score(math.log(2) * 8, 4, 8).bits_per_byte == pytest.approx(1.0)


def test_one_text_has_no_end():
    task = LanguageTask.prepare([TEXT], context=24)
    model = task.package(Uniform(257))
    assert not model.ends_documents
    assert model.score(["abc"])[0].tokens == 3


def test_the_config_makes_it_anew(packaged):
    task, model = packaged
    config = json.loads(json.dumps(model.config))
    again = LanguageTask.unpack(config, lambda info: NGram(info.vocabulary, order=4))
    again.load_state_dict(model.state_dict())
    assert again.info == task.info
    tokens = model.example_inputs(2)["tokens"]
    assert tokens.shape == (2, 24)
    assert torch.equal(again(tokens), model(tokens))
    assert again.decode(again.encode("gamma é")) == "gamma é"
    shape = tuple(model(torch.zeros(1, 24, dtype=torch.int64)).shape)
    assert str(shape) == model.interface()["shape"]


@pytest.mark.parametrize("name", ["softmax_attention", "mamba"])
def test_it_is_exported(name, tmp_path):
    task = LanguageTask.prepare([TEXT], context=24)
    model = task.package(resolve(name).build(task.info, {"dim": 16, "depth": 1})).eval()
    made = foveate.export(model, tmp_path / "m.pt2")
    assert made.facts["task"] == "language"
    assert made.facts["package"]["tokeniser"] == {"kind": "bytes"}
    program = torch.export.load(tmp_path / "m.pt2").module()
    length = 31 if name == "softmax_attention" else 24  # one file for every length, or for the context alone
    tokens = torch.randint(257, (3, length), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(program(tokens), model(tokens), atol=1e-5, rtol=1e-5)


def test_tokens_that_are_refused(packaged):
    _, model = packaged
    for tokens, says in (
        (torch.zeros(3, dtype=torch.int64), "int64 \\(batch, length\\) is needed"),
        (torch.zeros(1, 3), "int64 \\(batch, length\\) is needed"),
        (torch.full((1, 3), 257), "token 257 is not in the vocabulary: numbers are 0 ... 256"),
        (torch.full((1, 3), -1), "token -1 is not in the vocabulary"),
    ):
        with pytest.raises(InvalidValue, match=says):
            model(tokens)


def test_predict_scores_every_document(packaged, tmp_path):
    _, model = packaged
    (tmp_path / "a.jsonl").write_text('{"text": "alpha beta"}\n{"text": ""}\n{"text": "é"}')
    table = LanguageTask.predict(model, tmp_path / "a.jsonl")
    assert table["document"].tolist() == ["a.jsonl:1", "a.jsonl:3"]
    assert table["bytes"].tolist() == [10, 2]
    assert table["tokens"].tolist() == [11, 3]
    assert table["bits_per_byte"][0] < table["bits_per_byte"][1]
    with pytest.raises(InvalidValue, match="holds no text: all 1 documents of it are empty"):
        LanguageTask.predict(model, [" "])
    with pytest.raises(InvalidType, match="id='x' is not possible: texts have no such column"):
        LanguageTask.predict(model, ["a"], id="x")
    foreign = LanguageTask.prepare([TEXT], tokenizer="characters", context=8).package(Uniform(30))
    with pytest.raises(InvalidValue, match="'text 0': the character 'É'"):
        LanguageTask.predict(foreign, ["É"])


def test_predict_reads_as_training_did(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"body": TEXT, "text": "no"}), encoding="utf-16")
    task = LanguageTask.prepare(tmp_path / "a.jsonl", column="body", encoding="utf-16", context=16)
    table = LanguageTask.predict(task.package(Uniform(257)), tmp_path / "a.jsonl")
    assert table["bytes"].tolist() == [len(TEXT)]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (["", " \n"], "'texts' holds no text: all 2 documents of it are empty"),
        (["a"], "'texts' has too few tokens (1) for a training, a validation and a test part"),
        ([], "'texts' holds no text"),
    ],
)
def test_data_that_is_refused(source, says):
    with pytest.raises(InvalidValue) as found:
        LanguageTask.prepare(source)
    assert says in str(found.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"context": 0}, "context=0 is not possible: a positive whole number is needed"),
        ({"context": 2.5}, "context=2.5 is not possible"),
        ({"stride": 17}, "stride=17 is not possible: a whole number from 1 to 16 is needed"),
        ({"eval_tokens": 0}, "eval_tokens=0 is not possible"),
        ({"test_tokens": -3}, "test_tokens=-3 is not possible"),
        ({"split": "0.5/0.5"}, "split='0.5/0.5' is not possible: shares train/val/test, such as 0.9/0.05/0.05"),
        ({"split": "0.5/0.2/0.2"}, "the shares must sum to 1"),
        ({"split_seed": -1}, "split_seed=-1 is not possible"),
        ({"tokenizer": "gone"}, "tokenizer='gone' is not possible"),
    ],
)
def test_options_that_are_refused(options, says):
    with pytest.raises((InvalidValue, InvalidType)) as found:
        LanguageTask.prepare([TEXT], **{"context": 16, **options})
    assert says in str(found.value)
    with pytest.raises(InvalidValue, match="too few tokens"):
        borders(2, (0.9, 0.05, 0.05), "x")


def test_facts_are_plain_and_tell_data_apart():
    task = LanguageTask.prepare(None, context=64)
    facts = task.describe()
    assert facts["source"] == "embedded text"
    assert facts["bytes"] == 148_476
    assert json.loads(json.dumps(facts)) == facts
    assert facts["sha256"] != LanguageTask.prepare([TEXT]).describe()["sha256"]
    assert dataclasses.asdict(task.info) == {"vocabulary": 257, "context": 64, "packed": False}
    assert task.sample_tokens == 64
