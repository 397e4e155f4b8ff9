"""``foveate probe-video`` as a user meets it: real clips, a kill, questions that the suites read, bad input."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_cli import foveate_command, refused

import foveate

av = pytest.importorskip("av", reason="PyAV is absent: pip install 'foveate[video]'")
CLIPS = Path(os.environ.get("FOVEATE_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "video_clips"


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Three short videos: a bar that moves, each in another colour and way."""
    folder = tmp_path_factory.mktemp("videos")
    for number, colour in enumerate(((220, 40, 40), (40, 220, 40), (40, 40, 220))):
        with av.open(str(folder / f"bar {number}.mp4"), "w") as container:
            stream = container.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=10)
            stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
            for i in range(30):
                picture = np.full((64, 96, 3), 60, np.uint8)
                picture[:, 2 * i : 2 * i + 30] = colour
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_a_folder_of_videos_becomes_probes(videos, tmp_path):
    captions = tmp_path / "captions.json"
    captions.write_text('{"bar 0.mp4": "a red bar moves from left to right"}')
    made = foveate_command("probe-video", videos, "--out", tmp_path / "out", "--questions", captions)
    assert made.returncode == 0, made.stderr
    assert "foveate ask tempcompass" in made.stdout
    notes = made.stderr.strip().splitlines()
    assert all(line.startswith("foveate: note: ") for line in notes)
    # Nobody said what is left in two of them; the two others have not both a caption.
    clips = {f.stem for f in (tmp_path / "out" / "videos").iterdir()}
    assert {"bar-0_mirror", "bar-0_mirror_reverse", "bar-1_reverse", "bar-2_concat_2", "bar-1_grey"} <= clips
    record = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert record["clips"] == len(clips)
    assert f"{len(clips)} clips in " in made.stdout
    again = foveate_command("probe-video", videos, "--out", tmp_path / "out", "--questions", captions, "--json")
    told = json.loads(again.stdout)
    assert told["clips"] == len(clips)
    assert told["left_out"] == [line.removeprefix("foveate: note: ") for line in notes]


@pytest.mark.parametrize("suite", ["tempcompass", "mvbench"])
def test_the_suites_read_the_questions(videos, tmp_path, suite):
    made = foveate_command("probe-video", videos, "--out", tmp_path / "out", "--format", suite)
    assert made.returncode == 0, made.stderr
    annotations = tmp_path / "out" / ("json" if suite == "mvbench" else "")
    questions = foveate.create(suite, kind="scorer", annotations=annotations).questions
    record = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert len(questions) == sum(record["questions"].values())
    lines = []
    for question in questions.values():
        assert (tmp_path / "out" / "videos" / question.video).is_file(), question.video
        if question.kind != "text":
            lines.append({"id": question.id, "response": question.answer})
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    scored = foveate_command(
        "score", suite, answers, "--against", annotations, "--out", tmp_path / "scored", "--draws", 20
    )
    assert scored.returncode == 0, scored.stderr
    scores = json.loads((tmp_path / "scored" / "scores.json").read_text())
    for rules in scores["rules"].values():
        assert all(f["value"] == 100 for f in rules["figures"] if f["value"] is not None), rules["figures"]


@pytest.mark.parametrize("suite", ["tempcompass", "mvbench"])
def test_a_model_is_asked_about_probes(videos, tmp_path, suite):
    from tests.toy_clips import Stub

    made = foveate_command("probe-video", videos, "--out", tmp_path / "out", "--format", suite)
    next_ = shlex.split(made.stdout.strip().splitlines()[-1].removeprefix("next: foveate "))
    with Stub() as stub:
        run = [stub.url if word == "MODEL" else word for word in next_]
        asked = foveate_command(*run, "--endpoint", stub.url, "--frames", 4, "--out", tmp_path / "a.jsonl", "--json")
    assert asked.returncode == 0, asked.stderr
    told = json.loads(asked.stdout)
    assert told["failed"] == []
    assert told["answered"] == sum(json.loads((tmp_path / "out" / "probe.json").read_text())["questions"].values())


def test_a_killed_run_goes_on_to_the_same_files(videos, tmp_path):
    whole = foveate_command("probe-video", videos, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-m", "foveate", "probe-video", str(videos), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out").rglob("*.mp4"))) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "questions").exists(), "killed too late to tell"
    resumed = foveate_command("probe-video", videos, "--out", tmp_path / "out")
    assert resumed.returncode == 0, resumed.stderr
    left = {name: data for name, data in files(tmp_path / "out").items() if not name.endswith(".tmp")}
    assert left == files(tmp_path / "whole")


def test_what_is_wrong_ends_in_one_sentence(videos, tmp_path):
    out = ("--out", tmp_path / "out")
    refused(foveate_command("probe-video", tmp_path / "no.mp4", *out), "no video to make probes of", "does not exist")
    refused(foveate_command("probe-video", videos, "--kinds", "backwards", *out), "unknown kind 'backwards'")
    refused(foveate_command("probe-video", videos, "--format", "tomato", *out), "unknown format 'tomato'")
    refused(foveate_command("probe-video", videos, "--questions", tmp_path / "no.json", *out), "no.json", "be read")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    refused(foveate_command("probe-video", videos, "--out", tmp_path / "mine"), "foveate did not write")
    refused(foveate_command("probe-video", videos, "--out", "/proc/probes"), "/proc/probes", "cannot be written")
    assert not (tmp_path / "out").exists()


def test_help_is_quick_to_import():
    code = (
        "import sys; sys.argv = ['foveate', 'probe-video', '--help']\nfrom foveate.cli import main\ntry:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "assert not {'torch', 'numpy', 'av', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.skipif(not CLIPS.is_dir(), reason=f"the real clips are absent: $FOVEATE_DATA/video_clips ({CLIPS})")
def test_real_clips_become_probes(tmp_path):
    made = foveate_command("probe-video", CLIPS, "--out", tmp_path / "out", "--seconds", 3, "--side", 128, "--json")
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert told["asked"] == {"reversed": 8, "speed": 12, "control": 6, "order": 6}
    for clip in ("bikes", "small", "arm-wrestling", "carphone-pristine"):
        pictures = []
        for suffix in ("", "_reverse"):
            with av.open(str(tmp_path / "out" / "videos" / f"{clip}{suffix}.mp4")) as container:
                found = [frame.to_ndarray(format="gray").astype(int) for frame in container.decode(video=0)]
            assert len(found) % 2
            pictures.append(found)
        forward, backward = pictures
        middle = len(forward) // 2
        same = np.abs(forward[middle] - backward[middle]).mean()
        assert same < 4, "encoding alone differs in the middle"
        assert np.abs(forward[0] - backward[-1]).mean() < 4
        assert np.abs(forward[0] - backward[0]).mean() > 2 * same
