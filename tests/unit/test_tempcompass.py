"""TempCompass: reading every layout, the four formats' rules, judges, print-outs, and what is wrong with files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.claims._data import VARIABLE, data_file
from foveate.errors import InvalidValue, UnknownName
from foveate.scorers.base import Verdict
from foveate.scorers.items import write_items
from foveate.scorers.record import record
from foveate.scorers.score import score
from foveate.scorers.tempcompass import PUBLISHED, TempCompass
from foveate.scorers.tempcompass_reading import TASKS, task_of
from foveate.scorers.tempcompass_rules import (
    ReplyJudge,
    clean_caption,
    parse_judge_reply,
    prepared,
    rating_of_verdict,
    read_caption_matching,
    read_multi_choice,
    read_yes_no_prefix,
)

REAL = data_file("tempcompass/meta_info.json")
needs_data = pytest.mark.skipif(REAL is None, reason=f"TempCompass's files are absent: ${VARIABLE}/tempcompass")

CHOICE = {"question": "What does he do?\nA. dunk\nB. dribble\nC. pass", "answer": "B. dribble"}
SPEED = {"question": "How fast?\nA. slow motion\nB. time-lapse", "answer": "A. slow motion"}
MATCH = {
    "question": "Which fits?\nCaption A: A man runs.\nCaption B: A man: walks.",
    "answer": "Caption A: A man runs.",
}
CAPTION = {
    "question": "One is consistent.\nInformation A: {'subject': 'man', 'action': 'dunk'}\n"
    "Information B: {'subject': 'man', 'action': 'dribble'}\nGenerated Caption:",
    "answer": "B. dribble",
}
QUESTIONS: Mapping[str, Any] = {
    "multi-choice": {"v1": {"action": [CHOICE], "speed": [SPEED]}, "v1_reverse": {"order": [CHOICE, SPEED]}},
    "yes_no": {"v1": {"action": [{"question": "Dribble?", "answer": "yes"}, {"question": "Dunk?", "answer": "no"}]}},
    "caption_matching": {"v1": {"action": [MATCH]}},
    "captioning": {"v1": {"action": [CAPTION]}},
}  # fmt: skip
META = {
    "v1": {"eval_dim": {"action": {"type": "fine-grained action"}, "speed": {"type": "absolute speed"}, "order": None}}
}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A release of seven questions."""
    root = tmp_path / "release"
    (root / "questions").mkdir(parents=True)
    for task, content in QUESTIONS.items():
        (root / "questions" / f"{task}.json").write_text(json.dumps(content))
    (root / "meta_info.json").write_text(json.dumps(META))
    return root


def predictions(root: Path, replies: Mapping[str, list[Any]], model: str = "mine", key: str = "prediction") -> Path:
    """Official files of predictions: replies by task, in the order of the questions."""
    folder = root / "predictions" / model
    folder.mkdir(parents=True, exist_ok=True)
    for task, own in replies.items():
        left = iter(own)
        content = {
            video: {aspect: [{**item, key: next(left)} for item in asked] for aspect, asked in aspects.items()}
            for video, aspects in QUESTIONS[task].items()
        }
        (folder / f"{task}.json").write_text(json.dumps(content))
    return folder


REPLIES = {
    "multi-choice": ["B", "A) slow", "(B)", "A. slow motion</s>"],
    "yes_no": ["Yes.", "Not really"],
    "caption_matching": ["A man runs."],
    "captioning": ["He dribbles."],
}


# The rules of the four formats


@pytest.mark.parametrize(
    ("reply", "mark", "found"),
    [
        ("B. dribble", 1, True),
        ("B", 1, True),
        ("B. something else", 1, True),  # the text is not compared
        ("B) x", 1, True),
        ("A", 0, True),
        ("D. none", 0, True),
        *((reply, 0, False) for reply in ("(B)", "b", "B: x", "Answer: B", "E", "", "Because", "B dribble")),
    ],
)
def test_multi_choice_takes_a_line_or_a_first_letter(reply: str, mark: int, found: bool):
    reading = read_multi_choice(reply, "B. dribble")
    assert (reading.mark, reading.found) == (mark, found)


@pytest.mark.parametrize(
    ("reply", "said"),
    [("Yes, he does", "yes"), ("Yesterday", "yes"), ("NO", "no"), ("north", "no"), ("None", "no"), (" yes", "")],
)  # fmt: skip
def test_yes_and_no_are_prefixes(reply: str, said: str):
    for answer in ("yes", "no"):
        reading = read_yes_no_prefix(reply, answer)
        assert (reading.said, reading.found, reading.mark) == (said, bool(said), int(said == answer))


