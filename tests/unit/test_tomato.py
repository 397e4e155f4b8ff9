"""TOMATO: the layouts it is read from, its rule and what it leaves to chance, its tables, and the three ratios."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import foveate
from foveate.claims._data import data_file
from foveate.cli.main import app
from foveate.errors import InvalidValue, UnknownName
from foveate.scorers.baselines import blind
from foveate.scorers.score import Scores, score
from foveate.scorers.tomato import TASKS, Tomato, build_prompt, parse_response
from foveate.scorers.tomato_diagnostics import (
    Diagnosis,
    Item,
    audit,
    average,
    diagnose,
    frame_information_disparity,
    frame_order_sensitivity,
    multi_frame_gain,
)

COUNT = data_file("tomato/data/count.json")
REAL = None if COUNT is None else COUNT.parent
needs_data = pytest.mark.skipif(REAL is None, reason="TOMATO's questions are absent: $FOVEATE_DATA/tomato")
LETTERS = {"A": "2", "B": "Left.", "C": "FIRST UP."}


def item(options: list[str], answer: int, scene: str = "human", key: str = "k") -> dict[str, Any]:
    return {"question": "Which?", "options": options, "answer": answer, "key": key, "demonstration_type": scene}


COUNTS = {"0": item(["2", "1", "3"], 2), "1": item(["2", "1"], 0, "object", "l"), "2": item(["5", "6"], 1)}
MOVES = {"0": item(["Left.", "Right.", "Up."], 1, "human", "m"), "3": item(["Left.", "Right."], 0, "simulated")}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for task, items in (("count", COUNTS), ("direction", MOVES)):
        (tmp_path / "data" / f"{task}.json").write_text(json.dumps(items))
    return tmp_path


def line(task: str, id: str, response: Any) -> dict[str, Any]:
    asked = {"count": COUNTS, "direction": MOVES}[task][id]
    prompt, letters, texts = build_prompt(asked["question"], asked["options"], 16)
    truth = f"{letters[asked['answer']]}. {asked['options'][asked['answer']]}"
    return {
        "id": id,
        "question": prompt,
        "response": response,
        "all_choices": letters,
        "index2ans": texts,
        "gt": truth,
    }


def write(root: Path, files: Mapping[str, list[Any]]) -> Path:
    for name, lines in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(value) + "\n" for value in lines))
    return root


RESULTS = {
    "results/shuffle_count+human/16/m.jsonl": [line("count", "0", "C"), line("count", "2", "The answer is B.")],
    "results/shuffle_count+object/16/m.jsonl": [line("count", "1", "b: 1")],
    "results/shuffle_direction+human/16/m.jsonl": [line("direction", "0", "Answer is: (A)")],
    "results/shuffle_direction+simulated/16/m.jsonl": [line("direction", "3", " a\n")],
}


def marks(scores: Scores, rules: str) -> dict[str, float]:
    return {row.answer.question.id: row.verdict.mark for row in scores.by_rules[rules].rows}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("b", "B"),
        (" B\n", "B"),
        ("D", None),
        ("B.", None),
        ("(B)", None),
        ("a: 2", "A"),
        ("B: Left.", None),
        ("c: first up.", "C"),
        ("Answer is:(f)", "F"),
        ("Answer isB)", "B"),
        ("Answer is: B", None),
        ("answer is:B", None),
        ("Answer is:B.", None),
        ("", None),
        ("Left.", None),
    ],
)
def test_the_rule_reads_what_it_reads(text: str, letter: str | None) -> None:
    assert parse_response(text, list(LETTERS), LETTERS) == letter


def test_the_prompt_names_frames_question_and_options() -> None:
    prompt, letters, texts = build_prompt("How often?", ["2", "3"], 8)
    assert prompt.startswith("You will be provided with 8 separate frames uniformly sampled")
    assert "<question> \nHow often? \n</question>\n\n<options> \n{'A': '2', 'B': '3'} \n</options>" in prompt
    assert (letters, texts) == (["A", "B"], {"A": "2", "B": "3"})
    assert "frames" not in build_prompt("How often?", ["2", "3"], 0)[0]
    with pytest.raises(InvalidValue, match="at least one"):
        build_prompt("How often?", [], 8)
    with pytest.raises(InvalidValue, match="0 or more"):
        build_prompt("How often?", ["2"], -1)


def test_questions_of_the_release(release: Path) -> None:
    for path in (release, release / "data"):
        suite = Tomato(path)
        assert list(suite.questions) == ["count/0", "count/1", "count/2", "direction/0", "direction/3"]
    asked = suite.questions["direction/0"]
    assert (asked.video, asked.truth, asked.answer) == ("videos/human/m.mp4", "B. Right.", "B")
    assert asked.options == {"A": "Left.", "B": "Right.", "C": "Up."}
    told = " ".join(suite.notes.sentences)
    assert "count.json: 3 questions, published were 292." in told
    assert "rotation.json is absent: its 286 questions are left out." in told
    assert suite.prompt(asked).startswith("You will be provided with 16 separate frames")
    one = Tomato(release / "data" / "count.json")
    assert (len(one.questions), len(one.notes.sentences)) == (3, 1)
    assert list(Tomato(release, tasks=["direction"], demonstrations="human").questions) == ["direction/0"]
    assert len(Tomato(release, demonstrations=("object", "simulated")).questions) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 3}, "question 0 has answer 3, but options 0 to 2"),
        ({"answer": "C"}, "question 0 has answer 'C'"),
        ({"demonstration_type": "robot"}, "demonstration_type 'robot': human, object, simulated"),
        ({"options": None}, "no question of TOMATO"),
    ],
)
def test_a_broken_question_is_named(release: Path, change: dict[str, Any], message: str) -> None:
    (release / "data" / "count.json").write_text(json.dumps({"0": {**COUNTS["0"], **change}}))
    with pytest.raises(InvalidValue, match=message) as raised:
        Tomato(release)
    assert "count.json" in str(raised.value)


def test_bad_names_and_files_are_refused(release: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'rotation'"):
        Tomato(release, tasks=["rotations"])
    with pytest.raises(UnknownName, match="unknown demonstration 'robot'"):
        Tomato(release, demonstrations=["robot"])
    with pytest.raises(InvalidValue, match="unparsed='luck' is not possible"):
        Tomato(unparsed="luck")  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match=r"has no rotation\.json"):
        Tomato(release, tasks=["rotation"])
    (release / "data" / "count.json").write_text("[]")
    with pytest.raises(InvalidValue, match="holds a list and no object"):
        Tomato(release)
    (release / "data" / "count.json").write_text('{"0": {')
    with pytest.raises(InvalidValue, match="ends too early"):
        Tomato(release)


def test_replies_are_read_by_both_rules_with_and_without_annotations(release: Path) -> None:
    write(release, RESULTS)
    for suite in (Tomato(), Tomato(release)):
        found = score(suite, release)
        # "The answer is B." goes to a model and then to chance among two, "Answer is: (A)" to chance among three.
        assert marks(found, "official") == pytest.approx(
            {"count/0": 1, "count/1": 0, "count/2": 1 / 2, "direction/0": 1 / 3, "direction/3": 1}
        )
        assert marks(found, "strict") == {"count/0": 1, "count/1": 0, "count/2": 1, "direction/0": 0, "direction/3": 1}
        assert [s.unreadable for s in found.by_rules.values()] == [2, 0]
        assert found.needs_judge == 2
        figures = found.by_rules["official"].figures
        assert figures["overall", "all"].text == "56.6667"
        assert figures["task", "count"].text == "50.0000"
        assert figures["demonstration", "object"].text == "0.0000"
    judged = score(Tomato(), release, judge=lambda question, truth, response: truth[0] in response)
    assert marks(judged, "official")["count/2"] == 1
    assert marks(judged, "official")["direction/0"] == 0


def test_what_is_not_read_can_be_drawn_or_wrong(release: Path) -> None:
    unread = [{**line("count", "0", "no idea"), "id": str(number)} for number in range(600)]
    write(release, {"results/shuffle_count+human/16/m.jsonl": unread})
    wrong = score(Tomato(unparsed="wrong"), release)
    assert wrong.by_rules["official"].overall.value == 0
    one, again, other = (score(Tomato(unparsed="draw", seed=seed), release) for seed in (1, 1, 2))
    assert marks(one, "official") == marks(again, "official")
    assert marks(one, "official") != marks(other, "official")
    assert set(marks(one, "official").values()) == {0.0, 1.0}
    assert one.by_rules["official"].overall.value == pytest.approx(100 / 3, abs=6)  # three standard errors


PARSED = {
    "parsed_results/shuffle_count+human/16/m.jsonl": [
        {"id": "0", "question": "q", "response": "C", "gt": "C. 3"},
        {"id": "2", "question": "q", "response": "b", "gt": "B. 6"},
        {"id": "2", "question": "q", "response": "B", "gt": "B. 6"},
    ],
    "parsed_results/shuffle_count+human/8/m.jsonl": [{"id": "0", "question": "q", "response": "A", "gt": "C. 3"}],
    "parsed_results/shuffle_count+object/16/n.v2.jsonl": [{"id": "1", "question": "q", "response": "A", "gt": "A"}],
}


def test_parsed_letters_are_compared_as_they_are(release: Path) -> None:
    write(release, PARSED)
    for suite in (Tomato(), Tomato(release)):
        found = score(suite, f"{release}/parsed_results/*/16/m.jsonl")
        official = found.by_rules["official"]
        assert official.figures["overall", "all"].marks == [1, 0, 1]
        assert (official.unreadable, found.needs_judge) == (1, 0)
        assert found.repeated == ["count/2"]
        assert found.by_rules["strict"].figures["task", "count"].marks[:2] == [1, 1]  # "b" names an option
    assert found.missing == ["count/1"]


def test_runs_in_one_folder_are_counted_apart(release: Path) -> None:
    write(release, PARSED)
    suite = Tomato(release)
    found = score(suite, release)
    figures = found.by_rules["official"].figures
    assert [(key, f.total) for key, f in figures.items() if key[0] == "overall"] == [
        (("overall", "m, 16 frames, shuffled"), 3),
        (("overall", "n.v2, 16 frames, shuffled"), 1),
        (("overall", "m, 8 frames, shuffled"), 1),
    ]
    assert figures["task", "count, m, 8 frames, shuffled"].value == 0
    assert found.by_rules["strict"].figures["overall", "n.v2, 16 frames, shuffled"].marks == [1, 0, 0]
    assert found.repeated == ["count/2 [m, 16 frames, shuffled]"]
    assert "count/0 [n.v2, 16 frames, shuffled]" in found.missing
    assert "answers of 3 runs" in " ".join(found.notes)
    assert len(suite.questions) == 9
    # The next folder begins anew.
    assert score(suite, f"{release}/parsed_results/*/8/m.jsonl").missing == ["count/1", "count/2"]


PRINTED = """filter result for main table
                  Score_per_Count_16_Frames
