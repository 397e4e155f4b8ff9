"""A judge behind a server: decides whether an answer that rules cannot read is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import InvalidValue
from ..scorers.tempcompass_rules import ReplyJudge
from .client import Client, NoAnswer, key_from


def endpoint_replies(
    endpoint: str,
    model: str,
    *,
    api_key_env: str | None = None,
    timeout: float = 120.0,
    retries: int = 5,
    max_tokens: int = 256,
) -> Callable[[str], str]:
    """A model's reply to a prompt; the same prompt is asked once.

    Args:
        endpoint: address of a chat-completions server.
        model: its name there.
        api_key_env: environment variable with the server's key; None: no key.
        timeout: seconds that the server may be silent.
        retries: how often it is asked again.
        max_tokens: of a reply.

    Returns:
        A callable; it raises ``InvalidValue`` where the server does not answer, for a score of some verdicts would be
        none.

    Raises:
        InvalidValue: the address is none, nobody listens there, or the key is not set.
    """
    client = Client(endpoint, model, key=key_from(api_key_env), timeout=timeout, retries=retries)
    client.check()
    known: dict[str, str] = {}

    def reply(prompt: str) -> str:
        if prompt not in known:
            messages = [{"role": "user", "content": prompt}]
            try:
                known[prompt] = client.chat(messages, max_tokens=max_tokens, temperature=0).text
            except NoAnswer as error:
                raise InvalidValue(f"the judge {model!r} gives no verdict: {error}") from error
        return known[prompt]

    return reply


def endpoint_judge(endpoint: str, model: str, **options: Any) -> ReplyJudge:
    """A judge for :func:`foveate.scorers.score.score`; of captions it asks which option they say, as TempCompass does.

    Args:
        endpoint: address of a chat-completions server.
        model: its name there.
        options: of :func:`endpoint_replies`, which see for what is raised.
    """
    return ReplyJudge(endpoint_replies(endpoint, model, **options))
