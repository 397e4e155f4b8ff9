"""Probes: clips that no picture tells apart, captions that follow what was done, balanced answers, bad input."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from foveate.errors import FoveateError, InvalidValue, UnknownName
from foveate.probes import clips
from foveate.probes.formats import FORMATS
from foveate.probes.make import make
from foveate.probes.questions import Deck, about_control, about_order, about_reversed, about_speed
from foveate.probes.sources import find_sources
from foveate.probes.video import Footage, codec, read, write
from foveate.probes.words import Caption, caption_of, clean, mirror, read_captions, run_backwards

av = pytest.importorskip("av", reason="PyAV is absent: pip install 'foveate[video]'")


def walk(count: int = 40, height: int = 48, width: int = 64, colour: Sequence[int] = (255, 60, 40)) -> np.ndarray:
    """A square that crosses the picture from left to right, ``(count, height, width, 3)``."""
    frames = np.full((count, height, width, 3), 30, np.uint8)
    for i in range(count):
        left = round((width - 12) * i / max(1, count - 1))
        frames[i, height // 2 - 6 : height // 2 + 6, left : left + 12] = colour
        frames[i, :6] = (40, 40, 200)
    return frames


def save(
    file: Path,
    frames: np.ndarray,
    *,
    name: str = "libx264",
    format: str = "yuv420p",
    rate: Fraction | int = 10,
    stamps: Sequence[int] | None = None,
    layout: str = "rgb24",
    options: dict[str, str] | None = None,
) -> Path:
    """A video as somebody else wrote it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w", options=options) as container:
        stream = container.add_stream(name, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], format
        if name == "libx264":
            stream.options = {"crf": "10"}
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=layout)
            if stamps is not None:
                frame.pts, frame.time_base = stamps[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def where(frames: np.ndarray) -> list[int]:
    """Middle of the square in each frame, from the left."""
    red = frames[:, 8:, :, 0].astype(int) - frames[:, 8:, :, 2]
    return [
        round(float(np.average(np.arange(row.size), weights=row))) for row in np.clip(red, 40, None).sum(1) - 40 * 40
    ]


def decoded(file: Path) -> np.ndarray:
    with av.open(str(file)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


# Clips ----------------------------------------------------------------------------------------------------------------


def test_a_clip_and_its_reverse_share_the_picture_in_the_middle():
    frames = clips.odd(walk(40))
    assert len(frames) == 39
    assert (frames[::-1][19] == frames[19]).all()


@pytest.mark.parametrize("count", [16, 17, 40, 121])
def test_three_speeds_share_the_picture_in_the_middle_and_run_as_they_say(count):
    number = np.arange(count, dtype=np.uint8)[:, None, None, None]
    frames = np.broadcast_to(number, (count, 4, 8, 3))
    made = [clips.two_speeds(frames, case) for case in range(3)]
    length = 2 * ((count - 1) // 5) + 1
    for case, steps in enumerate([(1, 1), (1, 2), (2, 1)]):
        assert made[case].shape == (length, 8 + clips.GAP, 8, 3)
        upper, lower = made[case][:, 0, 0, 0].astype(int), made[case][:, -1, 0, 0].astype(int)
        assert (np.diff(upper) == steps[0]).all()
        assert (np.diff(lower) == steps[1]).all()
        assert (made[case][length // 2] == made[0][length // 2]).all()
        assert upper[length // 2] < lower[length // 2], "a still would tell the one speed from two"


def test_what_is_higher_than_wide_stands_beside_itself():
    assert clips.two_speeds(np.zeros((20, 16, 8, 3), np.uint8), 0).shape[1:] == (16, 16 + clips.GAP, 3)


@pytest.mark.parametrize("longer", [0, 1])
def test_the_middle_of_both_orders_shows_the_same_video(longer):
    first = Footage(np.full((40, 8, 12, 3), 10, np.uint8), Fraction(20))
    second = Footage(np.full((30, 16, 8, 3), 200, np.uint8), Fraction(10))
    *parts, fps = clips.in_a_row(first, second, longer)
    assert fps == 10
    assert len(parts[longer]) > len(parts[1 - longer]) >= 2
    assert parts[0].shape[1:] == parts[1].shape[1:] == (16, 12, 3)
    rows = [np.concatenate(order) for order in (parts, parts[::-1])]
    share = len(rows[0]) // 3  # a third around the middle
    inside = [row[len(row) // 2 - share // 8 : len(row) // 2 + share // 8 + 1].max((1, 2, 3)) for row in rows]
    assert {int(v) for levels in inside for v in levels} == {(10, 200)[longer]}


def test_what_does_not_move_is_told_and_so_is_what_has_no_colour():
    assert clips.changes(walk())
    assert not clips.changes(np.repeat(walk()[:1], 20, 0))
    assert not clips.changes(np.concatenate([walk(), walk()[::-1]])), "there and back is its own reverse"
    noise = np.repeat(walk(colour=(200, 60, 40))[:1], 20, 0) + np.random.default_rng(0).integers(
        0, 2, (20, 48, 64, 3), dtype=np.uint8
    )
    assert not clips.changes(noise)
    assert clips.colourful(walk())
    assert not clips.colourful(clips.grey(walk()))


def test_grey_is_the_usual_weighing():
    picture = np.zeros((1, 2, 2, 3), np.uint8)
    picture[0, 0, 0] = (255, 0, 0)
    assert clips.grey(picture)[0, 0, 0].tolist() == [76, 76, 76]


# Words ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("a man on the left waves", "a man on the right waves"),
        ("Left of him, RIGHT of her", "Right of him, LEFT of her"),
        ("it turns clockwise", "it turns counterclockwise"),
        ("it turns anti-clockwise, then leftwards", "it turns clockwise, then rightwards"),
        ("from left to right", "from right to left"),
        ("all right, she left the room right away", "all right, she left the room right away"),
        ("a bright copyright", "a bright copyright"),
        ("her left-hand neighbour", "her right-hand neighbour"),
    ],
)
def test_a_mirror_exchanges_sides(told, expected):
    assert mirror(told) == expected


@pytest.mark.parametrize("told", ["a man on the left waves", "it moves from right to left", "it turns clockwise"])
def test_two_mirrors_are_none(told):
    assert mirror(mirror(told)) == told


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("a car drives from left to right", "a car drives from right to left"),
        ("He walks towards the camera", "He walks away from the camera"),
        ("Upwards it flies", "Downwards it flies"),
        ("a man waves his left hand", "a man waves his left hand"),
        ("it turns counterclockwise", "it turns clockwise"),
    ],
)
def test_time_exchanges_ways_of_moving_and_no_sides(told, expected):
    assert run_backwards(told) == expected


def test_a_caption_says_what_becomes_of_it():
    assert caption_of({"caption": "a car drives from left to right"}) == Caption(
        "a car drives from left to right",
        "a car drives from right to left",
        "a car drives from right to left",
        "a car drives from left to right",
    )
    plain = caption_of({"caption": "a man lifts a box"})
    assert plain == Caption("a man lifts a box", "a man lifts a box, played backwards")
    own = caption_of({"caption": "he lifts it", "reversed": "he puts it down", "mirrored": "she lifts it"})
    assert own == Caption("he lifts it", "he puts it down", "she lifts it")


def test_captions_are_brought_into_a_form_that_rules_can_compare():
    assert clean("  He says: go.\n Then he goes. ") == "He says, go. Then he goes"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "holds no object"),
        ('{"a.mp4": 3}', "a.mp4: a caption is a text"),
        ('{"a.mp4": {"reversed": "x"}}', "a.mp4: a caption is a text"),
        ('{"a.mp4": {"caption": "x", "upside": "y"}}', "'upside' is not known"),
        ('{"a.mp4": " . "}', "its caption is empty"),
        ('{"a.mp4": {"caption": "x", "reversed": null}}', "its reversed is empty or no text"),
        ("{", "is damaged"),
    ],
)
def test_captions_that_are_none_are_refused(tmp_path, content, words):
    file = tmp_path / "captions.json"
    file.write_text(content)
    with pytest.raises(InvalidValue, match=words):
        read_captions(file)


# Questions ------------------------------------------------------------------------------------------------------------


def many() -> list:
    caption = Caption("a man lifts a box", "a man puts a box down")
    asked = []
    for i in range(12):
        asked += [about_reversed(f"{i}{s}", b, caption if i % 2 else None) for b, s in enumerate(("", "_reverse"))]
        asked += [about_speed(f"{i}_concat_{case}", case, i % 2 == 0) for case in range(3)]
        texts = ("a dog runs", "a cat sleeps") if i % 3 else None
        asked += [about_order(f"{i}_{i + 1}_{1 + s}", bool(s), texts) for s in range(2)]
        asked += [about_control(f"{i}{s}", bool(s)) for s in ("", "_grey")]
    return asked


def test_every_place_is_dealt_equally_often():
    deck = Deck(3)
    dealt = [deck.deal("x", 3) for _ in range(30)]
    assert Counter(dealt) == {0: 10, 1: 10, 2: 10}
    assert all(set(dealt[i : i + 3]) == {0, 1, 2} for i in range(0, 30, 3))
    again = Deck(3)
    assert [again.deal("x", 3) for _ in range(30)] == dealt
    other = Deck(4)
    assert [other.deal("x", 3) for _ in range(30)] != dealt


def test_tempcompass_has_balanced_answers_in_all_four_formats():
    files = FORMATS["tempcompass"].files(many(), 0)
    letters: Counter = Counter()
    labels: Counter = Counter()
    said: Counter = Counter()
    for task in ("multi-choice", "yes_no", "caption_matching", "captioning"):
        for clip, aspects in files[f"questions/{task}.json"].items():
            for aspect, items in aspects.items():
                assert files["meta_info.json"][clip]["eval_dim"][aspect] is not None
                for item in items:
                    first, *lines = item["question"].split("\n")
                    if task == "yes_no":
                        said[item["answer"]] += 1
                        assert first.endswith("?")
                        assert not lines
                        continue
                    if task == "captioning":
                        assert lines[-1] == "Generated Caption:"
                        place = "ABCD".index(item["answer"][0])
                        assert lines[place].startswith(f"Information {item['answer'][0]}: {{'subject': ")
                        assert item["answer"][3:] in lines[place]
                    else:
                        assert item["answer"] in lines
                        assert len(set(lines)) == len(lines)
                        place = lines.index(item["answer"])
                    if task == "caption_matching":
                        assert len(lines) == 2
                        assert all(line.count(": ") == 1 for line in lines)
                        labels[lines[0].split()[0]] += 1
                    letters[task, len(lines) - (task == "captioning"), place] += 1
    assert said["yes"] == said["no"] > 0
    assert max(labels.values()) - min(labels.values()) <= 1
    for (task, count, _), number in letters.items():
        same = [letters[task, count, place] for place in range(count)]
        assert max(same) - min(same) <= 1, (task, count, same)
        assert number > 0


def test_a_constant_option_is_right_for_one_clip_of_each_group():
    files = FORMATS["tempcompass"].files(many(), 0)["questions/multi-choice.json"]
    right = Counter()
    for clip, aspects in files.items():
        for aspect, items in aspects.items():
            for item in items:
                right[aspect, clip.split("_")[0], item["answer"][3:]] += 1
    assert set(right.values()) == {1}


def test_meta_information_names_what_the_suite_groups_by():
    meta = FORMATS["tempcompass"].files(many(), 0)["meta_info.json"]
    assert meta["1_2_2"]["eval_dim"]["order"] == {
        "subject": "entire video",
        "event1": "a cat sleeps",
        "event2": "a dog runs",
    }
    assert meta["1_concat_1"]["eval_dim"]["speed"]["type"] == "relative speed"
    assert meta["1"]["content"] == ["reversed", "control"]
    assert set(meta["1"]["eval_dim"]) == {"action", "direction", "speed", "order", "attribute_change"}


def test_mvbench_has_its_own_files_and_an_answer_among_candidates():
    asked = [one for one in many() if one.kind != "speed"]
    files = FORMATS["mvbench"].files(asked, 0)
    assert set(files) == {f"json/{t}.json" for t in ("action_antonym", "scene_transition", "moving_attribute")}
    for items in files.values():
        places = Counter(item["candidates"].index(item["answer"]) for item in items)
        assert places[0] == places[1] == 12
        assert all(set(item) == {"video", "question", "candidates", "answer"} for item in items)
    assert FORMATS["mvbench"].place("order", "a_b_1") == "videos/scene_qa/video/a_b_1.mp4"


# Reading --------------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_again(tmp_path):
    write(tmp_path / "inner" / "a.mp4", Footage(walk(31), Fraction(30000, 1001)))
    found = read(tmp_path / "inner" / "a.mp4")
    assert found.fps == Fraction(30000, 1001)
    assert found.frames.shape == (31, 48, 64, 3)
    assert np.abs(found.frames.astype(int) - walk(31)).mean() < 3
    assert [file.name for file in (tmp_path / "inner").iterdir()] == ["a.mp4"]


def test_the_same_pictures_are_the_same_bits(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.mp4", Footage(walk(), Fraction(25)))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_without_h264_there_is_mpeg4(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    assert codec() == "mpeg4"
    write(tmp_path / "a.mp4", Footage(walk(), Fraction(30000, 1001)))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    assert np.abs(decoded(tmp_path / "a.mp4").astype(int) - walk()).mean() < 8


def test_frames_at_uneven_times_become_even(tmp_path):
    steps = [0, 40, 80, 120, 160, 1160] + [1160 + 40 * i for i in range(1, 20)]
    file = save(tmp_path / "a.mkv", walk(25), rate=25, stamps=steps)
    found = read(file)
    seconds = np.arange(len(found.frames)) / float(found.fps)
    expected = [where(walk(25))[int(np.searchsorted(steps, 1000 * t + 1, side="right")) - 1] for t in seconds]
    assert np.abs(np.array(where(found.frames)) - expected).max() <= 1
    assert len(found.frames) / float(found.fps) == pytest.approx(1.96, abs=0.1)


def test_odd_sizes_become_even_and_large_ones_small(tmp_path):
    file = save(tmp_path / "a.mkv", walk(20, 51, 75), name="ffv1", format="bgr0")
    assert read(file).frames.shape[1:] == (52, 76, 3) or read(file).frames.shape[1:] == (50, 74, 3)
    assert read(file, side=64).frames.shape[1:3] == (44, 64)


def test_only_the_beginning_is_read(tmp_path):
    file = save(tmp_path / "a.mp4", walk(60), rate=20)
    assert len(read(file, seconds=1.0).frames) == 20


def test_more_frames_a_second_are_thinned_out(tmp_path):
    found = read(save(tmp_path / "a.mp4", walk(120), rate=60))
    assert (found.fps, len(found.frames)) == (30, 60)
    assert np.abs(np.array(where(found.frames)) - where(walk(120)[::2])).max() <= 1


def rotated(file: Path) -> None:
    """Have players turn a file's pictures by a quarter."""
    data = bytearray(file.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # version 0: the matrix comes after 40 bytes
    one, half = 0x10000, 0x40000000
    matrix = [0, one, 0, -one, 0, 0, 0, 0, half]
    data[place : place + 36] = b"".join((value & 0xFFFFFFFF).to_bytes(4, "big") for value in matrix)
    file.write_bytes(data)


def test_pictures_are_turned_as_players_turn_them(tmp_path):
    file = save(tmp_path / "a.mp4", walk(20))
    rotated(file)
    found = read(file).frames
    assert found.shape[1:] == (64, 48, 3)
    # The matrix maps right to down and down to left: what was on top is now on the right.
    assert found[0, :, -4:, 2].mean() > 150
    assert found[0, :, :30, 2].mean() < 80
    assert found[0, :14, :, 0].mean() > found[0, -14:, :, 0].mean(), "what was on the left is now on top"


def test_pixels_that_are_not_square_are_stretched(tmp_path):
    file = tmp_path / "a.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for picture in walk(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    assert read(file).frames.shape[1:] == (48, 128, 3)


def test_what_cannot_be_seen_is_black(tmp_path):
    frames = np.concatenate([walk(20), np.full((20, 48, 64, 1), 255, np.uint8)], -1)
    frames[:, 24:, :, 3] = 0
    frames[:, :, :, 1] = 200
    found = read(save(tmp_path / "a.mov", frames, name="png", format="rgba", layout="rgba")).frames
    assert found[:, 26:].max() == 0
    assert found[:, :22, :, 1].min() > 190


def audio_only(file: Path) -> Path:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def bad(folder: Path) -> dict[str, str]:
    """Files with something wrong, and what is said about each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video, only words " * 50)
    save(folder / "one.mp4", walk(1))
    save(folder / "short.mp4", walk(5))
    save(folder / "tiny.mkv", walk(20, 8, 8)[:, :8, :8], name="ffv1", format="bgr0")
    audio_only(folder / "sound.mp4")
    whole = save(folder / "cut.mp4", walk(80), options={"movflags": "+faststart"}).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: 3 * len(whole) // 4])
    whole = save(folder / "fewer.avi", walk(80), name="mpeg4").read_bytes()
    (folder / "fewer.avi").write_bytes(whole[: whole.rindex(b"00dc", 0, whole.index(b"idx1") - 800)])
    moov = save(folder / "torn.mp4", walk(80)).read_bytes()
    (folder / "torn.mp4").write_bytes(moov[: len(moov) // 2])
    return {
        "empty.mp4": "is empty",
        "text.mp4": "cannot be decoded",
        "one.mp4": "has a single frame",
        "short.mp4": "has 5 frames, at least 16 are needed",
        "tiny.mkv": "its pictures are 8 x 8",
        "sound.mp4": "has no video in it",
        "cut.mp4": "frames, it may be cut off",
        "fewer.avi": "of the 80 frames that its header names, it is cut off",
        "torn.mp4": "cannot be decoded",
    }


def test_what_is_wrong_with_a_file_is_one_sentence_with_its_name(tmp_path):
    for name, words in bad(tmp_path).items():
        with pytest.raises(InvalidValue, match=words) as raised:
            read(tmp_path / name)
        assert str(raised.value).startswith(str(tmp_path / name))
        assert str(raised.value).count(". ") == 0
    with pytest.raises(InvalidValue, match="does not exist"):
        read(tmp_path / "absent.mp4")
    with pytest.raises(InvalidValue, match="is a folder"):
        read(tmp_path)


def test_pictures_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch):
    file = save(tmp_path / "a.mp4", walk(300))
    monkeypatch.setattr("foveate.probes.video.MOST_MEMORY", 1)
    with pytest.raises(InvalidValue, match=r"a.mp4: needs 3 MiB of memory, 1 are allowed: give a smaller --side"):
        read(file, seconds=60)
    assert len(read(file, seconds=3).frames) == 30
    assert len(read(save(tmp_path / "b.mp4", walk(30)), seconds=60).frames) == 30


def test_a_target_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidValue, match="cannot be written"):
        write(tmp_path / "file" / "a.mp4", Footage(walk(), Fraction(25)))


# Sources --------------------------------------------------------------------------------------------------------------


def test_each_video_has_a_name_of_its_own(tmp_path):
    for name in ("a/walk.mp4", "b/Walk.mov", "b/a walk_reverse.MP4", "b/notes.txt", "out/videos/walk.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    notes: list[str] = []
    paths = [tmp_path / "a", tmp_path, tmp_path / "a" / "walk.mp4", tmp_path / "absent.mp4"]
    found = find_sources(paths, {"Walk.mov": {"caption": "he walks"}, "x": {"caption": "y"}}, tmp_path / "out", notes)
    assert [source.id for source in found] == ["walk", "Walk-2", "a-walk-reverse"]
    assert found[1].caption is not None
    assert found[0].caption is None
    assert any("has the same name, so this one is called Walk-2" in note for note in notes)
    assert any("absent.mp4: does not exist" in note for note in notes)
    assert any("the caption of x has no video" in note for note in notes)
    assert len(notes) == 3


def test_no_video_at_all_is_refused(tmp_path):
    with pytest.raises(InvalidValue, match=r"no video to make probes of.*has no video in it.*does not exist"):
        find_sources([tmp_path, tmp_path / "x.mp4"], {}, tmp_path / "out", [])


# Making ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> Path:
    save(tmp_path / "in" / "walk.mp4", walk())
    save(tmp_path / "in" / "fall.mp4", np.rot90(walk(), axes=(1, 2)))
    return tmp_path


def test_clips_are_what_the_questions_say(two):
    captions = two / "captions.json"
    captions.write_text(json.dumps({"walk": "a square moves from left to right", "fall.mp4": "a square goes up"}))
    made = make([two / "in"], two / "out", captions=captions)
    clips_of = {file.stem: decoded(file) for file in (two / "out" / "videos").iterdir()}
    asked = json.loads((two / "out" / "questions" / "multi-choice.json").read_text())
    assert set(clips_of) == set(asked)
    assert made.clips == len(asked)
    for suffix, rightwards in (("", True), ("_reverse", False), ("_mirror", False), ("_mirror_reverse", True)):
        places = where(clips_of[f"walk{suffix}"])
        assert (places[-1] > places[0]) == rightwards
        for item in asked[f"walk{suffix}"]["direction"]:
            assert ("from left to right" in item["answer"]) == rightwards
    for case, answer in enumerate(("neither, both have the same speed", "the lower one", "the upper one")):
        assert asked[f"walk_concat_{case}"]["speed"][0]["answer"].endswith(answer)
        halves = clips_of[f"walk_concat_{case}"]
        upper, lower = where(halves[:, :48]), where(halves[:, 52:])
        run = (upper[-1] - upper[0]) - (lower[-1] - lower[0])
        assert (abs(run) <= 2, run < -2, run > 2)[case]
    assert clips_of["walk_grey"].std(-1).max() < 6
    assert clips_of["walk"].std(-1).max() > 60
    orders = [clip for clip in asked if "order" in asked[clip]]
    assert len(orders) == 2
    for clip in orders:  # the one that moves upwards is higher than wide: black beside it
        first = "a square goes up" if clips_of[clip][0][:, :4].max() < 60 else "a square moves"
        assert first in asked[clip]["order"][0]["answer"].split(", then ")[0]


def test_without_captions_the_part_without_colour_tells_the_order(two):
    make([two / "in"], two / "out", kinds=["order"], control=False)
    asked = json.loads((two / "out" / "questions" / "multi-choice.json").read_text())
    assert len(asked) == 2
    for clip, aspects in asked.items():
        frames = decoded(two / "out" / "videos" / f"{clip}.mp4")
        grey_first = clips.colourful(frames[-3:]) and not clips.colourful(frames[:3])
        assert grey_first != (clips.colourful(frames[:3]) and not clips.colourful(frames[-3:]))
        assert ("black and white" in aspects["order"][0]["answer"]) == grey_first


def test_the_same_command_makes_the_same_and_another_is_refused(two):
    make([two / "in"], two / "a")
    make([two / "in"], two / "b")
    files = {str(f.relative_to(two / "a")): f.read_bytes() for f in (two / "a").rglob("*") if f.is_file()}
    assert files == {str(f.relative_to(two / "b")): f.read_bytes() for f in (two / "b").rglob("*") if f.is_file()}
    stamps = {f: f.stat().st_mtime_ns for f in (two / "a" / "videos").iterdir()}
    (two / "a" / "videos" / "walk_reverse.mp4").unlink()  # as if it had been killed before this one
    make([two / "in"], two / "a")
    assert {str(f.relative_to(two / "a")): f.read_bytes() for f in (two / "a").rglob("*") if f.is_file()} == files
    kept = {f for f in stamps if f.stat().st_mtime_ns == stamps[f]}
    assert len(kept) == len(stamps) - 1, "clips were made again that were there"
    with pytest.raises(InvalidValue, match="begun with other seed"):
        make([two / "in"], two / "a", seed=1)
    save(two / "in" / "more.mp4", walk())
    with pytest.raises(InvalidValue, match="begun with other videos"):
        make([two / "in"], two / "a")


def test_nothing_of_the_users_is_overwritten(two):
    (two / "theirs").mkdir()
    (two / "theirs" / "notes.txt").write_text("mine")
    with pytest.raises(InvalidValue, match="foveate did not write"):
        make([two / "in"], two / "theirs")
    (two / "theirs" / "probe.json").write_text("[]")
    with pytest.raises(InvalidValue, match="foveate did not write"):
        make([two / "in"], two / "theirs")
    with pytest.raises(InvalidValue, match="it is a file"):
        make([two / "in"], two / "in" / "walk.mp4")
    make([two / "in"], two / "out")
    changed = two / "out" / "questions" / "yes_no.json"
    changed.write_text("{}")
    notes = make([two / "in"], two / "out").notes
    assert changed.read_text() == "{}"
    assert any("was changed after it was written" in note for note in notes)


def test_what_is_wrong_is_noted_and_the_rest_goes_on(two):
    expected = bad(two / "in")
    save(two / "in" / "still.mp4", np.repeat(walk()[:1], 30, 0))
    made = make([two / "in", two / "gone.mp4"], two / "out")
    for name, words in {**expected, "still.mp4": "is the same forwards and backwards"}.items():
        assert any(name in note and words in note for note in made.notes), name
    assert {f.stem for f in (two / "out" / "videos").iterdir()} >= {"walk_reverse", "fall_reverse", "still_grey"}
    assert not (two / "out" / "videos" / "still_reverse.mp4").exists()
    record = json.loads((two / "out" / "probe.json").read_text())
    assert record["left_out"] == made.notes
    assert make([two / "in", two / "gone.mp4"], two / "out").notes == made.notes, "a second call forgot what was wrong"


def test_nothing_that_can_be_made_is_an_error(tmp_path):
    save(tmp_path / "in" / "one.mp4", walk(1))
    with pytest.raises(InvalidValue, match=r"no probe could be made.*one.mp4: has a single frame"):
        make([tmp_path / "in"], tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"kinds": ["backwards"]}, UnknownName, "unknown kind 'backwards'"),
        ({"kinds": []}, InvalidValue, "kinds=.* give some of reversed, speed, order, mirrored"),
        ({"format": "tomato"}, UnknownName, "unknown format 'tomato'"),
        ({"format": "mvbench", "kinds": ["speed"]}, InvalidValue, "mvbench has no task about it"),
        ({"seconds": 0.5}, InvalidValue, "seconds=0.5"),
        ({"side": 10}, InvalidValue, "side=10"),
        ({"kinds": ["mirrored"], "control": False}, InvalidValue, "needs captions with left or right"),
    ],
)
def test_options_that_are_not_possible_are_refused(two, options, error, words):
    with pytest.raises(FoveateError, match=words) as raised:
        make([two / "in"], two / "out", **options)
    assert isinstance(raised.value, error)


def test_a_format_without_speed_says_so(two):
    made = make([two / "in"], two / "out", format="mvbench")
    assert any("mvbench has no task about speed" in note for note in made.notes)
    for file in (two / "out" / "json").iterdir():
        folder = {"action_antonym": "ssv2_video", "moving_attribute": "clevrer/video_validation"}
        for item in json.loads(file.read_text()):
            assert (two / "out" / "videos" / folder.get(file.stem, "scene_qa/video") / item["video"]).is_file()
