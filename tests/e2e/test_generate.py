"""``foveate generate`` as its user meets it: prompts from everywhere, pipes, files, an interruption, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import foveate
from foveate.checkpoint import save
from foveate.cli.main import main
from foveate.generation import generate
from foveate.models import MixerNet
from foveate.models.language.language_model import LanguageModel
from foveate.models.language.lightning_attention import TransNormerLLM
from foveate.tasks.language.package import TextModel
from foveate.tasks.language.protocol import LanguageInfo

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with random weights: bytes with and without an end of document, a bounded one, others."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    size = {"dim": 16, "depth": 1, "num_heads": 2}
    TransNormerLLM(vocabulary=257, **size).save_pretrained(folder / "ends")
    LanguageModel("gru", vocabulary=256, **size).save_pretrained(folder / "bytes")
    LanguageModel("gru", vocabulary=256, context=8, positions="learned", **size).save_pretrained(folder / "short")
    LanguageModel("mamba", vocabulary=50, **size).save_pretrained(folder / "small")
    for name, packed in (("documents", True), ("book", False)):
        info = LanguageInfo(vocabulary=257, context=16, packed=packed)
        model = LanguageModel("mamba", vocabulary=257, context=16, **size)
        packaged = TextModel(model, info, tokeniser={"kind": "bytes"}, stride=16, reading={})
        about = {"task": "language", "system": "mamba", "options": size, "package": packaged.config}
        save(folder / name, packaged, about)
    MixerNet("gru", size=48, channels=2, outputs=6, dim=16, depth=1).save_pretrained(folder / "series")
    (folder / "prompts.txt").write_text("first one\n\nsecond\n", "utf-8")
    (folder / "prompts.jsonl").write_text('{"prompt": "two\\nlines"}\n{"prompt": ""}\n', "utf-8")
    (folder / "broken.txt").write_bytes(b"fine\n\xff\n")
    (folder / "broken.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n', "utf-8")
    (folder / "none.jsonl").write_text("{\n", "utf-8")
    (folder / "empty.txt").write_text(" \n\n", "utf-8")
    return folder


def start(folder: Path, *arguments: object, **options: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "foveate", "generate", *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # where tests run in the background
    )


def run(folder: Path, *arguments: object, given: bytes = b"") -> tuple[int, str, str]:
    process = start(folder, *arguments)
    out, error = process.communicate(given, timeout=120)
    return process.returncode, out.decode("utf-8"), error.decode("utf-8")


@pytest.fixture
def here(models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """The same command in this process, which has torch already: exit status, output, errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.chdir(models)
        monkeypatch.setattr(sys, "argv", ["foveate", "generate", *map(str, arguments)])
        monkeypatch.setattr("gc.freeze", lambda: None)
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture
def texts(here: Callable[..., Any]) -> Callable[..., list[dict[str, Any]]]:
    """The texts of the command's JSON."""

    def call(*arguments: object) -> list[dict[str, Any]]:
        code, out, error = here(*arguments, "--json")
        assert code == 0, error
        return json.loads(out)["texts"]

    return call


def test_a_text_goes_to_standard_output_and_what_it_took_to_standard_error(models: Path, texts: Any):
    code, out, error = run(models, "bytes", "To be", "--tokens", 30, "--temperature", 0.7)
    assert code == 0, error
    (record,) = texts("bytes", "To be", "--tokens", 30, "--temperature", 0.7)
    assert out == f"To be{record['text']}\n"
    assert (record["tokens"], record["reason"]) == (30, "length")
    assert "foveate: 30 tokens, " in error
    assert "tokens/s; prompt of 5 tokens in " in error
    assert "; state " in error
    _, out, _ = run(models, "bytes", "To be", "--tokens", 30, "--temperature", 0.7, "--no-prompt")
    assert out == f"{record['text']}\n"


def test_prompts_come_from_words_and_files(texts: Any):
    alone = ["--tokens", 5, "--batch", 1]
    assert [t["prompt"] for t in texts("ends", "a", "b", *alone)] == ["a", "b"]
    found = texts("ends", "a", "--file", "prompts.txt", *alone)
    assert [t["prompt"] for t in found] == ["a", "first one", "second"]
    assert found == texts("ends", "a", "--file", "prompts.txt", "--tokens", 5, "--prefill-chunk", 2)
    found = texts("ends", "--file", "prompts.jsonl", *alone)
    assert [t["prompt"] for t in found] == ["two\nlines", ""]
    assert [t["prompt"] for t in texts("ends", *alone)] == [""]
    assert texts("ends", "b", "--seed", 1, *alone) == texts("ends", "a", "b", *alone)[1:]


def test_lines_are_written_as_texts_end_and_never_over_others(here: Any, tmp_path: Path):
    out = tmp_path / "texts.jsonl"
    command = ("bytes", "a", "b", "--tokens", 9, "--out", out)
    assert here(*command)[0] == 0
    before = out.read_bytes()
    assert [json.loads(line)["prompt"] for line in before.splitlines()] == ["a", "b"]
    code, _, error = here(*command, "--seed", 5)
    assert code == 2
    assert f"--out {out} exists: choose another name, or replace it with --force" in error
    assert out.read_bytes() == before
    assert here(*command, "--seed", 5, "--force")[0] == 0
    assert out.read_bytes() != before


