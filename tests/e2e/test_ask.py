"""``foveate ask``: a server with faults, a kill and an interruption; a model on this machine; bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from foveate.files import read_jsonl
from tests.tiny_video_model import save_tiny
from tests.toy_clips import Stub, install, write_suite

pytest.importorskip("av")
ROOT = Path(__file__).resolve().parents[2]
CLIPS = Path(os.environ.get("FOVEATE_DATA", ROOT.parent / "shared" / "data")) / "video_clips"


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    install(tmp_path / "plugin")
    write_suite(tmp_path, 30)
    return tmp_path


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    path = os.pathsep.join((str(folder / "plugin"), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "foveate", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # where tests run in the background
    )


def run(folder: Path, *arguments: object) -> tuple[int, str, str]:
    process = start(folder, *arguments)
    out, error = process.communicate(timeout=120)
    return process.returncode, out, error


def ask(stub: Stub, *further: object) -> list[object]:
    common = ("--annotations", "toy.json", "--out", "answers.jsonl")
    videos = () if "--no-video" in further else ("--videos", "videos")
    return ["ask", "toy_clips", "--model", "m", "--endpoint", stub.url, *videos, *common, *further]


def lines(folder: Path) -> list[dict[str, Any]]:
    """Whole lines of a file that is being written."""
    return read_jsonl(folder / "answers.jsonl")


def wait_for(folder: Path, count: int) -> None:
    until = time.monotonic() + 60
    while len(lines(folder)) < count:
        assert time.monotonic() < until, "no answers come"
        time.sleep(0.02)


def test_faults_kills_and_resumes_lose_nothing_and_ask_nothing_twice(suite: Path):
    faults = ["429", "500", "hang", "cut", "half", "drop"]
    given = {f"way/{i}": [faults[i % 6]] for i in range(0, 30, 2)}
    with Stub(given, delay=0.1) as stub:
        arguments = ask(stub, "--concurrency", 3, "--timeout", 1)
        on_disk: list[set[str]] = []
        for _ in range(3):
            before = len(lines(suite))
            process = start(suite, *arguments)
            wait_for(suite, before + 3)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            on_disk.append({line["id"] for line in lines(suite)})
        asked_before = Counter(stub.answered)
        code, out, error = run(suite, *arguments, "--json")
        assert code == 0, error
        found = lines(suite)
        assert sorted(line["id"] for line in found) == sorted(f"way/{i}" for i in range(30))
        assert all(line["response"] == f"A for {line['id']}" for line in found)
        # What was on the disk at a kill was never asked again; only what was on its way, three at most, is.
        for kept in on_disk:
            assert all(stub.answered[id] == 1 for id in kept)
        lost = sum(stub.answered.values()) - 30
        assert lost <= 3 * 3
        record = json.loads(out)
        assert record["answered_before"] == len(on_disk[-1])
        assert record["left"] == 0
        assert record["answered"] + record["answered_before"] == 30
        assert sum(asked_before.values()) >= len(on_disk[-1])
        total = sum(stub.asked.values())
        code, out, _ = run(suite, *arguments)
        assert (code, sum(stub.asked.values())) == (0, total)
        assert "30 of 30 questions answered (30 before)" in out


def test_an_interruption_ends_cleanly_and_says_how_to_go_on(suite: Path):
    with Stub(delay=0.2) as stub:
        process = start(suite, *ask(stub, "--concurrency", 2))
        wait_for(suite, 3)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "interrupted: answers are in answers.jsonl; the same command goes on" in error
        assert "Traceback" not in error
        code, _, _ = run(suite, *ask(stub, "--concurrency", 8))
        assert code == 0
        assert set(stub.asked.values()) == {1}
    assert len(lines(suite)) == 30


def test_failures_are_listed_and_the_exit_status_tells(suite: Path):
    (suite / "videos" / "clip1.mp4").write_bytes(b"")
    with Stub({"way/0": ["400"]}) as stub:
        code, out, error = run(suite, *ask(stub, "--limit", 4))
    assert code == 1
    assert "1 of 4 questions answered" in out
    assert "3 failed; the same command asks them again" in out
    assert "way/1: " in out
    assert "clip1.mp4: is empty." in out
    assert "way/0: the server answers 400 Bad Request: no 400 today." in out
    assert "failed: way/0" in error
    assert len(read_jsonl(suite / "answers.jsonl.failed")) == 3


def test_keys_are_sent_and_kept_nowhere(suite: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", "sesame")
    with Stub() as stub:
        code, out, error = run(suite, *ask(stub, "--limit", 2, "--api-key-env", "MY_KEY", "--no-video"))
    assert code == 0, error
    assert stub.headers[0]["Authorization"] == "Bearer sesame"
    written = "".join(file.read_text() for file in suite.glob("answers*"))
    assert "sesame" not in out + error + written


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Stub]]:
    """A folder in which one question was asked, and the server that answered it."""
    folder = tmp_path_factory.mktemp("begun")
    install(folder / "plugin")
    write_suite(folder, 2)
    with Stub() as stub:
        assert run(folder, *ask(stub, "--limit", 1))[0] == 0
        yield folder, stub


@pytest.mark.parametrize(
    ("further", "sentence"),
    [
        (("--sampling", "shuffled"), "was begun with sampling='uniform', not 'shuffled'"),
        (("--frames", "8"), "was begun with frames=4, not 8"),
        (("--seed", "3"), "was begun with seed=0, not 3"),
        (("--frames", "8", "--fps", "1"), "do not go together"),
        (("--sampling", "sideways"), "unknown sampling 'sideways'"),
        (("--no-video", "--videos", "videos"), "--videos and --no-video do not go together"),
        (("--videos", "nowhere"), "--videos nowhere is not possible: there is no such folder"),
        (("--endpoint", "nowhere"), "endpoint 'nowhere' is no address"),
        (("--endpoint", "http://127.0.0.1:9/v1", "--out", "b.jsonl"), "no server answers there"),
        (("--api-key-env", "UNSET_KEY"), "the environment variable UNSET_KEY is not set"),
        (("--annotations", "none.json"), "none.json: cannot be read"),
        (("--concurrency", "0"), "concurrency=0"),
        (("--limit", "0"), "limit=0"),
        (("--body", "[1]"), "--body '[1]' is not possible"),
        (("--timeout", "0"), "timeout=0"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    begun: tuple[Path, Stub], further: tuple[str, ...], sentence: str, monkeypatch: pytest.MonkeyPatch
):
    folder, stub = begun
    monkeypatch.delenv("UNSET_KEY", raising=False)
    code, out, error = run(folder, *ask(stub, *further))
    assert (code, out) == (2, ""), error
    told = [line for line in error.splitlines() if not line.startswith("toy_clips · m")]
    assert len(told) == 1
    assert told[0].startswith("foveate: ")
    assert sentence in told[0]
    assert sum(stub.asked.values()) == 1


def test_an_unknown_suite_names_the_nearest(suite: Path):
    code, _, error = run(suite, "ask", "toy_clip", "--model", "m", "--annotations", "toy.json", "--no-video")
    assert code == 2
    assert "'toy_clips'" in error


def test_a_tiny_model_on_clips(suite: Path):
    pytest.importorskip("transformers")
    tiny = save_tiny(suite / "tiny")
    if CLIPS.is_dir():  # real ones where they are at hand
        for i, name in enumerate(("bikes.mp4", "small.avi")):
            shutil.copy(CLIPS / name, suite / "videos" / f"real{i}{Path(name).suffix}")
        entries = json.loads((suite / "toy.json").read_text())[:6]
        names = ("real0.mp4", "real1.avi", "clip0.mp4")
        entries = [{**entry, "video": names[i % 3]} for i, entry in enumerate(entries)]
        (suite / "toy.json").write_text(json.dumps(entries))
    common = ("--annotations", "toy.json", "--out", "answers.jsonl", "--max-tokens", 4, "--limit", 6)
    arguments = ("ask", "toy_clips", "--model", tiny, "--videos", "videos", "--batch", 2, *common)
    process = start(suite, *arguments)
    wait_for(suite, 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = lines(suite)
    code, out, error = run(suite, *arguments)
    assert code == 0, error
    assert f"6 of 6 questions answered ({len(kept)} before)" in out
    assert ("as a row of pictures" in error) is (find_spec("torchvision") is None)
    found = lines(suite)
    assert [line["id"] for line in found[: len(kept)]] == [line["id"] for line in kept]
    assert sorted(line["id"] for line in found) == [f"way/{i}" for i in range(6)]
    assert all(isinstance(line["response"], str) and line["frames"] == 4 for line in found)


def test_help_is_quick_and_light():
    code = (
        "import sys; sys.argv = ['foveate', 'ask', '--help']\nfrom foveate.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numpy', 'pandas', 'transformers', 'av', 'PIL'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