ReasonType Model                           
count      m                       0.666667
           n.v2                    1.000000

filter result for demonstration types
                Score_per_Count_16_Frames
DemoType Model                           
human    m                       0.666667
object   n.v2                    1.000000

filter result for models
       Score_per_Count_16_Frames
Model                           
m                       0.666667
n.v2                    1.000000

"""  # noqa: W291 (pandas ends lines with blanks)


def test_the_official_tables_are_of_sixteen_frames(release: Path) -> None:
    write(release, PARSED)
    suite = Tomato()
    assert suite.official_text(score(suite, release).by_rules["official"].rows) == PRINTED
    shown = CliRunner().invoke(app, ["score", "tomato", str(release), "--official-text"])
    assert shown.output == PRINTED


def test_a_folder_without_the_prefix_stops_the_official_scorer(release: Path) -> None:
    write(release, {name.replace("shuffle_", ""): lines for name, lines in PARSED.items()})
    suite = Tomato()
    found = score(suite, release)
    stops = [sentence for sentence in found.notes if "stops here (AttributeError: 'NoneType'" in sentence]
    assert len(stops) == 1
    assert suite.official_text(found.by_rules["official"].rows) == PRINTED
    assert ("overall", "m, 16 frames") in found.by_rules["official"].figures


def test_a_folder_with_both_layouts_is_read_as_the_scorer_reads_it(release: Path) -> None:
    write(write(release, RESULTS), PARSED)
    found = score(Tomato(), release)
    assert "parsed_results is read" in " ".join(found.notes)
    assert not [answer for answer in found.answers if "/results/" in answer.file]


def test_what_contradicts_the_annotations_is_noted(release: Path) -> None:
    lines = [
        {**line("count", "0", "A"), "gt": "A. 2"},
        {**line("count", "1", "a: 9"), "index2ans": {"A": "9", "B": "8"}},
        {**line("count", "2", "B"), "id": "77"},
    ]
    write(release, {"results/shuffle_count+human/16/m.jsonl": lines})
    found = score(Tomato(release), release / "results")
    told = " ".join(found.notes)
    assert "count/0: its gt is 'A. 2', the annotations say 'C. 3'" in told
    assert "count/1: is in a folder of human, the annotations say object" in told
    assert "count/1: its options are not those of the annotations" in told
    assert "count/77: no question of the annotations has this id, left out" in told
    assert marks(found, "official") == {"count/0": 1, "count/1": 1}
    assert marks(found, "strict") == {"count/0": 0, "count/1": 1, "count/2": 0}
    assert found.missing == ["count/2"]
    assert found.by_rules["official"].figures["demonstration", "human"].total == 2


def test_bad_lines_are_named_and_the_rest_is_scored(release: Path) -> None:
    responses: list[Any] = ["C", None, ["C"], 3, {"a": 1}, "C " * 5000]
    lines = [{**line("count", "0", response), "id": str(id)} for id, response in enumerate(responses)]
    write(release, {"results/shuffle_count+human/16/m.jsonl": lines})
    file = release / "results/shuffle_count+human/16/m.jsonl"
    bad = [{"response": "A"}, {"id": "8", "gt": "A"}, {"id": "9", "response": "A", "gt": None}, [1]]
    file.write_text(file.read_text() + "".join(json.dumps(value) + "\n" for value in bad) + '{"id": "10", "resp')
    write(release, {"results/shuffle_waving+human/16/m.jsonl": [line("count", "0", "C")]})
    (release / "results" / "shuffle_count+object").mkdir()
    (release / "results" / "shuffle_count+object" / "m.jsonl").write_text("")
    found = score(Tomato(), release)
    told = "\n".join(found.notes)
    for problem in (
        "line 7: has no id, left out",
        "line 8: has no response, left out",
        "count/9: its gt is None and no letter",
        "line 10: not an object but a list",
        "line 11: not JSON",
        "'waving' is no task of TOMATO: counted as one",
        "no line of it is a JSON object",
    ):
        assert problem in told, problem
    assert all("m.jsonl" in sentence or "+human" in sentence for sentence in found.notes)
    assert marks(found, "official") == pytest.approx(
        {"count/0": 1, "count/1": 0, "count/2": 0, "count/3": 0, "count/4": 0, "count/5": 1 / 3, "waving/0": 1}
    )
    assert marks(found, "strict")["count/2"] == 1  # a list of one answer is that answer
    assert found.by_rules["strict"].unreadable == 4


def test_answers_of_our_own_need_annotations(release: Path) -> None:
    lines = [
        {"id": "count/0", "response": "C"},
        {"id": "count/9", "response": "C"},
        {"id": "direction/3", "response": ""},
    ]
    write(release, {"answers.jsonl": lines})
    with pytest.raises(InvalidValue, match="give the annotations"):
        score(Tomato(), release / "answers.jsonl")
    found = score(Tomato(release), release / "answers.jsonl")
    assert marks(found, "official") == {"count/0": 1, "direction/3": 1 / 2}
    assert "count/9: no question of the annotations has this id" in " ".join(found.notes)
    only = score(Tomato(release, tasks=["count"]), release / "answers.jsonl")
    assert list(marks(only, "official")) == ["count/0"]
    assert len([sentence for sentence in only.notes if "no question" in sentence]) == 1
    assert "m" not in Tomato(release).official_text(found.by_rules["official"].rows).split()
    write(release, {"m.jsonl": [line("count", "0", "C")]})
    with pytest.raises(InvalidValue, match="has no answer to a question"):
        score(Tomato(release), release / "m.jsonl")  # its folder does not say which task it is of


def test_a_suite_asks_what_was_chosen_of_it(release: Path) -> None:
    suite = Tomato(release)
    suite.questions = {id: question for id, question in suite.questions.items() if id != "count/2"}
    write(release, {"answers.jsonl": [{"id": "count/0", "response": "C\u2028"}]})
    text = (release / "answers.jsonl").read_text()
    (release / "answers.jsonl").write_text(text.replace("\\u2028", "\u2028"), encoding="utf-8")
    found = score(suite, release / "answers.jsonl")
    assert found.missing == ["count/1"]
    assert marks(found, "official") == {"count/0": 1}  # a separator of lines in a reply ends no line of the file
    (release / "answers.jsonl").write_text("")
    with pytest.raises(InvalidValue, match="no line of it is a JSON object"):
        score(suite, release / "answers.jsonl")


@needs_data
def test_the_questions_are_those_published() -> None:
    suite = Tomato(REAL)
    assert suite.notes.sentences == []
    assert {task: sum(q.task == task for q in suite.questions.values()) for task in TASKS} == suite.published
    assert len(suite.questions) == 1484
    assert len({question.video for question in suite.questions.values()}) == 1397
    expected = blind(suite, suite.questions.values())["random"]
    assert round(expected["overall", "all"].value or 0, 2) == 19.91
    assert round(expected["task", "velocity&frequency"].value or 0, 2) == 24.43


@needs_data
def test_a_guesser_over_all_questions_gets_what_is_expected(tmp_path: Path) -> None:
    suite, draw = Tomato(REAL), random.Random(0)
    lines = [{"id": id, "response": draw.choice(list(q.options))} for id, q in suite.questions.items()]
    found = score(suite, write(tmp_path, {"answers.jsonl": lines}))
    assert found.missing == []
    assert found.by_rules["official"].overall.value == pytest.approx(19.91, abs=3.2)  # three standard errors
    assert marks(found, "official") == marks(found, "strict")


# Ratios -------------------------------------------------------------------------------------------------------------


def test_ratios_are_those_of_the_published_tables() -> None:
    assert multi_frame_gain(37.7, 21.2) == pytest.approx(78.0, abs=0.5)
    assert frame_order_sensitivity(37.7, 25.8) == pytest.approx(46.2, abs=0.5)
    assert frame_information_disparity(21.5, 20.5) == pytest.approx(4.9, abs=0.5)
    with pytest.raises(InvalidValue, match="one=0"):
        multi_frame_gain(10, 0)
    with pytest.raises(InvalidValue, match="shuffled=0"):
        frame_order_sensitivity(10, 0)
    assert math.isinf(multi_frame_gain(10, 0, infinite=True))
    with pytest.raises(InvalidValue, match="0 or more"):
        frame_information_disparity(-1, 10)
    with pytest.raises(InvalidValue, match="0 or more"):
        multi_frame_gain(math.nan, 10)


def test_the_average_is_that_of_ratios() -> None:
    models = [Diagnosis(40, 20, 30), Diagnosis(30, 30, None, 33)]
    found = average(models)
    assert found["multi_frame_gain"] == pytest.approx(50)  # of 100 and 0; the ratio of means would be 40
    assert found["frame_order_sensitivity"] == pytest.approx(100 / 3)
    assert found["frame_information_disparity"] == pytest.approx(10)
    assert average([Diagnosis(1, 0)])["multi_frame_gain"] is None
    assert json.loads(json.dumps(models[0].record))["best"] is None


def test_conditions_are_compared_on_what_all_of_them_answered(release: Path) -> None:
    def answered(name: str, said: dict[str, str]) -> Scores:
        lines = [{"id": id, "response": letter} for id, letter in said.items()]
        return score(Tomato(release), write(release, {f"{name}.jsonl": lines}) / f"{name}.jsonl")

    right = {"count/0": "C", "count/1": "A", "direction/0": "B"}
    many = answered("many", right)
    single = answered("single", {"count/0": "C", "count/1": "B", "direction/0": "A", "direction/3": "A"})
    found = diagnose(single, many, answered("shuffled", {**right, "count/1": "B"}), answered("best", right))
    official = found["official"]["all"]
    assert (official.questions, official.many, official.one) == (3, pytest.approx(100), pytest.approx(100 / 3))
    assert official.multi_frame_gain == pytest.approx(200)
    assert official.frame_order_sensitivity == pytest.approx(50)
    assert (official.gain_over_best, official.frame_information_disparity) == (0, pytest.approx(200))
    assert found["official"]["direction"].multi_frame_gain is None  # no answer right with one frame
    assert list(found["strict"]) == ["all", "count", "direction"]
    assert found["strict"]["all"].questions == 5  # those without an answer are wrong in every condition
    assert diagnose(single, many)["official"]["all"].shuffled is None
    with pytest.raises(InvalidValue, match="no question in common"):
        diagnose(
            score(Tomato(release), write(release, {"x.jsonl": [{"id": "direction/3", "response": "A"}]}) / "x.jsonl"),
            many,
        )
    with pytest.raises(InvalidValue, match="different rules"):
        diagnose(
            score(Tomato(release), release / "many.jsonl", rules=("strict",)),
            score(Tomato(release), release / "many.jsonl", rules=("official",)),
        )


def test_an_audit_tells_order_from_appearance() -> None:
    draw = random.Random(0)
    still = [Item("what", ["x"] * 20, "x") for _ in range(50)]
    moving = [Item("where", list(range(40)) if up else list(range(40, 0, -1)), up) for up in [True, False] * 100]

    def reads(question: str, frames: list[Any]) -> Any:
        if question == "what":
            return frames[0]
        steps = [b > a for a, b in itertools.pairwise(frames)]
        return steps[0] if steps and len(set(steps)) == 1 else draw.random() < 0.5

    static, temporal = audit(reads, still, 8), audit(reads, moving, 8)
    assert static.diagnosis.record == {
        **dict.fromkeys(("many", "one", "shuffled", "best"), 100),
        **dict.fromkeys(("multi_frame_gain", "gain_over_best", "frame_order_sensitivity"), 0),
        "frame_information_disparity": 0,
        "questions": 50,
    }
    assert temporal.diagnosis.many == 100
    assert temporal.diagnosis.shuffled == pytest.approx(50, abs=11)
    assert temporal.diagnosis.one == pytest.approx(50, abs=4)
    assert temporal.calls == 200 * 10
    assert temporal.diagnosis.one == pytest.approx(sum(temporal.by_frame) / 8)


def test_an_audit_takes_frames_as_the_authors_do_and_the_picked_one() -> None:
    seen: list[list[int]] = []

    def reads(question: str, frames: list[int]) -> int:
        seen.append(frames)
        return frames[0]

    found = audit(reads, [Item("q", range(10), 7, best=7)], 4)
    assert seen[0] == [0, 3, 6, 9]
    assert sorted(seen[1]) == seen[0]
    assert seen[1] != seen[0]
    assert seen[2:] == [[0], [3], [6], [9], [7]]
    assert (found.diagnosis.best, found.diagnosis.one, found.calls) == (100, 0, 7)
    seen.clear()
    audit(reads, [Item("q", [5], 5)], 3)  # a video shorter than the sampling
    assert seen[:2] == [[5, 5, 5], [5, 5, 5]]
    for items, frames, message in (
        ([], 4, "at least one"),
        ([Item("q", [], 1)], 4, "no frames"),
        ([], 1, "at least 2"),
    ):
        with pytest.raises(InvalidValue, match=message):
            audit(reads, items, frames)


def test_the_command_line_scores_it(release: Path) -> None:
    write(release, RESULTS)
    words = ["score", "tomato", str(release / "results"), "--against", str(release), "--json", "--draws", "20"]
    shown = CliRunner().invoke(app, [*words, "--out", str(release / "out"), "--tasks", "count"], catch_exceptions=False)
    found = json.loads(shown.stdout)
    assert found["rules"]["official"]["figures"][0]["text"] == "50.0000"
    assert found["baselines"]["random"]["overall/all"] == pytest.approx(100 * (1 / 3 + 1 / 2 + 1 / 2) / 3)
    assert (release / "out" / "report.html").is_file()
    assert foveate.create("tomato", kind="scorer").slug == "tomato"