@pytest.mark.parametrize(
    ("reply", "mark", "found"),
    [
        ("Caption A: A man runs.", 1, True),
        ("A man runs.", 1, True),
        ("x) A man runs.", 1, True),
        ("Caption A", 1, True),
        ("A", 1, True),
        ("A.", 1, True),
        ("Caption B.", 0, True),
        ("A man", 0, True),  # of "Caption B: A man: walks." only this is kept, with the text before the second colon
        *((reply, 0, False) for reply in ("a man runs.", "A man runs", "A man: walks.", "Caption a", "C", "")),
    ],
)
def test_caption_matching_takes_lines_sentences_and_labels(reply: str, mark: int, found: bool):
    question = MATCH["question"]
    reading = read_caption_matching(reply, question, MATCH["answer"])
    assert (reading.mark, reading.found) == (mark, found)


def test_caption_matching_goes_on_where_an_option_has_no_label():
    reading = read_caption_matching("Option 2", "Which?\nno label\nOption 2: runs", "Option 2: runs")
    assert (reading.mark, reading.said) == (1, "Option 2")


@given(st.text(), st.text(), st.text())
def test_no_reply_stops_a_rule(reply: str, question: str, answer: str):
    for reading in (
        read_multi_choice(prepared(reply), answer),
        read_yes_no_prefix(prepared(reply), answer),
        read_caption_matching(prepared(reply), question, answer),
    ):
        assert reading.mark <= reading.found
    assert parse_judge_reply(reply, answer).rating in (1, 0, -1)
    assert isinstance(clean_caption("gemini reka", reply), str)


# Judges


@pytest.mark.parametrize(
    ("reply", "rating", "answer"),
    [
        ("Reasoning: it is said.\nAnswer: B. dribble", 1, "B. dribble"),
        ("B. dribble", 1, "B. dribble"),
        ("Answer: A. dunk\nAnswer: B. dribble", 1, "B. dribble"),  # the last line
        ("Answer: A. dunk", 0, "A. dunk"),
        ("Answer: B. dribble, C. pass", 0, "B. dribble, C. pass"),  # two letters
        ("Answer: B", 0, "B"),  # none
        ("", -1, None),
        (None, -1, None),
        ("invalid_request_error", -1, None),
    ],
)
def test_a_judge_of_captions_is_read(reply: str | None, rating: int, answer: str | None):
    found = parse_judge_reply(reply, "B. dribble")
    assert (found.rating, found.answer) == (rating, answer)


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Correct", 1),
        ("Correct, not Incorrect", 1),
        ("It is Correct", 1),
        ("Incorrect", 0),
        ("Incorrect, not Correct", 0),
        ("correct", 0),
        (None, 0),
    ],
)
def test_a_verdict_is_read(reply: str | None, rating: int):
    assert rating_of_verdict(reply) == rating


@pytest.mark.parametrize(
    ("model", "caption", "cleaned"),
    [
        ("gemini", 'Here:\n**Caption: "A man dunks"**', "A man dunks"),
        ("gemini-1.5", "first\nlast: second: third", "second"),
        ("reka-core", 'It is "A man" today', "A man"),
        ("reka-core", '"a" and "b"\nsay "c"', "c"),
        ("reka-core", "Caption: A man", "A man"),
        ("reka-core", "a: b\nc: d", "d"),
        ("reka-core", "A man", "A man"),
        ("video-llava", 'x: "y"', 'x: "y"'),
    ],
)
def test_captions_are_cleaned_by_the_models_name(model: str, caption: str, cleaned: str):
    assert clean_caption(model, caption) == cleaned


def test_a_judge_decides_what_rules_do_not_read_and_every_caption(release: Path):
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return "Answer: B. dribble" if "description" in prompt else "Correct"

    folder = predictions(release, REPLIES, "gemini-x")
    (folder / "captioning.json").write_text(
        (folder / "captioning.json").read_text().replace("He dribbles.", "Caption:\\n*He dribbles.*</s>")
    )
    found = score(TempCompass(release), folder, judge=ReplyJudge(ask))
    official = found.by_rules["official"]
    assert found.judged == 2
    assert official.figures["format", "captioning"].value == 100
    assert official.figures["format", "multi-choice"].value == 100
    # The share that rules read is not the judge's.
    assert official.figures["match rate", "multi-choice"].value == 75
    assert official.figures["match rate", "captioning"].value == 0
    captions = [prompt for prompt in asked if "description" in prompt]
    assert CHOICE["question"] in captions[0]  # captions are judged by the first multi-choice question
    assert "Video description: He dribbles.\n" in captions[0]
    alone = score(TempCompass(release), folder)
    assert (alone.needs_judge, alone.judged) == (2, 0)