def test_a_stop_text_ends_a_text(texts: Any):
    (whole,) = texts("bytes", "x", "--tokens", 200, "--seed", 3)
    stop = whole["text"][20]
    (found,) = texts("bytes", "x", "--tokens", 200, "--seed", 3, "--stop", stop)
    assert found["text"] == whole["text"][: whole["text"].index(stop)]
    assert found["reason"] == "stopped"


def test_an_interruption_keeps_what_was_written(models: Path, tmp_path: Path):
    out = tmp_path / "texts.jsonl"
    process = start(models, "bytes", "once", "twice", "--tokens", 10**7, "--out", out)
    assert process.stdout is not None
    assert process.stdout.read(40).startswith(b"[1 of 2]\nonce")  # it streams
    process.send_signal(signal.SIGINT)
    rest, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    said = error.decode()
    assert "Traceback" not in said
    assert "foveate: interrupted: this is what was written so far." in said
    assert "tokens/s" in said
    assert b"[2 of 2]\ntwice" in rest
    kept = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [k["reason"] for k in kept] == ["interrupted"] * 2
    assert all(k["tokens"] > 1 for k in kept)


def test_a_reader_that_goes_away_ends_it(models: Path):
    process = start(models, "bytes", "once", "--tokens", 10**7)
    assert process.stdout is not None
    process.stdout.read(20)
    process.stdout.close()
    until = time.monotonic() + 30
    while process.poll() is None:
        assert time.monotonic() < until, "it goes on for nobody"
        time.sleep(0.05)
    assert process.returncode != 0
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()


def test_a_packaged_model_begins_a_document_if_it_knows_of_them(models: Path, here: Any):
    for name, opening in (("documents", 1), ("book", 0)):
        code, out, error = here(name, "abc", "--tokens", 9, "--json")
        assert code == 0, error
        assert json.loads(out)["speed"]["prompt_tokens"] == 3 + opening
        assert here(name, "--tokens", 9)[0] == 0  # an empty text begins with it either way
    packaged = foveate.load(models / "documents")
    end = packaged.end_of_document
    run = generate(packaged.model, [[end, *b"abc"]], max_tokens=9, stop=[end])
    text = packaged.decode(run.finish()[0].tokens)
    _, out, _ = here("documents", "abc", "--tokens", 9, "--no-prompt")
    assert text.startswith(out.rstrip("\n"))


REFUSED = [
    (("nowhere", "a"), "nowhere is not a trained model"),
    (("series", "a"), "series holds 'gru', which reads series: it writes no text"),
    (("small", "a"), "small has a vocabulary of 50 tokens and no tokenizer beside it: give its --tokenizer"),
    (("documents", "a", "--tokenizer", "bytes"), "--tokenizer is not possible for documents: it has its own"),
    (("small", "a", "--tokenizer", "bytes"), "a vocabulary of 50 tokens, and the tokenizer 'bytes' has 256, or 257"),
    (("small", "a", "--tokenizer", "characters"), "which characters its tokens were is not on record"),
    (("small", "a", "--tokenizer", "nowhere.json"), "tokenizer='nowhere.json' is not possible: there is no such file"),
    (("bytes", "\udcff"), "the prompt '\\udcff' is not UTF-8"),
    (("bytes",), "prompt 0 is empty: the model has no token that begins a document"),
    (("short", "more than eight"), "prompt 0 has 15 tokens, and LanguageModel reads at most 8"),
    (("bytes", "a", "--tokens", 0), "--tokens 0 is not possible"),
    (("bytes", "a", "--temperature", -1), "temperature=-1.0 is not possible"),
    (("bytes", "a", "--top-p", 2), "top_p=2.0 is not possible"),
    (("bytes", "a", "--stop", ""), "a stop text is empty"),
    (("bytes", "a", "--threads", 0), "--threads 0 is not possible"),
    (("bytes", "a", "--batch", 0), "batch=0 is not possible"),
    (("bytes", "a", "--out", "texts.txt"), "the name must end in .jsonl"),
    (("bytes", "a", "--out", "nowhere/texts.jsonl"), "the folder nowhere does not exist"),
    (("bytes", "--file", "nowhere.txt"), "--file nowhere.txt cannot be read: No such file"),
    (("bytes", "--file", "broken.txt"), "--file broken.txt is not UTF-8: byte 5 is 0xff"),
    (("bytes", "--file", "broken.jsonl"), "--file broken.jsonl: line 2 has no text in a field 'prompt'"),
    (("bytes", "--file", "none.jsonl"), "--file none.jsonl: line 1 is not JSON"),
    (("bytes", "--file", "empty.txt"), "--file empty.txt has no prompt: every line is empty"),
]


@pytest.mark.parametrize(
    ("arguments", "said"), REFUSED, ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else ""
)
def test_bad_input_is_one_sentence(here: Any, arguments: tuple[object, ...], said: str):
    code, out, error = here(*arguments)
    assert code == 2, error
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert out == ""


def test_standard_input_is_one_prompt(models: Path):
    code, out, error = run(models, "bytes", "-", "--tokens", 1, given="gr\u00fc\u00dfe\n".encode())
    assert code == 0, error
    assert out.startswith("gr\u00fc\u00dfe\n")


def test_a_bounded_context_ends_a_text(texts: Any):
    (found,) = texts("short", "abcd", "--tokens", 50)
    assert (found["tokens"], found["reason"]) == (5, "full")


def test_standard_input_that_is_no_text_is_refused(models: Path):
    code, _, error = run(models, "bytes", "-", given=b"ab\xff")
    assert code == 2
    assert "standard input is not UTF-8: byte 2 is 0xff" in error
