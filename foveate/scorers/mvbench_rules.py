"""MVBench's rules: how a reply is matched, which frames are shown, how a question is put."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..errors import InvalidValue, invalid, unknown_name
from .letters import read_choice, text_of

#: The published rule, that of the authors' later demo, that of lmms-eval, and ours.
Rule = Literal["v1", "hd", "lmms-eval", "strict"]
RULES: tuple[str, ...] = ("v1", "hd", "lmms-eval", "strict")
_LETTER = re.compile(r"\(([A-Za-z])\)")
_FIRST = re.compile(r"[(\[\"']*([a-z])(?![a-z])")
_LETTERED = re.compile(r"([A-E])\.\s*(.+)", re.IGNORECASE)
_ALONE = re.compile(r"\b([A-E])\b", re.IGNORECASE)
_THOUSANDS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
#: How many full stops lmms-eval takes out: it passes a flag where a count belongs.
_STOPS = int(re.UNICODE)


def check_answer(pred: str, gt: str, rule: str = "strict", options: Mapping[str, str] | None = None) -> bool:
    """Whether a reply is right.

    Args:
        pred: the reply.
        gt: the right option as the result files have it, ``(B) thing``.
        rule: "v1", the notebook's, which the published numbers are of: the first word of the reply without full stops
            is a part of ``(b)`` or has it as a part, so that ``(``, ``)`` and nothing at all are right. "hd", the later
            demo's: any first word with the letter in it. "lmms-eval": the first letter that stands alone. "strict": one
            whole option.
        options: texts by letter, which "strict" reads as well; None: letters alone.

    Raises:
        UnknownName: no such rule.
        InvalidValue: "strict" or "lmms-eval", and the right option has no letter.
    """
    if rule not in RULES:
        raise unknown_name("rule", rule, RULES)
    if rule in ("v1", "hd"):
        return (_notebook if rule == "v1" else _demo)(pred.lower().split(" ")[0], gt.lower().split(" ")[0])
    letter = letter_of(gt)
    if not letter:
        raise invalid("gt", gt, "give the right option behind its letter, as in '(B) thing'")
    if rule == "lmms-eval":
        return lmms_letter(pred) == lmms_letter(letter)
    return strict_letter(pred, gt, options) == letter


def _notebook(reply: str, truth: str) -> bool:
    return reply.replace(".", "") in truth or truth in reply


def _demo(reply: str, truth: str) -> bool:
    reply, truth = (re.sub(r"[.()]", "", text) for text in (reply, truth))
    return any(letter in reply for letter in "abcde") and truth in reply


def letter_of(gt: str) -> str:
    """The letter of ``(B) thing``, as a capital; "" where there is none."""
    found = _LETTER.match(gt)
    return found[1].upper() if found else ""


def first_letter(pred: str) -> str:
    """The letter that the first word of a reply is or begins with; "" where the published rule has none to go by."""
    found = _FIRST.match(pred.lower().split(" ")[0])
    return found[1].upper() if found else ""


def lmms_letter(reply: str) -> str:
    """What lmms-eval makes of a reply: a letter of A to E if it finds one, else what is left of the text."""
    found = _LETTERED.fullmatch(reply.strip())
    if found:
        return found[1].upper()
    text = reply.replace("\n", " ").replace("\t", " ").strip()
    numbers = _THOUSANDS.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        apart = numbers or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if apart else " ")
    cleaned = _FULL_STOP.sub("", cleaned, count=_STOPS)
    for mark in "'\")(":
        cleaned = cleaned.strip(mark)
    cleaned = cleaned.strip().lower()
    found = _ALONE.search(cleaned)
    return found[1].upper() if found else cleaned


def strict_letter(pred: Any, gt: str, options: Mapping[str, str] | None = None) -> str:
    """The letter of the one option that a reply names; "" for none, several, or what is no text."""
    text = text_of(pred)
    if text is None:
        return ""
    if not options:
        last = max("E", letter_of(gt))
        options = {chr(place): "" for place in range(65, ord(last) + 1)}
        if letter_of(gt):
            options[letter_of(gt)] = gt[3:].strip()
    return read_choice(text, options)


def frame_indices(bound: Sequence[float] | None, fps: float, max_frame: int, n: int = 16, first: int = 0) -> list[int]:
    """The frames that are shown: the middles of ``n`` equal parts of the video, or of the part that counts.

    Args:
        bound: (start, end) in seconds; None: the whole video.
        fps: frames per second; 3 for folders of frames.
        max_frame: number of the last frame: how many there are less one, or how many for folders.
        n: how many are shown.
        first: number of the first frame: 0, or 1 for folders.

    Returns:
        ``n`` numbers, in order; short videos repeat frames.

    Raises:
        InvalidValue: the part ends before it begins, or begins after the video, or a number is not positive.
    """
    if n < 1:
        raise invalid("n", n, "give 1 or more")
    if not fps > 0:
        raise invalid("fps", fps, "give a positive number")
    start, end = (-100_000.0, 100_000.0) if bound is None else bound
    if not start < end:
        raise invalid("bound", bound, "its start must come before its end")
    begin, last = max(first, round(start * fps)), min(round(end * fps), max_frame)
    if begin > last:
        raise invalid("bound", bound, f"the video ends before it: its last frame is {max_frame} at {fps:g} a second")
    part = (last - begin) / n
    return [int(begin + part / 2 + round(part * place)) for place in range(n)]


def question_text(question: str, candidates: Sequence[str]) -> str:
    """A question and its options behind letters, as the model reads them."""
    options = "".join(f"({chr(65 + place)}) {candidate}\n" for place, candidate in enumerate(candidates))
    return f"Question: {question}\nOptions:\n{options}".rstrip()


def primed_reply(reply: str) -> str:
    """A reply to the authors' primed prompt, as their result files have it: a bracket and the first line."""
    return "(" + reply.strip().split("\n")[0]


def right_option(candidates: Sequence[str], answer: str) -> tuple[str, str]:
    """The letter of the right option, and both as result files have it.

    Raises:
        InvalidValue: the answer is none of the candidates, two are the same, or there are more than letters.
    """
    if answer not in candidates:
        raise InvalidValue(f"the answer {answer!r} is none of the candidates {list(candidates)!r}")
    if len(set(candidates)) < len(candidates):
        twice = next(candidate for candidate in candidates if candidates.count(candidate) > 1)
        raise InvalidValue(f"the candidate {twice!r} stands there twice")
    if len(candidates) > 26:
        raise InvalidValue(f"has {len(candidates)} candidates for 26 letters")
    letter = chr(65 + candidates.index(answer))
    return letter, f"({letter}) {answer}"
