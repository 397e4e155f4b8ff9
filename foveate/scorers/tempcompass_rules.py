"""How TempCompass's scripts read a reply in its four formats, and what they make of a judge's reply.

Each rule gives a :class:`Reading`: whether it found an answer in the reply at all, whether that is the right one, and
what it was. A reply that no rule reads goes to a judge in the authors' evaluation; captions always do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

LETTERS = "ABCD"
_CAPTION_LABEL = re.compile("Sentence |Option |Caption ")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a rule finds in a reply: a mark of 1 or 0, whether it found an answer, and the answer."""

    mark: int
    found: bool
    said: str = ""


NOTHING = Reading(0, False)


def prepared(response: str) -> str:
    """A reply as every rule sees it: without end marks, and without blanks around it."""
    return response.replace("</s>", "").strip()


def read_multi_choice(reply: str, answer: str) -> Reading:
    """The right option's line, or one of A to D alone or before a full stop or bracket; what follows is not compared.

    Args:
        reply: prepared.
        answer: the right option's line, which begins with its letter.
    """
    if reply == answer:
        return Reading(1, True, answer[:1])
    if reply[:1] and reply[:1] in LETTERS and (len(reply) == 1 or reply[1] in ".)"):
        return Reading(int(reply[0] == answer[:1]), True, reply[0])
    return NOTHING


def read_yes_no_prefix(reply: str, answer: str) -> Reading:
    """Begins with "yes", or with "no", in any case: of the reply, not of a word ("North" is a no)."""
    lowered = reply.lower()
    for said in ("yes", "no"):
        if lowered.startswith(said):
            return Reading(int(said == answer), True, said)
    return NOTHING


def read_caption_matching(reply: str, question: str, answer: str) -> Reading:
    """One of two captions: by its line, its sentence, its label, or what its label ends with.

    Args:
        reply: prepared.
        question: whose lines after the first are options, ``<label>: <sentence>``.
        answer: the right option's line.
    """
    options = question.split("\n")[1:]
    hit, label_of_hit = None, ""
    for option in options:
        if option == reply:
            hit, label_of_hit = option, _label(option)
    piece = reply.split(") ")[1] if ") " in reply else None
    for option in options:
        sentence = _sentence(option)
        if sentence is not None and sentence in (reply, piece):
            hit, label_of_hit = sentence, _label(option)
    bare = reply.replace(".", "")
    for option in options:
        label = _label(option)
        for name in (label, _CAPTION_LABEL.sub("", label)):
            if name in (reply, bare):
                hit, label_of_hit = name, label
    if hit is None:
        return NOTHING
    before = answer.split(":")[0]
    right = {answer, before, _sentence(answer), *before.split(" ")[1:2]}
    return Reading(int(hit in right), True, label_of_hit)


def _label(option: str) -> str:
    return option.split(": ")[0]


def _sentence(option: str) -> str | None:
    """What stands between the first and the second colon; None where an option has none: the script stops there."""
    parts = option.split(": ")
    return parts[1] if len(parts) > 1 else None


# Captions, and judges -------------------------------------------------------------------------------------------------


def clean_caption(model: str, caption: str) -> str:
    """A prepared caption without what some models say around it; which ones is told by the model's name.

    Models with ``gemini`` in their name: the last line without stars and quotes, and of it what stands behind the first
    colon up to the next. Models with ``reka``: what is in quotes, or behind the one colon.
    """
    if "gemini" in model:
        caption = caption.strip().split("\n")[-1].replace("*", "").strip().strip('"')
        if ":" in caption:
            caption = caption.split(":")[1].strip().strip('"')
    if "reka" in model:
        caption = _unique(caption)
    return caption


def _unique(caption: str) -> str:
    last = caption.split("\n")[-1]
    for text in (caption, last):
        if text.count('"') == 2 and (quoted := re.findall(r'"(.*?)"', text)):
            return quoted[0]
    for text in (caption, last):
        if text.count(": ") == 1:
            return text.split(": ")[1]
    return caption


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """What a judge of captions said: rating 1, 0 or -1 (no reply), the option it chose, and why."""

    rating: Literal[1, 0, -1]
    answer: str | None
    reasoning: str | None


def parse_judge_reply(reply: str | None, truth: str) -> JudgeReply:
    """Rate a caption by the option that a judge chose for it.

    The last line with "Answer" has the option, or the whole reply where there is none. It is right if it begins as the
    truth does, up to ``". "``, and names one letter.

    Args:
        reply: the judge's text; None, "" and "invalid_request_error" are failures.
        truth: the right option's line of the multi-choice question.
    """
    if not reply or reply == "invalid_request_error":
        return JudgeReply(-1, None, None)
    answer = reasoning = None
    for line in map(str.strip, reply.split("\n")):
        if "Reasoning" in line:
            reasoning = line.replace("Reasoning:", "").strip()
        if "Answer" in line:
            answer = line.replace("Answer:", "").strip()
    answer = reply if answer is None else answer
    letters = sum(answer.count(f"{letter}.") for letter in LETTERS)
    right = letters == 1 and answer.split(". ")[0] == truth.split(". ")[0]
    return JudgeReply(1 if right else 0, answer, reasoning)


def rating_of_verdict(reply: str | None) -> int:
    """1 where a judge's reply begins with "Correct", or says so and never "Incorrect"; else 0."""
    text = reply or ""
    return int(text.startswith("Correct") or ("Correct" in text and "Incorrect" not in text))


class ReplyJudge:
    """A judge made of a language model: prompts it, and reads its replies as the authors do.

    The wording of the prompts is ours; what they ask for is theirs: "Correct" or "Incorrect" for a reply, and an option
    of the multi-choice question for a caption.

    Args:
        ask: gives the model's reply to a prompt; None or "" where it has none.
    """

    def __init__(self, ask: Callable[[str], Any]) -> None:
        self.ask = ask

    def __call__(self, question: str, truth: str, response: str) -> float:
        """Whether a reply that the rules do not read is right: 1 or 0."""
        prompt = (
            "Decide whether a reply to a question about a video is right. You do not see the video: take the "
            "ground-truth answer for right. Begin with one word, Correct or Incorrect.\n\n"
            f"Question:\n{question}\nGround-truth answer: {truth}\nReply: {response}\n"
        )
        return float(rating_of_verdict(self.ask(prompt)))

    def choose(self, question: str, truth: str, caption: str) -> float:
        """The rating of a caption: 1, 0, or -1 where the model does not reply."""
        prompt = (
            "Read a description of a video and a multi-choice question about it. Choose the option that the "
            "description says; do not guess what it leaves out. Write two lines:\n"
            "Reasoning: why, in a sentence\nAnswer: the "
            f"option\n\nVideo description: {caption}\nMulti-choice question:\n{question}\n"
        )
        return float(parse_judge_reply(self.ask(prompt), truth).rating)
