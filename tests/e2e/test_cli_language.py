"""``foveate compare language`` as a user meets it: real files, real processes, kills, exit statuses."""

from __future__ import annotations

import gzip
import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_cli import foveate_command, refused
from test_resume import check_killed

import foveate

FAST = ("--steps", "20", "--seeds", "1", "--learning-rates", "0.003", "--workers", "1", "--context", "32")
SMALL = ("--set", "softmax_attention.dim=32", "--set", "softmax_attention.depth=1")
WORDS = ("time", "and", "space", "attend", "to", "the", "token", "that", "was", "read", "before", "it")


def sentences(count: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, 12)) + ".\n" for _ in range(count)]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A finished comparison of a folder of documents."""
    folder = tmp_path_factory.mktemp("language")
    (folder / "texts").mkdir()
    for i, text in enumerate(sentences(60)):
        (folder / "texts" / f"{i:02}.txt").write_text(text)
    (folder / "texts" / "empty.txt").write_text("")
    systems = ("--systems", "softmax_attention,lstm", *SMALL)
    result = foveate_command("compare", "language", "texts", *systems, *FAST, "--out", "run", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_a_comparison_ranks_by_bits_per_byte(compared):
    folder, result = compared
    board = json.loads((folder / "run" / "leaderboard.json").read_text())
    assert board["primary"] == "bits_per_byte"
    assert not board["higher_is_better"]
    rows = {row["system"]: row for row in board["rows"]}
    assert set(rows) == {"softmax_attention", "lstm", "token_frequencies", "ngram"}
    assert rows["lstm"]["status"] == "skipped"  # it cannot keep documents apart
    assert "cannot keep them apart" in rows["lstm"]["reason"]
    done = [row for row in rows.values() if row["status"] == "done"]
    assert all(0 < row["test"]["bits_per_byte"]["mean"] < 8 for row in done)
    for row in done:
        metrics = {name: row["test"][name]["mean"] for name in ("nats_per_token", "perplexity")}
        assert metrics["perplexity"] == pytest.approx(math.exp(metrics["nats_per_token"]))
    assert rows["ngram"]["test"]["bits_per_byte"]["mean"] < rows["token_frequencies"]["test"]["bits_per_byte"]["mean"]
    assert board["data"]["documents"] == 60
    assert board["data"]["empty_documents"] == 1
    assert board["data"]["divided_by"] == "document"
    assert (folder / "run" / "report.html").stat().st_size > 10_000
    assert "bits per byte" in result.stdout


def test_the_winner_scores_new_text(compared):
    folder, _ = compared
    (folder / "new.jsonl").write_text(json.dumps({"text": sentences(1, 1)[0]}) + '\n{"text": "Ünglaublich!"}\n')
    result = foveate_command("predict", "run/best", "new.jsonl", "--out", "scores.csv", cwd=folder)
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(folder / "scores.csv")
    assert list(table.columns) == ["document", "bytes", "tokens", "bits_per_byte", "nats_per_token", "perplexity"]
    assert table["document"].tolist() == ["new.jsonl:1", "new.jsonl:2"]
    assert table["bits_per_byte"][0] < table["bits_per_byte"][1]
    model = foveate.load(folder / "run" / "best")
    assert model.decode(model.encode("naïve")) == "naïve"
    (score,) = model.score([sentences(1, 1)[0]])
    assert score.bits_per_byte == pytest.approx(table["bits_per_byte"][0], rel=1e-5)
    assert set(os.listdir(folder / "run" / "best")) == {"config.json", "model.safetensors", "README.md"}


def test_train_with_a_tokenizer_of_ones_own(compared):
    tokenizers = pytest.importorskip("tokenizers")
    folder, _ = compared
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(sentences(20), trainer)
    inner.save(str(folder / "tokenizer.json"))
    with gzip.open(folder / "book.txt.gz", "wt") as file:
        file.write("".join(sentences(60)))
    arguments = (
        "book.txt.gz",
        "--system",
        "softmax_attention",
        "--tokenizer",
        "tokenizer.json",
        *SMALL,
        "--out",
        "one",
    )
    result = foveate_command("train", "language", *arguments, *FAST, cwd=folder)
    assert result.returncode == 0, result.stderr
    board = json.loads((folder / "one" / "leaderboard.json").read_text())
    assert board["data"]["tokenizer"] == "tokenizer.json"
    assert board["data"]["bytes_per_token"] > 2
    (folder / "tokenizer.json").unlink()  # best/ holds it
    result = foveate_command("predict", "one/best", "book.txt.gz", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1].startswith("book.txt.gz,")


def test_the_same_command_goes_on_and_other_options_are_refused(compared):
    folder, _ = compared
    systems = ("--systems", "softmax_attention,lstm", *SMALL)
    again = foveate_command("compare", "language", "texts", *systems, *FAST, "--out", "run", "--json", cwd=folder)
    assert again.returncode == 0, again.stderr
    other = [a if a != "32" else "16" for a in FAST]
    result = foveate_command("compare", "language", "texts", *systems, *other, "--out", "run", cwd=folder)
    refused(result, "context", "choose another folder with --out")


def test_killed_twice_it_ends_with_the_same_bits(tmp_path: Path):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in sentences(200)))
    settings = {
        "task": "language",
        "data": {"source": str(tmp_path / "texts.jsonl"), "context": 32},
        "systems": ["softmax_attention", "mamba2"],
        "options": {"softmax_attention": {"dim": 32, "depth": 1}, "mamba2": {"dim": 32, "depth": 1}},
        "steps": 150,
        "seeds": 1,
        "batch_size": 8,
        "learning_rates": [0.003],
        "workers": 2,
        "checkpoint_every": 0.2,
    }
    check_killed(settings, tmp_path, kills=2, seed=7)


@pytest.mark.parametrize(
    ("name", "content", "options", "parts"),
    [
        ("a.txt", b"caf\xe9 and more", (), ("'a.txt' is not utf-8: byte 3 (0xe9)", "--encoding")),
        ("a.txt", b" \n", (), ("'a.txt' holds no text",)),
        ("a.txt", b"a", (), ("'a.txt' has too few tokens (1)",)),
        ("a.jsonl", b'{"body": "a"}', (), ("unknown column 'text'", "body", "--column")),
        ("a.jsonl", b'{"text": "a"', (), ("line 1 is not JSON",)),
        ("a.txt", b"some text", ("--tokenizer", "gone.json"), ("tokenizer='gone.json' is not possible",)),
        ("a.txt", b"some text", ("--tokenizer", "a.txt"), ("'a.txt' is not a tokenizer.json",)),
        ("a.txt", b"some text", ("--encoding", "klingon"), ("encoding='klingon' is not possible",)),
        ("a.txt", b"some text", ("--stride", "999"), ("stride=999 is not possible",)),
        ("a.txt", b"some text " * 9, ("--systems", "sofmax_attention"), ("unknown system", "softmax_attention")),
    ],
)
def test_what_is_wrong_ends_in_one_sentence(tmp_path, name, content, options, parts):
    (tmp_path / name).write_bytes(content)
    refused(foveate_command("compare", "language", name, *options, "--steps", "1", cwd=tmp_path), *parts)
    assert not list(tmp_path.glob("foveate-runs/*/data"))
