"""What scoring has in common for all suites: rules, missing answers, baselines, intervals, comparisons, tables."""

from __future__ import annotations

import csv
import gc
import io
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from foveate.errors import InvalidValue, UnknownName
from foveate.scorers import words
from foveate.scorers.base import Answer, Figure, Notes, Question, Row, Suite, Verdict, by_group, figure
from foveate.scorers.baselines import blind
from foveate.scorers.collecting import uncollected
from foveate.scorers.intervals import differences, intervals
from foveate.scorers.items import write_items
from foveate.scorers.letters import read_choice, text_of
from foveate.scorers.page import render
from foveate.scorers.record import record
from foveate.scorers.score import score


class Toy(Suite):
    """Two tasks: letters, whose official rule takes a substring, and yes or no."""

    slug = "toy"
    sections = ("overall", "task")
    published = {"pick": 6, "say": 4}

    def __init__(self, questions: Sequence[Question]):
        self.questions = {q.id: q for q in questions}
        self.notes = Notes()

    def answers(self, predictions: Path) -> list[Answer]:
        lines = [json.loads(line) for line in predictions.read_text().splitlines()]
        return [Answer(self.questions[line["id"]], line["response"], predictions.name) for line in lines]

    def judge(self, question: Question, response: Any, rules: str) -> Verdict:
        text = text_of(response) or ""
        if rules == "official":
            return Verdict(float(question.answer in text), bool(text))
        said = read_choice(text, question.options) if question.kind == "choice" else text.lower()
        return Verdict(float(said == question.answer), bool(said), said)

    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        parts = [figure("task", name, found) for name, found in by_group(rows, "task").items()]
        return [Figure("overall", "mean of tasks", parts=tuple(parts)), *parts]

    def prompt(self, question: Question, frames: int | None = None) -> str:
        return question.question


def question(id: str, answer: str, video: str, kind: Any = "choice") -> Question:
    task = "pick" if kind == "choice" else "say"
    options = {"A": "left", "B": "right", "C": "up", "D": "down"} if kind == "choice" else {}
    return Question(id, task, video, "Which?", answer, kind, options, answer, {"task": task})


QUESTIONS = [question(f"p{i}", "AABABC"[i], f"v{i // 2}") for i in range(6)]
QUESTIONS += [question(f"s{i}", "yes" if i != 2 else "no", f"v{i}", "yes_no") for i in range(4)]


def write(tmp_path: Path, answers: Sequence[tuple[str, Any]], name: str = "answers.jsonl") -> Path:
    file = tmp_path / name
    file.write_text("".join(json.dumps({"id": id, "response": response}) + "\n" for id, response in answers))
    return file


def test_rules_missing_and_repeated_answers(tmp_path: Path):
    file = write(tmp_path, [("p0", "A"), ("p0", "B"), ("p1", "ABCD"), ("p2", ["B"]), ("p3", None)])
    found = score(Toy(QUESTIONS), file)
    official, strict = found.by_rules["official"], found.by_rules["strict"]
    # Officially every line counts and letters in a row hit; strictly each of six questions counts once.
    assert official.figures["task", "pick"].marks == [1, 0, 1, 1, 0]
    assert strict.figures["task", "pick"].marks == [1, 0, 1, 0, 0, 0]
    assert official.figures["task", "pick"].text == "60.00"
    assert (official.unreadable, strict.unreadable) == (1, 2)
    assert found.missing == ["p4", "p5"]
    assert found.repeated == ["p0"]
    assert found.skipped == ["say"]


def test_a_judge_decides_what_is_left_to_it(tmp_path: Path):
    class Judged(Toy):
        def left_to_judge(self, row: Row) -> bool:
            return not row.verdict.readable

    file = write(tmp_path, [("p0", "A"), ("p1", ""), ("p2", "")])
    alone = score(Judged(QUESTIONS), file)
    assert (alone.needs_judge, alone.judged) == (2, 0)
    asked: list[tuple[str, str, str]] = []

    def judge(*given: str) -> bool:
        asked.append(given)
        return given[1] == "B"

    found = score(Judged(QUESTIONS), file, judge=judge, rules=("official",))
    assert asked == [("Which?", "A", ""), ("Which?", "B", "")]
    assert found.judged == 2
    assert found.by_rules["official"].figures["task", "pick"].marks == [1, 0, 1]


def test_bad_calls_are_refused(tmp_path: Path):
    with pytest.raises(UnknownName, match="strict"):
        score(Toy(QUESTIONS), write(tmp_path, [("p0", "A")]), rules=("strickt",))
    with pytest.raises(InvalidValue, match="has no answer"):
        score(Toy(QUESTIONS), write(tmp_path, []))


def test_blind_baselines_are_expectations_and_constants():
    found = blind(Toy(QUESTIONS), QUESTIONS)
    assert {name: found[name]["task", "pick"].value for name in ("random", "majority")} == {
        "random": 25.0,
        "majority": 50.0,
    }
    assert found["majority"]["task", "say"].value == 75.0
    assert found["always yes"]["task", "say"].value == 75.0
    assert math.isnan(found["always yes"]["task", "pick"].value or 0)
    assert found["random"]["overall", "mean of tasks"].value == pytest.approx((25 + 50) / 2)


def many(right: float, videos: int = 200, each: int = 5, seed: int = 0) -> Figure:
    draw = random.Random(seed)
    marks, clusters = [], []
    for video in range(videos):
        level = min(1.0, max(0.0, draw.gauss(right, 0.3)))
        marks += [float(draw.random() < level) for _ in range(each)]
        clusters += [f"v{video}"] * each
    return Figure("overall", "all", marks, clusters)


