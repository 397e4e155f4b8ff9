"""Asking a suite: what is shown and said, what is on the disk, what is asked again, and when a run gives up."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import pytest
from rich.console import Console

from foveate.asking import answers as answers_module
from foveate.asking import client as client_module
from foveate.asking.answers import Answers
from foveate.asking.asked import find_video
from foveate.asking.client import Client
from foveate.asking.display import Display
from foveate.asking.endpoint import Endpoint
from foveate.asking.run import ask
from foveate.asking.sampling import Sampling
from foveate.errors import InvalidValue
from foveate.files import read_jsonl
from foveate.scorers.score import score
from tests.toy_clips import Stub, ToyClips, number_of, pictures, write_clip, write_suite

pytest.importorskip("av")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_WAIT", 0.01)


def run(folder: Path, stub: Stub, *, retries: int = 3, timeout: float = 0.5, workers: int = 3, **options: Any):
    suite = ToyClips(folder / "toy.json")
    model = Endpoint(Client(stub.url, "m", retries=retries, timeout=timeout), concurrency=workers)
    options = {"videos": folder / "videos", **options}
    return ask(suite, model, folder / "answers.jsonl", **options)


def test_frames_prompts_and_answers(tmp_path: Path):
    write_suite(tmp_path, 4)
    with Stub() as stub:
        summary = run(tmp_path, stub, workers=1)  # so that later questions find frames of earlier ones
    assert (summary.total, summary.answered, summary.left, summary.failures) == (4, 4, 0, {})
    assert all(count == 1 for count in stub.asked.values())
    by_id = {body["messages"][1]["content"][-1]["text"].split("]")[0][1:]: body for body in stub.bodies}
    first = by_id["way/0"]
    assert first["messages"][0] == {"role": "system", "content": "Look well."}
    assert first["messages"][1]["content"][-1]["text"] == "[way/0] 4 frames. Which way?"
    # The question is asked at 1 s of a clip of 8 frames a second: no frame after the eighth is shown.
    assert [number_of(frame) for frame in pictures(first)] == [0, 2, 4, 7]
    for id in ("way/2", "way/3"):
        assert [number_of(frame) for frame in pictures(by_id[id])] == [0, 7, 15, 23]
    lines = {line["id"]: line for line in read_jsonl(tmp_path / "answers.jsonl")}
    assert lines["way/0"]["response"] == "A for way/0"
    assert (lines["way/0"]["frames"], lines["way/0"]["from"], lines["way/0"]["to"]) == (4, 0.0, 0.875)
    assert score(ToyClips(tmp_path / "toy.json"), tmp_path / "answers.jsonl").missing == []


@pytest.mark.parametrize(
    ("way", "shown"), [("reversed", [7, 4, 2, 0]), ("single", [3]), ("stream", [0, 2, 4, 7]), ("fps", [0])]
)
def test_ways_of_showing(tmp_path: Path, way: str, shown: list[int]):
    write_suite(tmp_path, 1)
    with Stub() as stub:
        run(tmp_path, stub, sampling=Sampling.of(ToyClips.shown, way))
    assert [number_of(frame) for frame in pictures(stub.bodies[0])] == shown


def test_text_only(tmp_path: Path):
    write_suite(tmp_path, 2)
    with Stub() as stub:
        run(tmp_path, stub, videos=None, limit=1)
    assert [body["messages"][1]["content"] for body in stub.bodies] == ["[way/0] 0 frames. Which way?"]
    assert json.loads((tmp_path / "answers.jsonl.settings").read_text())["videos"] is None


def test_bad_videos_and_refusals_are_on_record_and_the_rest_goes_on(tmp_path: Path):
    write_suite(tmp_path, 6, 6)
    videos = tmp_path / "videos"
    (videos / "clip1.mp4").unlink()
    (videos / "clip2.mp4").write_bytes(b"")
    (videos / "clip3.mp4").write_bytes((videos / "clip4.mp4").read_bytes()[:600])
    write_clip(videos / "clip5.mp4", 2)
    with Stub({"way/4": ["400"]}) as stub:
        summary = run(tmp_path, stub)
        assert set(stub.asked) == {"way/0", "way/4", "way/5"}
        assert summary.failures.keys() == {f"way/{i}" for i in (1, 2, 3, 4)}
        assert "clip1.mp4: is not there" in summary.failures["way/1"]
        assert "clip2.mp4: is empty" in summary.failures["way/2"]
        assert "clip3.mp4: cannot be decoded" in summary.failures["way/3"]
        assert "no 400 today" in summary.failures["way/4"]
        assert summary.repeated == 1
        failed = read_jsonl(tmp_path / "answers.jsonl.failed")
        assert {line["id"]: line["reason"] for line in failed} == summary.failures
        assert {line["id"]: line.get("repeated") for line in read_jsonl(tmp_path / "answers.jsonl")} == {
            "way/0": None,
            "way/5": 2,
        }
        write_clip(videos / "clip1.mp4")
        again = run(tmp_path, stub)
    assert (again.before, again.answered, set(again.failures)) == (2, 2, {"way/2", "way/3"})
    assert stub.asked == {"way/0": 1, "way/1": 1, "way/4": 2, "way/5": 1}
    assert len(read_jsonl(tmp_path / "answers.jsonl.failed")) == 2


def test_every_fault_at_once_loses_nothing(tmp_path: Path):
    write_suite(tmp_path, 40)
    faults = ["429", "500", "hang", "cut", "half", "drop", "html", "error"]
    given = {f"way/{i}": [faults[i % 8], faults[(i + 3) % 8]] for i in range(0, 40, 2)}
    with Stub(given) as stub:
        summary = run(tmp_path, stub, workers=8)
    assert (summary.answered, summary.failures) == (40, {})
    assert all(stub.answered[f"way/{i}"] == 1 for i in range(40))
    assert all(stub.asked[f"way/{i}"] == (1 if i % 2 else 3) for i in range(40))
    assert sorted(line["id"] for line in read_jsonl(tmp_path / "answers.jsonl")) == sorted(stub.asked)


def test_a_run_goes_on_where_it_stopped(tmp_path: Path):
    write_suite(tmp_path, 6)
    with Stub() as stub:
        run(tmp_path, stub, limit=2)
        with (tmp_path / "answers.jsonl").open("ab") as file:
            file.write(b'{"id": "way/2", "respo')  # killed in the middle of a line
        summary = run(tmp_path, stub)
        assert (summary.before, summary.answered) == (2, 4)
        assert set(stub.asked.values()) == {1}
        assert run(tmp_path, stub).answered == 0
    assert len(read_jsonl(tmp_path / "answers.jsonl")) == 6


def test_other_settings_and_other_files_are_refused(tmp_path: Path):
    write_suite(tmp_path, 2)
    with Stub() as stub:
        run(tmp_path, stub, settings={"seed": 0})
        for options, name in (
            ({"settings": {"seed": 1}}, "seed=0, not 1"),
            ({"sampling": Sampling("shuffled", 4)}, "sampling='uniform', not 'shuffled'"),
            ({"videos": None}, "videos="),
            ({"side": 99}, "side=720, not 99"),
        ):
            with pytest.raises(InvalidValue, match=f"was begun with {name}"):
                run(tmp_path, stub, **{"settings": {"seed": 0}, **options})
        (tmp_path / "answers.jsonl.settings").unlink()
        with pytest.raises(InvalidValue, match="foveate did not write it"):
            run(tmp_path, stub)
        assert sum(stub.asked.values()) == 2
        (tmp_path / "answers.jsonl").write_text("{}\n")
        (tmp_path / "answers.jsonl.settings").write_text("{}")
        with pytest.raises(InvalidValue, match="was begun with suite=None"):
            run(tmp_path, stub)
        for bad, problem in (("{}\n", "names no question"), ("[1]\n", "names no question"), ("x\n", "not JSON")):
            (tmp_path / "answers.jsonl").unlink(missing_ok=True)
            (tmp_path / "answers.jsonl.settings").unlink()
            run(tmp_path, stub)
            with (tmp_path / "answers.jsonl").open("a") as file:
                file.write(bad)
            with pytest.raises(InvalidValue, match=problem):
                run(tmp_path, stub)


def test_two_runs_do_not_write_one_file(tmp_path: Path):
    with (
        Answers.hold(tmp_path / "a.jsonl", {}),
        pytest.raises(InvalidValue, match="in use by another"),
        Answers.hold(tmp_path / "a.jsonl", {}),
    ):
        pass


@pytest.mark.parametrize("fault", ["401", "404", "schema", "drop"])
def test_a_run_gives_up_where_all_fail_alike(tmp_path: Path, fault: str):
    write_suite(tmp_path, 300)  # so many that those on their way when it gives up are few
    with Stub({"*": [fault]}) as stub:
        with pytest.raises(InvalidValue, match=r"stopped after 8 questions in a row .* 0 of 300 are answered"):
            run(tmp_path, stub, retries=0)
        assert len(stub.asked) < 300
    with Stub() as stub:
        assert run(tmp_path, stub).answered == 300
    assert not (tmp_path / "answers.jsonl.failed").exists()


def test_questions_refused_one_by_one_do_not_end_a_run(tmp_path: Path):
    write_suite(tmp_path, 20)
    with Stub({"*": ["400"]}) as stub:
        assert len(run(tmp_path, stub).failures) == 20


def test_a_server_that_is_down_from_the_start(tmp_path: Path):
    write_suite(tmp_path, 2)
    with Stub() as stub:
        pass
    with pytest.raises(InvalidValue, match="no server answers there"):
        run(tmp_path, stub)


def test_an_interruption_keeps_what_is_on_its_way(tmp_path: Path):
    write_suite(tmp_path, 12)

    calls = []

    def once(summary: Any, outcome: Any) -> None:
        calls.append(outcome)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with Stub(delay=0.1) as stub:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, stub, workers=4, progress=once)
        kept = len(read_jsonl(tmp_path / "answers.jsonl"))
        assert 4 <= kept < 12
        run(tmp_path, stub)
    assert set(stub.asked.values()) == {1}


def test_what_cannot_be_asked_is_refused(tmp_path: Path):
    write_suite(tmp_path, 2)
    with Stub() as stub:
        for options, problem in (
            ({"limit": 0}, "limit=0"),
            ({"side": 2}, "side=2"),
            ({"videos": tmp_path / "none"}, "no such folder"),
            ({"videos": tmp_path / "toy.json"}, "no such folder"),
        ):
            with pytest.raises(InvalidValue, match=problem):
                run(tmp_path, stub, **options)
        (tmp_path / "elsewhere").mkdir()
        with pytest.raises(InvalidValue, match=r"none of the videos of toy_clips: clip0.mp4, for one"):
            run(tmp_path, stub, videos=tmp_path / "elsewhere")
        entries = json.loads((tmp_path / "toy.json").read_text())
        (tmp_path / "toy.json").write_text(json.dumps([{**entry, "until": None} for entry in entries]))
        with pytest.raises(InvalidValue, match="no time stamps to stream to"):
            run(tmp_path, stub, sampling=Sampling("stream", 4))
        (tmp_path / "toy.json").write_text("[]")
        with pytest.raises(InvalidValue, match="has no question to ask"):
            run(tmp_path, stub)
        assert not stub.asked
    with pytest.raises(InvalidValue, match="concurrency=0"):
        Endpoint(Client("http://h", "m"), concurrency=0)


def test_where_videos_are_found(tmp_path: Path):
    write_clip(tmp_path / "videos" / "a.mp4", 2)
    for folder, name in ((tmp_path, "a.mp4"), (tmp_path / "videos", "a.mp4"), (tmp_path, "videos/a.mp4")):
        assert find_video(folder, name) == tmp_path / "videos" / "a.mp4"
    assert find_video(tmp_path / "videos", "videos/a.mp4").exists()
    for name in ("b.mp4", "../videos/a.mp4", "/etc/hostname", ""):
        with pytest.raises(InvalidValue, match=r"is not there|no name of a video"):
            find_video(tmp_path, name)


def test_progress_in_a_terminal_and_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from foveate.asking import display

    monkeypatch.setattr(display, "PLAIN_EVERY", 0.0)
    write_suite(tmp_path, 5)
    (tmp_path / "videos" / "clip1.mp4").unlink()
    plain, terminal = Console(record=True, force_terminal=False), Console(record=True, force_terminal=True)
    with Stub() as stub:
        with Display("toy · m", plain) as shown:
            run(tmp_path, stub, progress=shown.event)
        with Display("toy · m", terminal) as shown:
            run(tmp_path, stub, progress=shown.event)
    text = plain.export_text()
    assert "toy · m: 5 questions" in text
    assert "[5/5]" in text
    assert "2 failed" in text
    assert "failed: way/1: " in text
    assert "/min" in text
    assert "3 answered before" in terminal.export_text()


def test_fields_of_requests(tmp_path: Path):
    write_suite(tmp_path, 1)
    with Stub() as stub:
        client = Client(stub.url, "m")
        model = Endpoint(client, max_tokens=9, seed=2, body={"max_tokens": None, "top_p": 1.0})
        ask(ToyClips(tmp_path / "toy.json"), model, tmp_path / "a.jsonl", videos=None)
    fields = {name: value for name, value in stub.bodies[0].items() if name != "messages"}
    assert fields == {"model": "m", "temperature": 0, "seed": 2, "top_p": 1.0}
    with pytest.raises(InvalidValue, match="messages, model and stream"):
        Endpoint(client, body={"stream": True})


def test_the_name_of_a_file_tells_runs_apart(tmp_path: Path):
    from foveate.cli.ask import _name

    suite = ToyClips()

    def name(*given: Any, no_video: bool = False, **options: Any) -> str:
        return _name("toy", "org/m:7", Sampling.of(suite.shown, *given, **options), suite, no_video)

    assert name() == name(seed=3) == "toy-m-7"
    assert name(frames=8) == "toy-m-7-uniform-8"
    assert name("fps", fps=0.5) == "toy-m-7-fps-0.5fps"
    assert name("shuffled") == "toy-m-7-shuffled"
    assert name(no_video=True) == "toy-m-7-text-only"


def test_how_frames_are_shown_in_words():
    def words(*given: Any, **options: Any) -> str:
        return Sampling.of(ToyClips.shown, *given, **options).words()

    assert words() == "4 frames"
    assert words(frames=1) == "1 frame"
    assert words(fps=1) == "1 frame a second"
    assert words("shuffled") == "4 frames, shuffled"
    assert words("stream", fps=2) == "2 frames a second up to the question"
    assert words("single") == "the middle frame"
    assert words("single", which="random") == "one frame at random"


@pytest.mark.skipif(current_thread() is not main_thread(), reason="signals come to the main thread")
def test_an_interruption_waits_for_the_answer_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_suite(tmp_path, 12)
    written = answers_module.append_line
    calls = []

    def interrupted(*given: Any) -> None:
        calls.append(given)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)  # here it would be raised
        written(*given)

    monkeypatch.setattr(answers_module, "append_line", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Stub() as stub:
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path, stub)
            run(tmp_path, stub)
            assert set(stub.asked.values()) == {1}
    finally:
        signal.signal(signal.SIGINT, before)