def test_a_judge_that_fails_counts_minus_one(release: Path):
    folder = predictions(release, {"captioning": ["He dribbles."]})
    found = score(TempCompass(release), folder, judge=ReplyJudge(lambda prompt: None), rules=("official",))
    assert found.by_rules["official"].overall.value == -100


def test_captions_that_nobody_rates_have_no_figure(release: Path, tmp_path: Path):
    scores = score(TempCompass(release), predictions(release, REPLIES))
    official = scores.by_rules["official"]
    assert official.figures["format", "captioning"].text == "-"
    assert official.overall.total == 7
    json.dumps(record(scores, draws=20), allow_nan=False)
    write_items(scores, tmp_path / "items.csv")
    assert "captioning/v1/action/0" in (tmp_path / "items.csv").read_text(encoding="utf-8")


# Files


def test_one_format_gives_the_official_lines(release: Path):
    suite = TempCompass(release)
    scores = score(suite, predictions(release, {"multi-choice": REPLIES["multi-choice"]}) / "multi-choice.json")
    text = suite.official_text(scores.by_rules["official"].rows)
    assert text.splitlines()[:2] == [
        "Accuracy Results:",
        "{'action': 100.0, 'direction': None, 'speed': 100.0, 'order': 50.0, 'attribute_change': None, 'avg': 75.0}",
    ]
    assert "'absolute speed': 100.0, 'relative speed': None, 'order': 50.0" in text
    assert text.endswith("Match Success Rate=75.0\n")
    assert "ZeroDivisionError" in " ".join(scores.notes)
    assert scores.by_rules["strict"].overall.value == 100  # (B) is a whole answer


@pytest.mark.parametrize("key", ["prediction", "response"])
def test_a_folder_is_scored_as_a_whole_and_by_format(release: Path, key: str):
    folder = predictions(release, REPLIES, key=key)
    found = score(TempCompass(release), folder).by_rules["official"].figures
    assert {name: found["format", name].text for name in TASKS} == {
        "multi-choice": "75.0", "yes_no": "100.0", "caption_matching": "100.0", "captioning": "-",
    }  # fmt: skip
    assert found["overall", "avg"].value == pytest.approx(600 / 7)
    assert found["aspect", "multi-choice: order"].value == 50
    assert found["fine aspect", "yes_no: fine-grained action"].value == 100
    assert found["match rate", "multi-choice"].text == "75.0"