def test_intervals_respect_that_answers_to_a_video_hang_together():
    clustered = many(0.5)
    alone = Figure("overall", "all", clustered.marks, [str(i) for i in range(len(clustered.marks))])
    of_videos, of_answers = (intervals([f])["overall", "all"] for f in (clustered, alone))
    plain = 2 * 1.96 * 100 * math.sqrt(0.25 / len(clustered.marks))
    assert of_answers.high - of_answers.low == pytest.approx(plain, rel=0.1)
    assert of_videos.high - of_videos.low > 1.15 * plain
    assert of_videos.low < (clustered.value or 0) < of_videos.high


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    hits = 0
    for seed in range(100):
        found = intervals([many(0.5, 60, 2, seed)], draws=200, level=0.9)["overall", "all"]
        hits += found.low <= 50 <= found.high
    assert 80 <= hits <= 98


def test_means_of_figures_get_intervals_and_single_videos_none():
    parts = (many(0.2, seed=1), Figure("task", "b", many(0.8, seed=2).marks, many(0.8, seed=2).clusters))
    whole = Figure("overall", "mean", parts=parts)
    found = intervals([whole, *parts, Figure("task", "one", [1.0], ["v"])])
    assert found["overall", "mean"].low < (whole.value or 0) < found["overall", "mean"].high
    assert ("task", "one") not in found


def test_figures_whose_parts_no_draw_has_all_get_no_interval():
    parts = [Figure("task", str(i), [1.0, 0.0], [f"{i}a", f"{i}b"]) for i in range(40)]
    whole = Figure("overall", "mean", parts=tuple(parts))
    assert ("overall", "mean") not in intervals([whole, *parts], draws=20)
    assert ("overall", "mean") not in differences([whole], [whole], draws=20)
    assert ("task", "0") in intervals([whole, *parts], draws=20)


def test_differences_are_paired():
    one = many(0.5)
    better = Figure("overall", "all", [max(m, float(i % 10 == 0)) for i, m in enumerate(one.marks)], one.clusters)
    found = differences([better], [one])["overall", "all"]
    assert found.value == pytest.approx((better.value or 0) - (one.value or 0))
    assert 0 < found.interval.low < found.value < found.interval.high
    # Paired, since the same videos are drawn: far narrower than either figure's own interval.
    alone = intervals([one])["overall", "all"]
    assert found.interval.high - found.interval.low < (alone.high - alone.low) / 2
    assert found.p < 0.01
    same = differences([one], [Figure("overall", "all", list(one.marks), one.clusters)])["overall", "all"]
    assert (same.value, same.p) == (0, 1)


def test_record_items_and_page(tmp_path: Path):
    answers = [(q.id, "A" if q.kind == "choice" else "yes") for q in QUESTIONS if q.id != "s3"]
    scores = score(Toy(QUESTIONS), write(tmp_path, answers))
    other = score(Toy(QUESTIONS), write(tmp_path, [(q.id, q.answer) for q in QUESTIONS], "other.jsonl"))
    found = json.loads(json.dumps(record(scores, compared=other, draws=50), allow_nan=False))
    assert found["missing"] == {"count": 1, "ids": ["s3"]}
    assert found["comparison"]["questions"] == 9
    assert found["comparison"]["left_out"] == 1
    assert found["comparison"]["right"] == {"both": 5, "only_this": 0, "only_other": 4, "none": 0}
    told = " ".join(words.findings(found))
    assert "1 question has no answer: counted as wrong by the strict rules." in told
    assert "never looks at the video does as well in mean of tasks" in told
    write_items(scores, tmp_path / "items.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "items.csv").read_text(encoding="utf-8"))))
    assert [row["id"] for row in rows] == [*(id for id, _ in answers), "s3"]
    assert (rows[-1]["missing"], rows[-1]["official mark"], rows[-1]["strict mark"]) == ("1", "", "0")
    page = render(found, "A toy <suite>")
    assert "A toy &lt;suite&gt;" in page
    assert page.count('<svg class="chart ranges"') == 1  # the overall figure is a tile
    assert "nan" not in page


def test_figures_without_units_are_dashes():
    empty = Figure("task", "none")
    assert (empty.value, empty.text, empty.total) == (None, "-", 0)
    assert (
        Figure(
            "overall", "mean", parts=(empty, figure("task", "x", [Row(Answer(QUESTIONS[0], "A"), Verdict(1.0))]))
        ).value
        == 100
    )


def test_the_collector_stands_still_inside_alone():
    assert gc.isenabled()

    @uncollected()
    def fails() -> None:
        assert not gc.isenabled()
        raise InvalidValue("whatever happens")

    with pytest.raises(InvalidValue):
        fails()
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_ratios_of_conditions_are_shown(tmp_path: Path):
    def scored(right: int, name: str):
        answers = [(q.id, q.answer if place < right else "") for place, q in enumerate(QUESTIONS)]
        return score(Toy(QUESTIONS), write(tmp_path, answers, name))

    many = scored(8, "many.jsonl")
    found = record(many, conditions={"single": scored(4, "one.jsonl"), "shuffled": scored(5, "s.jsonl")}, draws=20)
    (told,) = words.diagnosis(found)
    assert told == (
        "On 10 questions by the official rules: with all frames 80.0, with one 40.0 and shuffled 50.0. "
        "Multi-Frame Gain +100.0 %, Frame Order Sensitivity +60.0 %."
    )
    assert words.diagnosis_lines(found)[0] == ("all", ["10", "80.0", "40.0", "50.0", "–", "100.0", "–", "60.0", "–"])
    assert "Does it take time?" in render(found, "A toy")
    assert words.diagnosis(record(many, draws=20)) == []
