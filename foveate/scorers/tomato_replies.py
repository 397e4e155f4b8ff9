"""TOMATO's prompt, and what its rule reads from a reply (arXiv 2410.23266)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ..errors import invalid

_ANSWER_IS = re.compile(r"Answer is:?\(?([A-Fa-f])\)?")


def build_prompt(question: str, options: Sequence[str], num_frames: int) -> tuple[str, list[str], dict[str, str]]:
    """The authors' prompt for frames, in order, of one video; for 0 frames one that asks for a guess, in our words.

    Args:
        question: as the annotation has it.
        options: texts, in order.
        num_frames: how many frames are shown with it.

    Returns:
        the prompt, the letters of the options, and the texts by letter.

    Raises:
        InvalidValue: no option, or a negative number of frames.
    """
    if not options:
        raise invalid("options", list(options), "give at least one")
    if num_frames < 0:
        raise invalid("num_frames", num_frames, "give 0 or more")
    letters = [chr(65 + place) for place in range(len(options))]
    texts = dict(zip(letters, options, strict=True))
    asked = f"<question> \n{question} \n</question>\n\n<options> \n{texts} \n</options>\n\n"
    if num_frames == 0:
        return (
            f"No video is shown. Guess an answer that would be reasonable.\n\n{asked}Do not refuse.\n",
            letters,
            texts,
        )
    begin = (
        f"You will be provided with {num_frames} separate frames uniformly sampled from a video, the frames are "
        "provided in chronological order of the video. Analyze these frames and provide the answer to the question "
        "about the video content. Answer the multiple-choice question about the video content. \n\n"
        "You must use these frames to answer the multiple-choice question; do not rely on any externel knowledge or "
        "commonsense. \n\n"
    )
    end = (
        "Even if the information in these separate frames is not enough to answer the question, PLEASE TRY YOUR BEST "
        "TO GUESS AN ANSWER WHICH YOU THINK WOULD BE THE MOST POSSIBLE ONE BASED ON THE QUESTION. \n\n"
        "DO NOT GENERATE ANSWER SUCH AS 'NOT POSSIBLE TO DETERMINE.' \n"
    )
    return begin + asked + end, letters, texts


def parse_response(text: str, letters: Iterable[str], index2ans: Mapping[str, str]) -> str | None:
    """The letter that the official rule reads from a reply; None where it would ask a language model.

    Read are a letter alone, ``<letter>: <option>`` where the option has no small letter, and ``Answer is:A`` without a
    blank, whose letter is any of A to F, one of ``letters`` or not.
    """
    text = text.strip()
    upper = text.upper()
    if len(text) == 1 and upper in letters:
        return upper
    if upper[1:3] == ": " and any(upper == f"{letter}: {option}" for letter, option in index2ans.items()):
        return upper[0]
    found = _ANSWER_IS.fullmatch(text)
    return found[1].upper() if found else None
