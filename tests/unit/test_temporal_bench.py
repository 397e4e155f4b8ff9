"""TemporalBench: its files, its first-character rule, accuracy by video, captions, and what the texts give away."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from foveate.cli.main import app
from foveate.errors import InvalidValue, UnknownName
from foveate.scorers.base import Answer, Figure, Question, Row, Verdict
from foveate.scorers.baselines import blind
from foveate.scorers.record import record
from foveate.scorers.score import Scores, score
from foveate.scorers.temporal_bench import (
    _BY_CATEGORY,
    _BY_DATASET,
    CATEGORIES,
    TemporalBench,
    binary_accuracy,
    multiple_binary_accuracy,
)
from foveate.scorers.temporal_bench_text import centrality, text_only_answers

SHORT, LONG, CAPTION = "temporalbench_short_qa", "temporalbench_long_qa", "temporalbench_short_caption"


def ask(video: str, place: int, truth: str, category: str | None = "Others", **changes: Any) -> dict[str, Any]:
    text = f"Which caption best describes this video?\nA. A cart rolls left {place}. \nB. A cart rolls right {place}."
    asked = {
        "idx": f"{video}_{place}",
        "video_name": video,
        "dataset": video.split("/")[1],
        "question": f"{text}\nAnswer with the option's letter from the given choices directly.",
        "GT": truth,
        **({} if category is None else {"category": category}),
        **changes,
    }
    return {key: value for key, value in asked.items() if value is not None}


ONE, TWO, FAR = "short_video/COIN/one.mp4", "short_video/Oops/two.mp4", "long_video/COIN/far.mp4"
ASKED = [
    ask(ONE, 0, "A", "Event Order"),
    ask(ONE, 1, "B", "Action Type"),
    ask(ONE, 2, "B", "Event Order"),
    ask(TWO, 0, "A", "Action Type"),
    ask(TWO, 1, "B", "Others"),
]
FARTHER = [ask(FAR, 0, "B", None), ask(FAR, 1, "A", None)]
CAPTIONS = [
    {"idx": f"{v}_0", "video_name": v, "question": "Describe it.", "GT": t} for v, t in ((ONE, "aab"), (TWO, "b"))
]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    for name, asked in ((SHORT, ASKED), (LONG, FARTHER), (CAPTION, CAPTIONS)):
        (tmp_path / f"{name}.json").write_text(json.dumps(asked))
    return tmp_path


def write(root: Path, lines: list[Any], name: str = f"outputs/{SHORT}/m-frame8.jsonl") -> Path:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(value) + "\n" for value in lines))
    return file


def said(asked: list[dict[str, Any]], responses: list[Any]) -> list[dict[str, Any]]:
    return [{"idx": q["idx"], "response": r} for q, r in zip(asked, responses, strict=True)]


def figures(scores: Scores, rules: str = "official") -> dict[str, str]:
    return {name: figure.text for (_, name), figure in scores.by_rules[rules].figures.items()}


def embed(texts: list[str]) -> np.ndarray:
    """Counts of the letters a and b."""
    return np.array([[text.count("a"), text.count("b")] for text in texts], float)


def test_questions_of_the_release(release: Path) -> None:
    suite = TemporalBench(release)
    assert len(suite.questions) == 9
    asked = suite.questions[f"short_qa/{ONE}_1"]
    assert asked.options == {"A": "A cart rolls left 1.", "B": "A cart rolls right 1."}
    assert asked.groups == {"dataset": "COIN", "category": "Action Type"}
    assert suite.prompt(asked) == ASKED[1]["question"]
    assert suite.questions[f"short_caption/{ONE}_0"].kind == "text"
    assert suite.notes.sentences == [f"{release / SHORT}.json: 5 questions, published were 9,867."]
    assert len(TemporalBench(release / f"{LONG}.json").questions) == 2
    assert len(TemporalBench(release, tasks=["long_qa", "short_caption"]).questions) == 4
    several = "Which?\nA. First he\njumps.\nB. Then\n\nhe runs.\nAnswer with the letter."
    (release / f"{SHORT}.json").write_text(json.dumps([ask(ONE, 0, "a", question=several)]))
    asked = TemporalBench(release).questions[f"short_qa/{ONE}_0"]
    assert (asked.options, asked.answer) == ({"A": "First he\njumps.", "B": "Then\n\nhe runs."}, "A")


def test_counts_are_held_against_those_published(tmp_path: Path) -> None:
    datasets = [name for name, count in _BY_DATASET.items() for _ in range(count)]
    categories = [name for name, count in _BY_CATEGORY.items() for _ in range(count)]
    pairs = enumerate(zip(datasets, categories, strict=True))
    asked = [ask(f"short_video/{name}/x.mp4", place, "A", category) for place, (name, category) in pairs]
    file = tmp_path / f"{SHORT}.json"
    file.write_text(json.dumps(asked))
    assert TemporalBench(file).notes.sentences == []
    file.write_text(json.dumps([{**asked[0], "category": "Others", "dataset": "Else"}, *asked[1:]]))
    by_category, by_dataset = TemporalBench(file).notes.sentences
    assert "are not those published: Action Order 128 for 129, Others 1,343 for 1,342" in by_category
    assert "ActivityNet 1,185 for 1,186, Else 1 for 0" in by_dataset


def test_a_suite_asks_what_was_chosen_of_it(release: Path) -> None:
    suite = TemporalBench(release, tasks=["short_qa"])
    suite.questions = {id: question for id, question in suite.questions.items() if question.video == ONE}
    write(release, said(ASKED[:2], ["A", "B"]))
    assert score(suite, release / "outputs").missing == [f"short_qa/{ONE}_2"]
    write(release, said(ASKED[:1], ["B"]), f"outputs/{SHORT}/other.jsonl")
    assert len(score(suite, release / "outputs").missing) == 3
    assert score(suite, release / "outputs" / SHORT / "other.jsonl").missing == [f"short_qa/{ONE}_{n}" for n in (1, 2)]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([ASKED[0], ASKED[0]], "is there twice"),
        ([ask(ONE, 0, "C")], "has GT 'C': A or B"),
        ([ask(ONE, 0, "A", GT=None)], "question 0 is none of TemporalBench"),
        (["A"], "question 0 is none of TemporalBench"),
        ({"A": 1}, "holds an object and no list"),
    ],
)
def test_broken_annotations_are_refused(release: Path, asked: Any, message: str) -> None:
    (release / f"{SHORT}.json").write_text(json.dumps(asked))
    with pytest.raises(InvalidValue, match=message) as raised:
        TemporalBench(release)
    assert SHORT in str(raised.value)


def test_bad_names_and_files_are_refused(release: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'short_qa'"):
        TemporalBench(release, tasks=["short_q"])
    (release / f"{LONG}.json").unlink()
    with pytest.raises(InvalidValue, match=r"has no temporalbench_long_qa\.json"):
        TemporalBench(release, tasks=["long_qa"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.json").write_text("[]")
    with pytest.raises(InvalidValue, match=r"has no temporalbench_short_qa\.json or"):
        TemporalBench(tmp_path / "empty")
    with pytest.raises(InvalidValue, match="give the annotations"):
        score(TemporalBench(), write(release, said(ASKED, ["A"] * 5)))


def test_the_first_character_counts_and_a_video_is_right_as_a_whole(release: Path) -> None:
    file = write(release, said(ASKED, ["A. left", "b", "because", " A", "Answer: B"]))
    found = score(TemporalBench(release), file)
    assert figures(found) == {
        "short_qa, MBA": "50.00",
        "short_qa, binary": "60.00",
        "COIN, MBA": "100.00",
        "COIN, binary": "100.00",
        "Oops, MBA": "0.00",
        "Oops, binary": "0.00",
        "Action Type, MBA": "50.00",
        "Action Type, binary": "50.00",
        "Event Order, MBA": "100.00",
        "Event Order, binary": "100.00",
        "Others, MBA": "0.00",
        "Others, binary": "0.00",
    }
    # Strictly "because" names nothing, and what has a blank or a word before the letter is read.
    strict = {
        row.answer.question.id[-1] + row.answer.question.video[12]: row.verdict for row in found.by_rules["strict"].rows
    }
    assert figures(found, "strict")["short_qa, MBA"] == "50.00"
    assert [strict[key].mark for key in ("0C", "1C", "2C", "0O", "1O")] == [1, 1, 0, 1, 1]
    assert [found.by_rules[rules].unreadable for rules in ("official", "strict")] == [1, 1]
    # A video stands in every category that it has questions of.
    totals = {
        name: f.total for (section, name), f in found.by_rules["official"].figures.items() if "category" in section
    }
    assert sum(total for name, total in totals.items() if "MBA" in name) == 4 > 2


def test_the_official_print_out_is_that_of_each_file(release: Path) -> None:
    all_categories = [ask(f"short_video/COIN/{place}.mp4", 0, "A", name) for place, name in enumerate(CATEGORIES)]
    (release / f"{SHORT}.json").write_text(json.dumps(all_categories))
    write(release, said(all_categories, ["A"] * 7 + ["B"]), f"outputs/{SHORT}/x.jsonl")
    write(release, said(all_categories[1:], ["A"] * 7), f"outputs/{SHORT}/w.jsonl")
    write(release, said(FARTHER, ["B", "B"]), f"outputs/{LONG}/x.jsonl")
    suite = TemporalBench(release)
    text = suite.official_text(score(suite, release / "outputs").by_rules["official"].rows)
    assert [line.split()[1] for line in text.splitlines() if line.startswith("***")] == [
        "w.jsonl",
        "x.jsonl",
        "x.jsonl",
    ]
    assert "Binary Accuracy:                         7/8               87.50%\n" in text
    assert "|--- Others                                   0/1               0.00% ||| 0/1               0.00%\n" in text
    assert (
        "||| Multiple Binary Accuracy                   \n" + "+" * 110 + "\nError running video: 'Action Order'\n"
        in text
    )
    assert text.endswith(
        "|--- COIN                                     1/2               50.00% ||| 0/1               0.00%\n"
    )
    assert text.count("|-- Category") == 2
    assert text.count("|--- Action Type") == 1  # the table ends where it fails
    shown = CliRunner().invoke(
        app, ["score", "temporal_bench", str(release / "outputs"), "--against", str(release), "--official-text"]
    )
    assert shown.stdout == text


def test_a_long_name_moves_the_columns_as_it_does_there(release: Path) -> None:
    (release / f"{LONG}.json").write_text(json.dumps([ask(FAR, 0, "B", None, dataset="d" * 41)]))
    suite = TemporalBench(release, tasks=["long_qa"])
    file = write(release, said(FARTHER[:1], ["B"]), f"outputs/{LONG}/m.jsonl")
    text = suite.official_text(score(suite, file).by_rules["official"].rows)
    assert f"|--- {'d' * 41}  1/1               100.00%" in text


def test_where_the_official_script_stops_we_say_so_and_go_on(release: Path) -> None:
    lines = [
        *said(ASKED, ["", None, [], 5, ["B"]]),
        {"idx": "nope", "response": "A"},
        {"response": "A"},
        {"idx": f"{ONE}_0"},
        [1],
    ]
    file = write(release, lines)
    file.write_text(file.read_text() + '{"idx": "x", "respo')
    found = score(TemporalBench(release), file)
    told = "\n".join(found.notes)
    for problem in (
        f"{ONE}_0: response is '': the official script stops here (IndexError: string index out of range)",
        "response is None: the official script stops here (TypeError: 'NoneType' object is not subscriptable)",
        "response is []: the official script stops here (IndexError: list index out of range)",
        "response is 5: the official script stops here (TypeError: 'int' object is not subscriptable)",
        "line 6: no question has idx 'nope': the official script stops here (KeyError: 'nope'), left out",
        "line 7: has no idx, left out",
        "line 8: has no response, left out",
        "line 9: not an object but a list",
        "line 10: not JSON",
    ):
        assert problem in told, problem
    assert [row.verdict.mark for row in found.by_rules["official"].rows] == [0, 0, 0, 0, 1]  # so the script takes ["B"]
    assert found.by_rules["official"].unreadable == 4
    assert figures(found)["Oops, binary"] == "50.00"


def test_a_release_that_says_source_dataset_is_read(release: Path) -> None:
    asked = [ask(ONE, 0, "A", dataset=None, source_dataset="COIN"), ask(ONE, 1, "A", source_dataset="wrong")]
    asked += [ask(TWO, 0, "A", dataset=None)]
    (release / f"{SHORT}.json").write_text(json.dumps(asked))
    suite = TemporalBench(release)
    assert [q.groups.get("dataset") for q in suite.questions.values() if q.task == "short_qa"] == ["COIN", "COIN", None]
    stops = [sentence for sentence in suite.notes.sentences if "KeyError: 'dataset'" in sentence]
    assert len(stops) == 1


def test_missing_and_repeated_answers(release: Path) -> None:
    right = said(ASKED, ["A", "B", "B", "A", "B"])
    half = score(TemporalBench(release), write(release, right[:3]))
    assert figures(half)["short_qa, MBA"] == "100.00"  # the official script never misses a question
    assert figures(half, "strict")["short_qa, MBA"] == "50.00"
    assert figures(half, "strict")["short_qa, binary"] == "60.00"
    assert len(half.missing) == 2
    twice = score(TemporalBench(release), write(release, [*right, right[0]]))
    assert twice.by_rules["official"].figures["overall", "short_qa, binary"].total == 6
    assert figures(twice)["short_qa, MBA"] == "100.00"
    spoilt = score(TemporalBench(release), write(release, [*right, {**right[0], "response": "B"}]))
    assert figures(spoilt)["short_qa, MBA"] == "50.00"
    assert figures(spoilt, "strict")["short_qa, MBA"] == "100.00"
    assert spoilt.repeated == [f"short_qa/{ONE}_0"]


def test_files_of_several_tasks_and_models(release: Path) -> None:
    write(release, said(ASKED, ["A", "B", "B", "A", "B"]))
    write(release, said(FARTHER, ["B", "B"]), f"outputs/{LONG}/m-frame8.jsonl")
    one = score(TemporalBench(release), release / "outputs")
    assert figures(one)["long_qa, binary"] == "50.00"
    assert one.by_rules["official"].figures["long_qa dataset", "COIN, binary"].total == 2
    assert not [note for note in one.notes if "runs" in note]
    write(release, said(ASKED[:1], ["B"]), f"outputs/{SHORT}/other.jsonl")
    two = score(TemporalBench(release), release / "outputs")
    assert figures(two)["short_qa, binary, m-frame8"] == "100.00"
    assert figures(two)["short_qa, binary, other"] == "0.00"
    assert len(two.missing) == 4
    assert "answers of 2 runs (m-frame8, other)" in " ".join(two.notes)
    only = score(TemporalBench(release, tasks=["long_qa"]), release / "outputs")
    assert list(figures(only)) == [
        "long_qa, MBA",
        "long_qa, binary",
        "COIN, MBA",
        "COIN, binary",
    ]


def test_a_file_outside_of_its_folder_is_known_by_its_ids(release: Path) -> None:
    loose = score(TemporalBench(release), write(release, said(FARTHER, ["B", "A"]), "answers.jsonl"))
    assert figures(loose)["long_qa, MBA"] == "100.00"
    ours = [{"id": f"short_qa/{q['idx']}", "response": q["GT"]} for q in ASKED]
    ours += [{"id": f"long_qa/{q['idx']}", "response": q["GT"]} for q in FARTHER]
    both = score(TemporalBench(release), write(release, ours, "ours.jsonl"))
    assert (figures(both)["short_qa, binary"], figures(both)["long_qa, binary"]) == ("100.00", "100.00")
    assert both.notes == [f"{release / SHORT}.json: 5 questions, published were 9,867."]


def test_captions_are_compared_by_the_embedding_that_is_given(release: Path) -> None:
    file = write(release, said(CAPTIONS, ["ab", None]), f"outputs/{CAPTION}/m.jsonl")
    suite = TemporalBench(release, embed=embed)
    found = score(suite, file)
    cosine = (2 + 1) / math.sqrt(5 * 2)
    assert [row.verdict.mark for row in found.by_rules["official"].rows] == pytest.approx([cosine, 0])
    assert figures(found)["short_caption, similarity"] == f"{50 * cosine:.4f}"
    rows = found.by_rules["official"].rows
    stars = "*" * 20
    assert suite.official_text(rows) == f"{stars} m.jsonl {stars}\nAverage similarity: {50 * cosine:.4f}\n"
    assert "response is None and no caption, counted as 0" in " ".join(found.notes)
    with pytest.raises(InvalidValue, match="captions need an embedding"):
        score(TemporalBench(release), file)
    write(release, said(ASKED, ["A"] * 5))
    mixed = score(TemporalBench(release), release / "outputs")
    assert "2 captions are not scored" in " ".join(mixed.notes)
    assert not [name for name in figures(mixed) if "caption" in name]
    json.dumps(record(mixed, draws=20), allow_nan=False)
    with pytest.raises(InvalidValue, match=r"\(2, width\) is needed"):
        score(TemporalBench(release, embed=lambda texts: np.ones(3)), file)


# Accuracy by video --------------------------------------------------------------------------------------------------


def rows_of(marks: list[tuple[int, float]]) -> list[Row]:
    asked = [Question(str(i), "short_qa", f"v{v}", "", "A", "choice") for i, (v, _) in enumerate(marks)]
    return [Row(Answer(q, None), Verdict(m)) for q, (_, m) in zip(asked, marks, strict=True)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 1.0])), min_size=1, max_size=30), st.randoms())
def test_by_video_counts_videos_without_a_wrong_answer(marks: list[tuple[int, float]], draw: random.Random) -> None:
    videos = {v for v, _ in marks}
    right = {v for v in videos if all(m for w, m in marks if w == v)}
    figure = multiple_binary_accuracy(rows_of(marks))
    assert (sum(figure.marks), figure.total) == (len(right), len(videos))
    shuffled = list(marks)
    draw.shuffle(shuffled)
    assert multiple_binary_accuracy(rows_of(shuffled)).value == figure.value
    assert binary_accuracy(rows_of(shuffled)).value == binary_accuracy(rows_of(marks)).value


def test_by_video_may_be_more_where_videos_have_unequal_numbers_of_questions() -> None:
    rows = rows_of([(0, 1.0), (1, 0.0), (1, 0.0), (1, 0.0)])
    assert (multiple_binary_accuracy(rows).value, binary_accuracy(rows).value) == (50, 25)


def test_values_are_rounded_as_the_script_does() -> None:
    # 23/160 * 100 is a little less than 100 * 23/160, and rounded to the other side.
    found = binary_accuracy(rows_of([(i, float(i < 23)) for i in range(160)]))
    assert (found.text, f"{100 * 23 / 160:.2f}") == ("14.37", "14.38")
    assert isinstance(found, Figure)


def test_a_coin_by_video_is_what_the_number_of_questions_says(release: Path) -> None:
    suite = TemporalBench(release, tasks=["short_qa"])
    found = blind(suite, suite.questions.values())["random"]
    assert found["overall", "short_qa, binary"].value == 50
    assert found["overall", "short_qa, MBA"].value == pytest.approx(100 * (2**-3 + 2**-2) / 2)


# Text alone ---------------------------------------------------------------------------------------------------------


def test_the_centre_is_what_shares_most() -> None:
    captions = ["he lifts the left hand twice", "he lifts the right hand twice", "he drops the left hand twice"]
    found = centrality(captions)
    assert found[0] == max(found) > found[1] == found[2]
    assert centrality(["a b c", "a b", "x"]) == [pytest.approx(1 / 3), pytest.approx(1 / 2), 0]
    assert centrality(["alone"]) == [0]
    assert centrality(["", "x"]) == [0, 0]


def test_a_chooser_among_all_captions_needs_no_video_and_one_of_pairs_does(release: Path) -> None:
    asked, words = [], ["left", "right", "up", "down", "slowly", "quickly", "once", "twice"]
    for video in range(60):
        true = [f"w{video}{i}" for i in range(8)]
        for place in range(4):
            edit = list(true)
            edit[2 * place] = words[place]
            pair = [" ".join(true), " ".join(edit)]
            right = "AB"[(video + place) % 2]
            a, b = pair if right == "A" else pair[::-1]
            asked.append(ask(f"short_video/COIN/{video}.mp4", place, right, question=f"Q\nA. {a}\nB. {b}\nLetter."))
    (release / f"{SHORT}.json").write_text(json.dumps(asked))
    suite = TemporalBench(release, tasks=["short_qa"])
    found = blind(suite, suite.questions.values())
    assert found["centre, n-way"]["overall", "short_qa, MBA"].value == 100
    assert found["centre, binary"]["overall", "short_qa, binary"].value == pytest.approx(50, abs=10)
    texts = list(suite.questions.values())
    assert text_only_answers(texts, "n-way") == {q.id: q.answer for q in texts}
    assert text_only_answers(texts) == text_only_answers(texts, "binary") != text_only_answers(texts, "n-way")
    file = write(release, [{"id": id, "response": said} for id, said in text_only_answers(texts, "n-way").items()])
    told = record(score(suite, file), draws=20)["baselines"]
    assert {"random", "majority", "centre, binary", "centre, n-way"} == set(told)
