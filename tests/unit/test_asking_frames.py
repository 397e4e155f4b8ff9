"""Frames of videos: which are chosen, that these are the ones that are read, and what is wrong with a file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foveate.asking.frames import open_video, read_frames
from foveate.asking.sampling import Sampling, Timeline
from foveate.errors import InvalidValue, UnknownName
from foveate.scorers.base import Clip, Shown
from tests.toy_clips import number_of, write_clip

av = pytest.importorskip("av")
ROOT = Path(__file__).parents[2]
CLIPS = Path(os.environ.get("FOVEATE_DATA", ROOT.parent / "shared" / "data")) / "video_clips"
LINE = Timeline([i / 10 for i in range(100)], 10.0)


def way(name: str | None = None, shown: Shown | None = None, **options: object) -> Sampling:
    return Sampling.of(shown or Shown(), name, **options)  # type: ignore[arg-type]


def test_numbers_of_frames_are_spread_as_the_authors_do():
    assert way(frames=4).choose(LINE, Clip(), "q") == [0, 33, 66, 99]
    assert way(frames=1).choose(LINE, Clip(), "q") == [0]
    expected = np.linspace(0, 99, 16).astype(int).tolist()
    assert way().choose(LINE, Clip(), "q") == expected
    # A clip with fewer frames shows some again, as truncated numbers do.
    assert way(frames=4).choose(Timeline([0.0, 0.1], 10.0), Clip(), "q") == [0, 0, 0, 1]
    centres = way(shown=Shown(16, rule="centres"))
    found = centres.choose(Timeline([i / 30 for i in range(300)], 30.0), Clip(), "q")
    assert (found[:3], found[-1]) == ([9, 28, 46], 289)
    # Folders count from one.
    assert centres.choose(Timeline([i / 3 for i in range(400)], 3.0, folder=True), Clip(0, 1.0), "q")[-1] == 2


def test_frames_a_second_are_those_on_screen():
    assert way(fps=1).choose(LINE, Clip(), "q") == list(range(0, 100, 10))
    assert way(fps=1).choose(LINE, Clip(2.0, 4.0), "q") == [20, 30]
    assert way(fps=2).choose(LINE, Clip(None, 1.0), "q") == [0, 5]
    assert way("fps").choose(LINE, Clip(None, 1.0), "q") == [0]


def test_orders():
    straight = way().choose(LINE, Clip(), "q")
    assert way("reversed").choose(LINE, Clip(), "q") == straight[::-1]
    shuffled = way("shuffled").choose(LINE, Clip(), "q")
    assert sorted(shuffled) == straight
    assert shuffled != straight
    assert shuffled == way("shuffled").choose(LINE, Clip(), "q")
    assert shuffled != way("shuffled", seed=1).choose(LINE, Clip(), "q")
    assert shuffled != way("shuffled").choose(LINE, Clip(), "other")


def test_single_frames():
    assert way("single").choose(LINE, Clip(), "q") == [49]
    assert way("single", which="first").choose(LINE, Clip(2.0, 3.0), "q") == [20]
    found = {way("single", which="random").choose(LINE, Clip(), f"q{i}")[0] for i in range(50)}
    assert len(found) > 20
    assert way("single", which="random") == way("single", which="random")


@pytest.mark.parametrize("sampling", [way("stream", Shown(64, stream=True)), way("stream", fps=1), way(), way(fps=3)])
def test_nothing_after_the_time_of_a_question_is_chosen(sampling: Sampling):
    for tenths in range(1, 120):
        end = tenths / 10
        chosen = sampling.choose(LINE, Clip(None, end), "q")
        assert chosen
        assert max(LINE.times[i] for i in chosen) < end
    assert set(sampling.choose(LINE, Clip(None, 0.0), "q")) == {0}


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(UnknownName, match="shuffled"):
        way("shuffle")
    with pytest.raises(UnknownName, match="middle"):
        way("single", which="mid")
    for options in ({"frames": 4, "fps": 1.0}, {"frames": 0}, {"fps": 0.0}, {"fps": float("nan")}):
        with pytest.raises(InvalidValue, match=r"frames|fps"):
            way(**options)
    for name, options in (("single", {"frames": 2}), ("single", {"fps": 1.0}), ("uniform", {"fps": 1.0})):
        with pytest.raises(InvalidValue, match="sampling="):
            way(name, **options)
    with pytest.raises(InvalidValue, match="sampling=uniform"):
        way("fps", frames=3)
    with pytest.raises(InvalidValue, match="no time stamp"):
        way("stream").choose(LINE, Clip(), "q")
    with pytest.raises(InvalidValue, match=r"ends after 9.9 s, before the clip that begins at 12 s"):
        way().choose(LINE, Clip(12.0), "q")
    with pytest.raises(InvalidValue, match="no frame in the clip"):
        way().choose(LINE, Clip(1.01, 1.02), "q")


def test_a_suites_own_way_and_changes_to_it():
    seconds = Shown(None, 1.0)
    assert (way(shown=seconds).way, way(shown=seconds).fps) == ("fps", 1.0)
    assert way(shown=seconds, frames=8) == Sampling("uniform", 8, None)
    assert way(shown=Shown(64, stream=True)).way == "stream"
    assert way("shuffled", seconds).fps == 1.0
    assert way("uniform", seconds).frames == 16


@pytest.mark.parametrize("name", ["long.mp4", "short.mkv", "old.avi"])
def test_chosen_frames_are_the_ones_that_are_read(tmp_path: Path, name: str):
    write_clip(tmp_path / name, 24)
    video = open_video(tmp_path / name)
    assert len(video.timeline.times) == 24
    assert video.timeline.times[8] == pytest.approx(1.0, abs=0.01)
    for places in ([0, 5, 6, 7, 23], [23, 3, 3], [13], [22, 0], list(range(24))):
        assert [number_of(frame) for frame in read_frames(video, places)] == places


def test_where_a_stamp_has_no_frame_the_one_on_screen_is_read(tmp_path: Path):
    write_clip(tmp_path / "a.mp4", 24)
    video = open_video(tmp_path / "a.mp4")
    stamps = list(video.stamps or ())
    stamps[5], stamps[20] = stamps[5] + 1, stamps[20] + 1
    video = replace(video, stamps=tuple(stamps))
    for places in ([5], [4, 5, 6], [5, 20, 21]):
        assert [number_of(frame) for frame in read_frames(video, places)] == places


def test_frames_are_made_smaller_and_converted(tmp_path: Path):
    write_clip(tmp_path / "a.mp4", 4, size=(128, 64))
    video = open_video(tmp_path / "a.mp4")
    assert read_frames(video, [1], side=32)[0].shape == (16, 32, 3)
    assert read_frames(video, [1], side=500)[0].shape == (64, 128, 3)
    assert read_frames(video, [3, 1], convert=number_of) == [3, 1]


def test_folders_of_pictures(tmp_path: Path):
    from PIL import Image

    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 10 * i, dtype=np.uint8)).save(tmp_path / f"{i + 1:05d}.jpg")
    video = open_video(tmp_path)
    assert video.timeline.folder
    assert [number_of(frame) for frame in read_frames(video, [4, 1])] == [4, 1]


def test_nothing_is_decoded_after_the_last_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from foveate.asking import frames

    write_clip(tmp_path / "a.mp4", 24)
    video, seen = open_video(tmp_path / "a.mp4"), []
    decoded = frames._decoded

    def watched(*given):
        for frame in decoded(*given):
            seen.append(number_of(frame.to_ndarray(format="rgb24")))
            yield frame

    monkeypatch.setattr(frames, "_decoded", watched)
    read_frames(video, [0, 10])
    assert max(seen) == 10
    assert len(seen) < 8  # from the key frame at 6, not from the beginning


@pytest.mark.skipif(not CLIPS.is_dir(), reason="real clips are absent: $FOVEATE_DATA/video_clips")
@pytest.mark.parametrize("name", ["arm_wrestling.mp4", "bikes.mp4", "carphone_pristine.mp4", "small.avi"])
def test_real_clips(name: str):
    with av.open(str(CLIPS / name)) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    video = open_video(CLIPS / name)
    assert len(video.timeline.times) == len(every)
    places = way().choose(video.timeline, Clip(), "q")
    for frame, place in zip(read_frames(video, places), places, strict=True):
        assert np.array_equal(frame, every[place])


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path):
    write_clip(tmp_path / "whole.mp4", 24)
    content = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "folder").mkdir()
    for name, problem in {
        "absent.mp4": "is not there",
        "empty.mp4": "is empty",
        "cut.mp4": "cannot be decoded|cut off",
        "text.mp4": "cannot be decoded",
        "folder": "has no picture",
    }.items():
        with pytest.raises(InvalidValue, match=rf"{name}: .*({problem})"):
            open_video(tmp_path / name)


def test_a_file_that_lost_its_end_is_no_shorter_video(tmp_path: Path):
    with av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        noise = np.random.default_rng(0)
        for _ in range(24):
            picture = noise.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(InvalidValue, match=r"of the 24 frames that its header names; it is cut off"):
        open_video(tmp_path / "a.mp4")