def test_flat_lists_and_lines_of_ids_give_the_same(release: Path, tmp_path: Path):
    folder = predictions(release, {"multi-choice": REPLIES["multi-choice"]})
    nested = score(TempCompass(release), folder).by_rules["official"].overall.value
    suite = TempCompass(release)
    flat = [
        {"video_id": q.video, "dim": q.groups["aspect"], "question": q.question, "answer": q.truth, "response": reply}
        for q, reply in zip(suite.questions.values(), REPLIES["multi-choice"], strict=False)
    ]
    (tmp_path / "flat.json").write_text(json.dumps(flat))
    lines = [{"id": id, "response": row["response"]} for id, row in zip(suite.questions, flat, strict=False)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("flat.json", "own.jsonl"):
        scores = score(TempCompass(release), tmp_path / name)
        assert scores.by_rules["official"].overall.value == nested == 75
        assert not scores.missing
        assert all("ZeroDivisionError" in note or "as were published" in note for note in scores.notes)
    assert score(TempCompass(), tmp_path / "flat.json").by_rules["official"].overall.value == nested
    with pytest.raises(InvalidValue, match="give the annotations"):
        score(TempCompass(), tmp_path / "own.jsonl")


def test_ids_may_have_endings(release: Path):
    folder = predictions(release, {"multi-choice": REPLIES["multi-choice"]})
    file = folder / "multi-choice.json"
    file.write_text(file.read_text().replace('"v1"', '"v1.mp4"').replace('"v1_reverse"', '"v1_reverse.jpg"'))
    scores = score(TempCompass(release), file)
    assert not scores.missing
    assert scores.by_rules["official"].figures["fine aspect", "absolute speed"].value == 100


def test_stored_ratings_are_added_up_as_they_are(release: Path, tmp_path: Path):
    rated = {"v1": {"action": [{"rating": 1, "match_success": True}, {"rating": 0, "match_success": False}]}}
    stored = {
        "v1": {
            "action": [{"chatgpt-answer": "x", "rating": -1, "gt-answer": "B. dribble", "video-llm-prediction": "x"}]
        }
    }
    for name, content in (("multi-choice", rated), ("captioning", stored)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    suite = TempCompass(release)
    found = score(suite, tmp_path / "multi-choice.json", rules=("official",)).by_rules["official"].figures
    assert (found["overall", "avg"].text, found["match rate", "all"].text) == ("50.0", "50.0")
    found = score(suite, tmp_path / "captioning.json")
    assert found.needs_judge == 0
    assert found.by_rules["official"].overall.value == -100
    assert found.by_rules["strict"].overall.value == 0


def test_a_part_of_a_list_is_matched_by_its_text(release: Path, tmp_path: Path):
    content = {"v1_reverse": {"order": [{**SPEED, "prediction": "A"}]}}
    (tmp_path / "multi-choice.json").write_text(json.dumps(content))
    scores = score(TempCompass(release), tmp_path / "multi-choice.json")
    assert [a.question.id for a in scores.answers] == ["multi-choice/v1_reverse/order/1"]
    assert len(scores.missing) == 3
    assert scores.by_rules["official"].overall.value == 100
    assert scores.by_rules["strict"].overall.value == 25


def test_a_truth_that_contradicts_the_annotations_is_noted(release: Path, tmp_path: Path):
    content = {"v1": {"action": [{**CHOICE, "answer": "A. dunk", "prediction": "A"}]}}
    (tmp_path / "multi-choice.json").write_text(json.dumps(content))
    scores = score(TempCompass(release), tmp_path / "multi-choice.json")
    assert "multi-choice/v1/action/0: its answer 'A. dunk' is 'B. dribble' in the annotations" in " ".join(scores.notes)
    assert scores.by_rules["official"].overall.value == 100  # as the script, which trusts the file
    assert scores.by_rules["strict"].rows[0].verdict.mark == 0


def test_what_is_no_text_is_wrong_and_noted(release: Path):
    folder = predictions(release, {"multi-choice": [None, 3, ["B"], {"a": 1}]})
    scores = score(TempCompass(release), folder)
    assert scores.by_rules["official"].overall.value == 0
    assert [row.verdict for row in scores.by_rules["strict"].rows][2] == Verdict(1.0, True, "B")
    told = " ".join(scores.notes)
    for place, what in (("speed/0", "a number"), ("order/0", "a list"), ("order/1", "an object")):
        assert f"{place}: the answer is {what} and no text" in told
    assert "null" not in told  # the official script has a rule for it
    assert scores.needs_judge == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"v1": {"height": [{**CHOICE, "prediction": "B"}]}}, "'height' is none of the aspects"),
        ({"v1": {"action": [{**CHOICE}]}}, 'has no "prediction"'),
        ({"v1": {"action": ["B"]}}, "is text and no object"),
        ({"v1": {"action": {"B": 1}}}, "holds an object and no list"),
        ({"v1": ["B"]}, "holds a list and no object"),
        ({"v1": {"action": [{"question": "x", "prediction": "B"}]}}, "no question or no answer"),
        ({"v1": {"action": [{"rating": "1"}]}}, "rating is text"),
        ([{"question": "x"}], "names no video_id and aspect"),
        ([{**CHOICE, "video_id": "v1", "aspect": "action", "task": "tasks", "prediction": "B"}], "none of the tasks"),
    ],
)
def test_what_cannot_be_read_is_noted_and_left_out(release: Path, tmp_path: Path, content: Any, says: str):
    good = {**CHOICE, "prediction": "B"}
    content = (
        [*content, {**good, "video_id": "v1", "aspect": "action"}]
        if isinstance(content, list)
        else {**content, "v1_reverse": {"order": [good]}}
    )
    file = tmp_path / "some.json"
    file.write_text(json.dumps(content))
    scores = score(TempCompass(release), file)
    assert len(scores.answers) == 1
    noted = [note for note in scores.notes if says in note]
    assert len(noted) == 1
    assert noted[0].startswith(f"{file}: ")


def test_unknown_videos_and_aspects_of_meta_info_are_noted(release: Path, tmp_path: Path):
    content = {"other": {"speed": [{**SPEED, "prediction": "A"}]}}
    (tmp_path / "multi-choice.json").write_text(json.dumps(content))
    scores = score(TempCompass(release), tmp_path / "multi-choice.json")
    told = " ".join(scores.notes)
    assert "other/speed: meta_info.json has no fine aspect of it" in told
    assert "the annotations have no such question" in told
    assert scores.by_rules["official"].overall.value == 100


