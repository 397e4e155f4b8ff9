"""What a strict rule reads from a reply: one whole answer and nothing that contradicts it.

A reply is read where it names exactly one option: the letter or label alone or in brackets, before the option's text,
or after "answer is", "option" and the like; the option's own text; "yes" or "no" as whole words; a number in digits or
words. Letters in a row, a lone bracket, or a word that merely contains a letter name nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

#: Words that introduce a letter: "The answer is B", "Option: (C)".
_BEFORE = r"(?:\banswer\b(?:\s+(?:is|would\s+be))?|\boption\b|\bchoice\b|\bchoose\b|\bselect\b)"
#: Characters of an option that are looked at before all of it is.
_HEAD = 48
_NO_WORDS = re.compile(r"[\W_]+")
_NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty""".split()  # noqa: SIM905 (a list of twenty quoted words is no clearer)


def text_of(response: Any) -> str | None:
    """A response as text without end marks and blanks around it; a list of one text is that text; else None."""
    if isinstance(response, list) and len(response) == 1:
        response = response[0]
    return response.replace("</s>", "").strip() if isinstance(response, str) else None


def read_choice(text: str, options: Mapping[str, str]) -> str:
    """The letter or label of the one option that a reply names; "" for none or several."""
    if text in options:
        return text
    plain = _plain(text)
    for label, option in options.items() if plain else ():  # the option itself, with or without its letter
        own = _plain_label(label)
        if plain == own or _is(plain, option) or (plain.startswith(own) and _is(plain, f"{label} {option}")):
            return label
    names = _names(tuple(options))
    if not names:
        return ""
    alone = rf"[\s(\[*_\"'`]*({names})(?![\w'])[\s)\].:*_\"'`,-]*"
    line = text.split("\n", 1)[0]  # what follows may explain, and name others
    begins = re.match(alone, line) or re.match(rf"\s*[(\[]({names})[)\]]", line, re.IGNORECASE)
    if begins:
        rest = line[begins.end() :]
        separated = begins.end() == len(line) or re.search(r"[).:\],*-]", line[begins.end(1) : begins.end()])
        if separated and not _other(rest, begins[1], options, names):
            return _label(begins[1], options)
    told = re.findall(rf"{_BEFORE}\W{{0,4}}({names})(?![\w'])", text, re.IGNORECASE)
    found = {_label(letter, options) for letter in told}
    return found.pop() if len(found) == 1 else ""


def read_yes_no(text: str) -> str:
    """ "yes" or "no", where a reply begins with one of them as a whole word and does not say the other; else ""."""
    found = re.match(r"\W*(yes|no)\b(?!\s+(?:idea|way\s+to))", text, re.IGNORECASE)
    if not found:
        return ""
    said = found[1].lower()
    other = "no" if said == "yes" else "yes"
    return (
        ""
        if re.search(rf"\b{other}\b(?!\s+\w+ing\b)", text[found.end() :].split("\n")[0][:24], re.IGNORECASE)
        else said
    )


def read_number(text: str) -> str:
    """The one whole number, in digits, that a reply has in digits or in words up to twenty; else ""."""
    found = set(re.findall(r"(?<![\w.,-])\d+(?![\w]|[.,]\d)", text))
    strange = re.search(r"-\d|\d[.,]\d|\d[^\W\d_]|[^\W\d_]\d", text)
    if not found and not strange:
        words = re.findall(r"[a-z]+", text.lower())
        found = {str(_NUMBERS.index(word)) for word in words if word in _NUMBERS}
    return str(int(found.pop())) if len(found) == 1 and not strange else ""


@lru_cache(maxsize=1024)
def _names(labels: tuple[str, ...]) -> str:
    """A pattern for one of these labels."""
    return "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))


def _label(letter: str, options: Mapping[str, str]) -> str:
    return letter if letter in options else next((o for o in options if o.lower() == letter.lower()), "")


def _other(rest: str, letter: str, options: Mapping[str, str], names: str) -> bool:
    """Whether what follows a letter names another one in the same way."""
    others = re.findall(rf"(?:^|[\s,/&(\[])({names})(?=[).:\],/&\s]|$)", rest)
    return any(_label(o, options) != _label(letter, options) for o in others if not _article(o, rest))


def _article(letter: str, rest: str) -> bool:
    """An "A" or "I" before a small letter is a word."""
    return letter in ("A", "I") and re.search(rf"(?:^|\s){letter} [a-z]", rest) is not None


def _is(plain: str, option: str) -> bool:
    """Whether an option reads as ``plain``; long ones are mostly told by how they begin."""
    if len(plain) > 2 * len(option):  # no letter becomes more than two in lower case
        return False
    return plain.startswith(_plain(option[:_HEAD])) and plain == _plain(option)


def _plain(text: str) -> str:
    return _NO_WORDS.sub(" ", text).strip().lower()


_plain_label = lru_cache(maxsize=1024)(_plain)
