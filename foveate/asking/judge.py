"""A judge behind a server: decides whether an answer that rules cannot read is right."""

from __future__ import annotations

import re

from ..errors import InvalidValue
from ..scorers.score import Judge
from .client import Client, NoAnswer, key_from

_SYSTEM = "You grade answers to questions about videos. You do not see the video: the reference answer is right."
_PROMPT = """Question:
{question}

Reference answer:
{truth}

Answer to grade:
{response}

Does the answer to grade say the same as the reference answer? Reply with one word, Correct or Incorrect."""


def endpoint_judge(
    endpoint: str, model: str, *, api_key_env: str | None = None, timeout: float = 120.0, retries: int = 5
) -> Judge:
    """A judge for :func:`foveate.scorers.score.score`; the same answer to the same question is judged once.

    Args:
        endpoint: address of a chat-completions server.
        model: its name there.
        api_key_env: environment variable with the server's key; None: no key.
        timeout: seconds that the server may be silent.
        retries: how often it is asked again.

    Returns:
        A callable of a question's text, the right answer and a response; it raises ``InvalidValue`` where the server
        gives no verdict, for a score of some verdicts would be none.

    Raises:
        InvalidValue: the address is none, nobody listens there, or the key is not set.
    """
    client = Client(endpoint, model, key=key_from(api_key_env), timeout=timeout, retries=retries)
    client.check()
    known: dict[tuple[str, str, str], bool] = {}

    def judge(question: str, truth: str, response: str) -> bool:
        given = (question, truth, response)
        if given not in known:
            prompt = _PROMPT.format(question=question, truth=truth, response=response)
            messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": prompt}]
            try:
                reply = client.chat(messages, max_tokens=16, temperature=0).text
            except NoAnswer as error:
                raise InvalidValue(f"the judge {model!r} gives no verdict: {error}") from error
            known[given] = verdict(reply)
        return known[given]

    return judge


def verdict(reply: str) -> bool:
    """Whether a judge's reply says "correct": as its first word, or anywhere without "incorrect" or "not correct".

    A reply that says neither is no approval.
    """
    first = re.match(r"\W*(correct|incorrect)\b", reply, re.IGNORECASE)
    if first:
        return first[1].lower() == "correct"
    return bool(re.search(r"\bcorrect\b", reply, re.IGNORECASE)) and not re.search(
        r"\bincorrect|\bnot\s+correct\b", reply, re.IGNORECASE
    )
