"""MVBench: reading, three published rules and a strict one, result files, frames, and questions of one's own."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.errors import InvalidValue, UnknownName
from foveate.scorers.baselines import blind
from foveate.scorers.mvbench import TASKS, MVBench, leaderboard, result_file, stem
from foveate.scorers.mvbench_annotations import Action, Annotated, read_annotated
from foveate.scorers.mvbench_generate import generate
from foveate.scorers.mvbench_rules import (
    RULES,
    check_answer,
    frame_indices,
    lmms_letter,
    primed_reply,
    question_text,
)
from foveate.scorers.mvbench_tasks import MAKERS
from foveate.scorers.score import score


def item(place: int, task: str = "Action Antonym", **fields: Any) -> dict[str, Any]:
    told = {"video": f"{place}.mp4", "question": f"Which {place}?", "candidates": ["up", "down", "not sure"]}
    bounds = {"start": 1.0, "end": 4.5} if TASKS[task][3] else {}
    return {**told, "answer": "down" if place % 2 else "up", **bounds, **fields}


def release(folder: Path, items: Mapping[str, list[dict[str, Any]]]) -> Path:
    (folder / "json").mkdir(parents=True, exist_ok=True)
    for task, own in items.items():
        (folder / "json" / f"{stem(task)}.json").write_text(json.dumps(own))
    return folder


def write(file: Path, content: Any) -> Path:
    file.write_text(json.dumps(content))
    return file


ITEMS = {
    "Action Sequence": [item(i, "Action Sequence") for i in range(3)],
    "Action Antonym": [item(i) for i in range(2)],
}
REPLIES = ["(A) up", "(", "b", "(C)", "Down."]


def rows() -> list[dict[str, str]]:
    truths = [f"({'BA'[i % 2 == 0]}) {own['answer']}" for own in ITEMS.values() for i, own in enumerate(own)]
    return [{"pred": pred, "gt": gt} for pred, gt in zip(REPLIES, truths, strict=True)]


# Rules


@pytest.mark.parametrize(
    ("pred", "right"),
    [
        # reply: right by v1, hd, lmms-eval, strict, where (A) is right
        ("(A) thing", "yyyy"),
        ("a", "yyyy"),
        ("A.", "yyyy"),
        ("(", "y---"),
        (")", "y---"),
        ("", "y---"),
        (".", "y---"),
        (" (B) other", "y---"),  # a leading blank is enough
        ("(AB", "-y--"),
        ("apple pie", "-y--"),  # a word with the letter in it
        ("Answer: A", "-yyy"),
        ("The answer is (A)", "--yy"),  # hd: "the" has an e, but no a
        ("thing", "---y"),
        ("(B) other", "----"),
        ("no idea", "----"),
    ],
)
def test_four_rules(pred: str, right: str):
    options = {"A": "thing", "B": "other", "C": "third"}
    found = {rule: check_answer(pred, "(A) thing", rule, options) for rule in RULES}
    assert "".join("y" if found[rule] else "-" for rule in ("v1", "hd", "lmms-eval", "strict")) == right


def test_strict_is_the_default_and_wants_a_letter():
    assert not check_answer("(", "(A) thing")
    assert check_answer("thing", "(A) thing")  # the text of the right option is known from the truth
    assert check_answer("B", "(b) thing")
    with pytest.raises(InvalidValue, match="behind its letter"):
        check_answer("A", "thing")
    with pytest.raises(UnknownName, match="strict"):
        check_answer("A", "(A) thing", "strickt")


@pytest.mark.parametrize(
    ("reply", "letter"),
    [("A. because", "A"), ("b.\nno", "B"), ("1,000 (C)", "C"), ("it is e", "E"), ("3.5 d", "D"), ("none", "none")],
)  # fmt: skip
def test_lmms_eval_takes_the_first_letter_that_stands_alone(reply: str, letter: str):
    assert lmms_letter(reply) == letter


@given(st.text())
def test_no_reply_stops_a_rule(reply: str):
    for rule in RULES:
        assert check_answer(reply, "(B) thing", rule) in (True, False)


def test_exchanging_options_along_with_replies_changes_nothing(tmp_path: Path):
    draw, found = random.Random(0), []
    texts = [[f"thing {i} {j}" for j in range(4)] for i in range(60)]
    said = [draw.randrange(4) for _ in texts]
    for order in (range(4), (2, 0, 3, 1)):
        own = [item(i, candidates=[text[j] for j in order], answer=text[i % 4]) for i, text in enumerate(texts)]
        folder = release(tmp_path / str(next(iter(order))), {"Action Antonym": own})
        replies = [f"({'ABCD'[list(order).index(j)]}) {text[j]}" for j, text in zip(said, texts, strict=True)]
        truths = [q.truth for q in MVBench(folder).questions.values()]
        content = [{"pred": p, "gt": g} for p, g in zip(replies, truths, strict=True)]
        for rule in ("v1", "hd", "lmms-eval"):
            by_rules = score(MVBench(folder, rule=rule), write(tmp_path / "r.json", content)).by_rules
            found += [scored.overall.value for scored in by_rules.values()]
    assert len(set(found)) == 1
    assert 0 < found[0] < 60


# Frames and prompts


@pytest.mark.parametrize(
    ("bound", "fps", "max_frame", "n", "first", "expected"),
    [
        (None, 25.0, 7, 8, 0, [0, 1, 2, 3, 4, 4, 5, 6]),
        ((0, 1.0), 3, 400, 4, 1, [1, 1, 2, 3]),
        (None, 29.97, 0, 4, 0, [0, 0, 0, 0]),
    ],
)
def test_frames_are_the_middles_of_equal_parts(bound, fps, max_frame, n, first, expected):
    assert frame_indices(bound, fps, max_frame, n, first) == expected


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        (((4.0, 4.0), 25, 100, 4, 0), "its start must come before its end"),
        (((9.0, 12.0), 10, 80, 4, 0), "the video ends before it"),
        ((None, 0.0, 80, 4, 0), "fps=0.0"),
        ((None, 25, 80, 0, 0), "n=0"),
    ],
)
def test_frames_that_there_cannot_be_are_refused(given_, says: str):
    with pytest.raises(InvalidValue, match=says):
        frame_indices(*given_)


def test_the_prompt_and_the_primed_reply(tmp_path: Path):
    suite = MVBench(release(tmp_path, ITEMS))
    question = suite.questions["action_sequence/1"]
    text = "Question: Which 1?\nOptions:\n(A) up\n(B) down\n(C) not sure"
    assert question_text(question.question, list(question.options.values())) == text
    assert suite.prompt(question).endswith(f"\n{text}\nOnly give the best option.")
    assert question.truth == "(B) down"
    assert question.video == "star/Charades_v1_480/1.mp4"
    assert (question.clip.start, question.clip.end) == (1.0, 4.5)
    assert suite.questions["action_antonym/0"].clip.start is None
    assert primed_reply("B) down\nbecause") == "(B) down"
    alone = score(MVBench(), write(tmp_path / "r.json", rows())).answers[0].question
    with pytest.raises(InvalidValue, match="give the annotations"):
        suite.prompt(alone)


# Files


def test_a_result_file_by_both_rules(tmp_path: Path):
    content = {"acc_dict": {"Action Sequence": [3, 3], "Action Antonym": [0, 2]}, "res_list": rows()}
    file = write(tmp_path / "result.json", content)
    suite = MVBench(release(tmp_path / "release", ITEMS))
    scores = score(suite, file)
    official, strict = scores.by_rules["official"], scores.by_rules["strict"]
    assert [row.verdict.mark for row in official.rows] == [1, 1, 0, 0, 0]
    assert [row.verdict.mark for row in strict.rows] == [1, 0, 0, 0, 1]
    assert (official.unreadable, strict.unreadable) == (2, 1)  # "(" and "Down.", which begins with no letter alone
    assert "acc_dict has 3 right, the rule v1 gives 2" in " ".join(scores.notes)
    assert official.figures["group", "Action"].total == 5
    assert result_file(official.rows) == {
        "acc_dict": {"Action Sequence": [2, 3], "Action Antonym": [0, 2]},
        "res_list": content["res_list"],
    }
    assert leaderboard(official.rows) == {"Action Sequence": 2 / 3 * 100, "Action Antonym": 0.0, "Avg": 2 / 5 * 100}
    assert suite.official_text(official.rows) == f"{leaderboard(official.rows)}\n"
    assert official.figures["task", "Action Sequence"].value == 2 / 3 * 100  # not 100 * 2 / 3
    assert official.figures["overall", "mean of tasks"].value == pytest.approx(100 / 3)


def test_layouts_agree(tmp_path: Path):
    folder = release(tmp_path / "release", ITEMS)
    counts = {"Action Sequence": [0, 3], "Action Antonym": [0, 2]}
    named = [{**row, "task_type": "Action Sequence" if i < 3 else "AA"} for i, row in enumerate(rows())]
    lines = [{"id": id, "response": row["pred"]} for id, row in zip(MVBench(folder).questions, rows(), strict=True)]
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = [
        write(tmp_path / "result.json", {"acc_dict": counts, "res_list": rows()}),
        write(tmp_path / "rows.json", rows()),
        write(tmp_path / "named.json", named),
        own,
    ]
    found = [score(MVBench(folder), file).by_rules for file in files]
    values = [{n: f.value for n, f in by["strict"].figures.items()} for by in found]
    assert values[0] == values[1] == values[2] == values[3]
    assert values[0]["task", "Action Antonym"] == 50
    with pytest.raises(InvalidValue, match="give the annotations"):
        score(MVBench(), own)
    # Without annotations rows without a task count for the whole alone.
    alone = score(MVBench(), files[1]).by_rules["official"].figures
    assert list(alone) == [("overall", "Avg")]
    parts = tmp_path / "parts"
    parts.mkdir()
    for task in ITEMS:
        own_rows = [row for row in named if (row["task_type"] == "AA") == (task == "Action Antonym")]
        write(parts / f"{stem(task)}.json", own_rows)
    whole = score(MVBench(folder), parts).by_rules["strict"].figures
    assert {n: f.value for n, f in whole.items()} == values[0]


def test_other_published_rules(tmp_path: Path):
    content = [{"pred": "(AB", "gt": "(A) up"}, {"pred": "", "gt": "(A) up"}, {"pred": "so: a", "gt": "(A) up"}]
    file = write(tmp_path / "r.json", content)
    found = {rule: score(MVBench(rule=rule), file).by_rules["official"].overall for rule in ("v1", "hd", "lmms-eval")}
    assert {rule: figure.marks for rule, figure in found.items()} == {
        "v1": [0, 1, 0],
        "hd": [1, 0, 0],
        "lmms-eval": [0, 1],  # what is empty is left out
    }
    with pytest.raises(InvalidValue, match="v1, hd or lmms-eval"):
        MVBench(rule="v2")


def test_what_contradicts_the_annotations_is_noted(tmp_path: Path):
    content = [{**row, "task_type": "Action Sequence" if i < 3 else "Action Antonym"} for i, row in enumerate(rows())]
    content[0]["gt"] = "(B) down"
    content[3]["gt"] = "(A) "
    extra = {"pred": "A", "gt": "(@) none", "task_type": "Action Antonym"}
    scores = score(MVBench(release(tmp_path / "release", ITEMS)), write(tmp_path / "r.json", [*content, extra]))
    told = " ".join(scores.notes)
    assert "action_sequence/0: its answer '(B) down' is '(A) up' in the annotations" in told
    assert "action_antonym/0: its right option is empty, the official script stops there" in told
    assert "action_antonym/2: its right answer '(@) none' has no letter" in told
    assert "Action Antonym: 3 answers to 2 questions" in told
    # The official rule goes by the file's truth, the strict one by the annotations'.
    assert [s.rows[0].verdict.mark for s in scores.by_rules.values()] == [0, 1]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"pred": "A"}, 'is no object with "pred" and "gt"'),
        ({"gt": "(A) up"}, 'is no object with "pred" and "gt"'),
        ("A", 'is no object with "pred" and "gt"'),
        ({"pred": "A", "gt": "(A) up", "task": "Action"}, "'Action' is none of the tasks"),
    ],
)
def test_rows_that_cannot_be_read_are_left_out(tmp_path: Path, row: Any, says: str):
    file = write(tmp_path / "r.json", [row, {"pred": "A", "gt": "(A) up", "task": "AA"}])
    scores = score(MVBench(), file)
    assert len(scores.answers) == 1
    assert f"{file}: row 0: {says}" in " ".join(scores.notes)


@pytest.mark.parametrize("response", [None, 3, ["A"], {"a": 1}])
def test_what_is_no_text_is_wrong_and_noted(tmp_path: Path, response: Any):
    file = write(tmp_path / "r.json", [{"pred": response, "gt": "(A) up"}])
    scores = score(MVBench(), file)
    assert "and no text, the official script stops there" in scores.notes[0]
    assert scores.by_rules["official"].overall.value == 0
    assert scores.by_rules["strict"].overall.value == (100 if response == ["A"] else 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answer": "left"}, "'left' is none of the candidates"),
        ({"candidates": ["up", "down", "down"]}, "'down' stands there twice"),
        ({"start": 4.5}, "begins at 4.5 and ends at 4.5"),
        ({"end": None}, "is no question of Action Sequence"),
        ({"candidates": None}, "is no question of Action Sequence"),
    ],
)
def test_annotations_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, Any], says: str):
    folder = release(tmp_path, {"Action Sequence": [item(0, "Action Sequence"), item(1, "Action Sequence", **change)]})
    with pytest.raises(InvalidValue, match=says) as caught:
        MVBench(folder)
    assert "action_sequence.json: question 1" in str(caught.value)


def test_bad_files_and_names_are_refused(tmp_path: Path):
    with pytest.raises(UnknownName, match="Action Count"):
        MVBench(tasks=["Action Counts"])
    with pytest.raises(InvalidValue, match=r"has no action_sequence\.json or the like"):
        MVBench(write(tmp_path / "other.json", []))
    with pytest.raises(InvalidValue, match="leaderboard of percentages"):
        score(MVBench(), write(tmp_path / "upload_leaderboard.json", {"Action Sequence": 50.0, "Avg": 50.0}))
    with pytest.raises(InvalidValue, match="has no list of answers"):
        score(MVBench(), write(tmp_path / "x.json", {"res": []}))
    with pytest.raises(InvalidValue, match="needs the candidates"):
        MVBench().random_accuracy()


def test_tasks_counts_and_guesses(tmp_path: Path):
    folder = release(tmp_path, ITEMS)
    suite = MVBench(folder)
    told = " ".join(suite.notes.sentences)
    assert "action_sequence.json: 3 questions, published were 200" in told
    assert "fine_grained_pose.json is absent" in told
    assert suite.random_accuracy() == pytest.approx(100 / 3)
    assert suite.summary_accuracy() == pytest.approx((5 + 1 / 9 + 1 / 6) / 15 * 100)
    for name in ("AA", "action_antonym", "Action Antonym"):
        assert {q.task for q in MVBench(folder, tasks=[name]).questions.values()} == {"Action Antonym"}
    assert blind(suite, suite.questions.values())["random"]["overall", "Avg"].value == pytest.approx(100 / 3)
    missing = score(suite, write(tmp_path / "r.json", [{"pred": "(A)", "gt": "(A) up", "task": "AA"}]))
    assert missing.missing == ["action_antonym/1"]
    assert missing.by_rules["strict"].overall.value == 50


# Questions of one's own


def video(number: int) -> dict[str, Any]:
    """All that can be said of a video, a little different for each number."""
    odd = [bool((number + i) % 2) for i in range(4)]
    part = number % 3 * 10
    things = [
        {
            "name": f"ball {i}",
            "attributes": {"color": f"color {(number + i) % 7}"},
            "places": [f"cup {i}", f"cup {number % 3 + 5}"],
            "states": ["full", "empty"] if odd[i] else ["cold", "hot"],
            "moves": [{"start": i, "end": 30 if odd[i] else 9, "direction": "to the left"}] if i < 2 else [],
        }
        for i in range(4)
    ]
    actions = [
        {"label": f"she lifts {number}", "start": part, "end": part + 3, "antonym": f"she drops {number}"},
        {"label": f"she falls {number}", "start": part + 3.5, "end": part + 6, "unexpected": True},
        *(
            {"label": f"she jumps {number}", "start": part + 6 + i, "end": part + 6.5 + i}
            for i in range(2 + number % 3 // 2)
        ),
    ]
    actions[0] |= {"verb": "lift", "object": f"box {number}"}
    actions[1] |= {"similar": ["she slips", "he falls"]}
    return {
        "video": f"v{number}.mp4",
        "duration": 30.0,
        "actions": actions,
        "objects": things,
        "scenes": [f"room {number % 5}", f"garden {number % 4}", "street"],
        "poses": [f"pose {number}"],
        "characters": random.Random(number).sample("catdog", 3),
        "route": {"instruction": f"leave room {number}", "next": ["stop", "turn left", "turn right"][number % 3]},
        "episodes": [{"question": "Why?", "answer": f"as {number}", "wrong": ["luck"], "start": 1, "end": 2 + number}],
        "counterfactuals": [{"without": "the ball", "happens": f"it stays {number}", "instead": ["it falls"]}],
    }


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("own") / "videos.json", [video(number) for number in range(12)])


def test_all_twenty_tasks_can_be_made_and_read_again(annotated: Path, tmp_path: Path):
    made = generate(annotated, seed=1)
    assert list(made.questions) == list(TASKS) == list(MAKERS)
    empty = [task for task, own in made.questions.items() if not own]
    assert not empty, made.left_out
    made.write(tmp_path)
    suite = MVBench(tmp_path)
    assert len(suite.questions) == sum(map(len, made.questions.values()))
    names = {f"v{number}.mp4" for number in range(12)}
    for question in suite.questions.values():
        assert question.video in names  # below the user's own folder
        assert 3 <= len(question.options) <= 4
        assert len(set(question.options.values())) == len(question.options)
        assert (question.clip.start is not None) == TASKS[question.task][3]
    with pytest.raises(InvalidValue, match="is there already"):
        made.write(tmp_path)


def test_the_right_answer_lies_everywhere_equally_often(annotated: Path):
    for own in generate(annotated, seed=2).questions.values():
        for count in {len(q["candidates"]) for q in own}:
            places = Counter(q["candidates"].index(q["answer"]) for q in own if len(q["candidates"]) == count)
            every = [places[place] for place in range(count)]
            assert max(every) - min(every) <= 1


def test_answers_of_closed_questions_are_balanced(annotated: Path):
    made = generate(annotated, seed=3)
    for task in ("Object Existence", "Action Localization", "Egocentric Navigation"):
        counts = Counter(q["answer"] for q in made.questions[task])
        assert len(counts) > 1
        assert len(set(counts.values())) == 1
    assert set(Counter(q["answer"] for q in made.questions["Object Existence"])) == {"yes", "no"}
    few = generate(annotated, tasks=["object_existence"], per_task=4).questions["Object Existence"]
    assert Counter(q["answer"] for q in few) == {"yes": 2, "no": 2}


def test_a_seed_makes_the_same_questions(annotated: Path):
    assert generate(annotated, seed=4).questions == generate(annotated, seed=4).questions
    assert generate(annotated, seed=4).questions != generate(annotated, seed=5).questions
    assert all(len(own) <= 3 for own in generate(annotated, per_task=3).questions.values())


def test_questions_ask_what_follows_from_the_annotation(annotated: Path):
    videos = {v.video: v for v in read_annotated(annotated)}
    made = generate(annotated).questions
    for q in made["Action Sequence"]:
        actions = sorted(videos[q["video"]].actions, key=lambda a: a.start)
        first = next(a for a in actions if f": {a.label}?" in q["question"])
        assert q["answer"] == actions[actions.index(first) + 1].label
        assert (q["start"], q["end"]) == (first.start, actions[actions.index(first) + 1].end)
        # The first wrong ones are of the same video: what is to be seen does not tell.
        assert sum(c in {a.label for a in actions} for c in q["candidates"]) >= 2
    for q in made["Action Prediction"]:
        assert any(a.start == q["end"] for a in videos[q["video"]].actions if a.label == q["answer"])
    for q in made["Action Count"]:
        counts = Counter(a.label for a in videos[q["video"]].actions)
        assert q["answer"] == str(counts[q["question"].removeprefix("How often does this happen: ")[:-1]])
    for q in made["Object Existence"]:
        thing = next(t for t in videos[q["video"]].objects if f"{t.name} moving" in q["question"])
        moving = any(m.end >= 30 if "ends" in q["question"] else m.start <= 0 for m in thing.moves)
        assert q["answer"] == ("yes" if moving else "no")
    for q in made["Scene Transition"]:
        assert q["answer"] == f"From {' to '.join(videos[q['video']].scenes)}."


def test_a_wrong_option_is_never_true():
    same = [
        Annotated(
            f"{name}.mp4",
            10.0,
            tuple(Action(label, float(i), i + 0.5, verb="lift", object="cup") for i, label in enumerate(labels)),
        )
        for name, labels in (("a", ["x", "y", "x"]), ("b", ["x", "z", "w", "v", "u"]))
    ]
    made = generate(same)
    seen = {v.video: {a.label for a in v.actions} for v in same}
    for q in made.questions["Fine-grained Action"]:
        assert seen[q["video"]] & set(q["candidates"]) == {q["answer"]}
    # What follows on x is not asked where x happens twice.
    asked = [q["question"] for q in made.questions["Action Sequence"] if q["video"] == "a.mp4"]
    assert not any(": x?" in text for text in asked)


def test_what_is_left_out_is_counted():
    alone = Annotated("a.mp4", 10.0, poses=("sits",), characters=("a", "b"))
    made = generate([alone])
    assert made.left_out["Fine-grained Pose"] == {"fewer than two wrong options": 1}
    assert made.left_out["Character Order"] == {"fewer than two wrong options": 1}
    assert not any(made.questions.values())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"video": None}, "video: None is not possible: give text"),
        ({"duration": "9"}, "duration: '9' is not possible: give a number"),
        ({"duration": 0}, "duration 0 is not possible"),
        ({"acts": []}, "'acts' is not known"),
        ({"actions": {}}, "actions: is an object and no list"),
        ({"actions": [{"label": "x", "start": 2}]}, "actions 0: has no end"),
        ({"actions": [{"label": "x", "start": 2, "end": 1}]}, "action 'x' is from 2 to 1 of 30 seconds"),
        ({"actions": [{"label": "x", "start": 2, "end": 31}]}, "action 'x' is from 2 to 31 of 30 seconds"),
        ({"scenes": "kitchen"}, "scenes: 'kitchen' is not possible: give a list of texts"),
        ({"objects": [{"name": "x", "attributes": {"color": 3}}]}, "give an object of texts"),
        ({"route": {"next": "stop"}}, "route: has no instruction"),
    ],
)
def test_annotations_of_ones_own_are_checked(tmp_path: Path, change: dict[str, Any], says: str):
    file = write(tmp_path / "own.json", [{**video(0), **change}])
    with pytest.raises(InvalidValue) as caught:
        read_annotated(file)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)


def test_bad_calls_of_the_generator_are_refused(annotated: Path, tmp_path: Path):
    with pytest.raises(UnknownName, match="Moving Count"):
        generate(annotated, tasks=["Moving Counts"])
    for option in ({"per_task": 0}, {"num_options": 2}):
        with pytest.raises(InvalidValue, match=next(iter(option))):
            generate(annotated, **option)
    with pytest.raises(InvalidValue, match="twice"):
        read_annotated(write(tmp_path / "own.json", [video(0), video(0)]))