def test_bad_files_and_names_are_refused(release: Path, tmp_path: Path):
    with pytest.raises(UnknownName, match="yes_no"):
        TempCompass(tasks=["yes-no"])
    with pytest.raises(InvalidValue, match=r"has none of multi-choice\.json"):
        TempCompass(predictions(release, {}).parent / "nothing") if False else TempCompass(
            _with(tmp_path, "x.json", "{}")
        )
    with pytest.raises(InvalidValue, match="ends too early"):
        score(
            TempCompass(release),
            _with(tmp_path / "cut", "multi-choice.json", '{"v1": {"action": [') / "multi-choice.json",
        )
    with pytest.raises(InvalidValue, match="holds text"):
        score(TempCompass(release), _with(tmp_path / "text", "multi-choice.json", '"x"') / "multi-choice.json")
    for model in ("one", "two"):
        predictions(release, {"yes_no": ["Yes", "No"]}, model)
    with pytest.raises(InvalidValue, match="holds answers of one, two: give the folder of one"):
        score(TempCompass(release), release / "predictions")


def _with(folder: Path, name: str, content: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    return folder


def test_one_broken_file_of_a_folder_is_left_out(release: Path):
    folder = predictions(release, REPLIES)
    (folder / "yes_no.json").write_text('{"v1"')
    scores = score(TempCompass(release), folder)
    assert any("yes_no.json" in note and "left out" in note for note in scores.notes)
    assert scores.by_rules["official"].figures["format", "multi-choice"].value == 75


def test_tasks_and_prompts(release: Path):
    suite = TempCompass(release, tasks=["captioning", "yes_no"])
    assert {q.task for q in suite.questions.values()} == {"captioning", "yes_no"}
    answers = suite.answers(predictions(release, REPLIES))
    assert [answer.question.task for answer in answers] == ["captioning", "yes_no", "yes_no"]
    prompts = {q.task: suite.prompt(q) for q in suite.questions.values()}
    assert prompts["captioning"].endswith("Generated Caption:")
    assert prompts["yes_no"].endswith("\nPlease answer yes or no:")
    whole = TempCompass(release)
    assert whole.prompt(whole.questions["multi-choice/v1/speed/0"]).endswith("\nPlease directly give the best option:")
    caption = whole.questions["captioning/v1/action/0"]
    assert caption.extra["information"]["B"] == {"subject": "man", "action": "dribble"}
    assert whole.questions["caption_matching/v1/action/0"].options["Caption A"] == "A man runs."


def test_formats_are_told_by_their_texts():
    for task, videos in QUESTIONS.items():
        for item in videos["v1"]["action"]:
            assert task_of(item["question"], item["answer"]) == task


def test_strict_rules_read_whole_answers_alone(release: Path):
    suite = TempCompass(release)
    match, said = suite.questions["caption_matching/v1/action/0"], suite.questions["yes_no/v1/action/1"]
    for response, right in (("A", 1), ("caption a.", 1), ("a man runs", 1), ("Caption B", 0), ("(", 0), ("A B", 0)):
        assert suite.judge(match, response, "strict").mark == right
    for response, right in (("No.", 1), ("North", 0), ("None", 0), ("Yes and no", 0)):
        assert suite.judge(said, response, "strict").mark == right


# The authors' files


@needs_data
def test_the_release_has_as_many_questions_as_were_published():
    suite = TempCompass(REAL.parent)
    assert not suite.notes.sentences
    assert len(suite.questions) == 7540
    assert len({q.video for q in suite.questions.values()}) == 410
    assert all(len(q.options) == 2 for q in suite.questions.values() if q.task == "caption_matching")
    assert all(q.answer in q.options for q in suite.questions.values() if q.kind == "choice")
    assert sum(map(sum, (counts.values() for counts in PUBLISHED.values()))) == 7540
    part = TempCompass(REAL.parent / "questions" / "yes_no.json")
    assert len(part.questions) == 2453


@needs_data
def test_strict_figures_of_the_real_files():
    found = {}
    for model in ("gemini", "video-llava"):
        scores = score(TempCompass(REAL.parent), REAL.parent / "predictions" / model)
        assert not scores.missing
        found[model] = [scores.by_rules[rule].overall.text for rule in ("official", "strict")]
        assert not math.isnan(scores.by_rules["official"].overall.value)
    assert found == {"gemini": ["69.1", "70.3"], "video-llava": ["55.2", "55.2"]}
