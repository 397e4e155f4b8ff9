"""Asking a model behind a server: several questions at once, frames as JPEG data addresses."""

from __future__ import annotations

import base64
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import FoveateError, invalid
from ..scorers.base import Question
from .asked import Asked, Outcome
from .client import Client, NoAnswer
from .frames import jpeg


class Endpoint:
    """A model behind a chat-completions server.

    Args:
        client: to its server.
        concurrency: how many questions are out at once.
        max_tokens: of an answer.
        seed: sent with each question; servers may heed it.
        body: further fields of each request, over those above; None takes a field away.
    """

    def __init__(
        self,
        client: Client,
        *,
        concurrency: int = 4,
        max_tokens: int = 128,
        seed: int = 0,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        if concurrency < 1:
            raise invalid("concurrency", concurrency, "at least 1")
        self.client, self.concurrency = client, concurrency
        if set(body or ()) & {"messages", "model", "stream"}:
            raise invalid("body", dict(body or {}), "messages, model and stream are not for it to set")
        fields = {"max_tokens": max_tokens, "temperature": 0, "seed": seed, **(body or {})}
        self.options = {name: value for name, value in fields.items() if value is not None}
        self.name, self.shows = client.model, "pictures"
        self._done: queue.SimpleQueue[Outcome | BaseException | None] = queue.SimpleQueue()
        self._working = 0

    def convert(self, frame: Any) -> str:
        """A frame as a data address."""
        return "data:image/jpeg;base64," + base64.b64encode(jpeg(frame)).decode("ascii")

    def outcomes(self, questions: Sequence[Question], give: Callable[[Question], Asked]) -> Iterator[Outcome]:
        """An outcome for each question as it comes.

        Raises:
            NoAnswer: nobody listens at the address.
        """
        if not questions:
            return
        self.client.check()
        left = iter(questions)
        lock = threading.Lock()

        def work() -> None:
            try:
                while not self.client.stop.is_set():
                    with lock:
                        question = next(left, None)
                    if question is None:
                        break
                    self._done.put(self._one(question, give))
            except BaseException as error:  # a defect of ours: raised where outcomes are read
                self._done.put(error)
            finally:
                self._done.put(None)

        self._working = min(self.concurrency, len(questions))
        for number in range(self._working):
            # Daemons: an answer that never comes must not keep the program from ending.
            threading.Thread(target=work, name=f"foveate-ask-{number}", daemon=True).start()
        while self._working:
            outcome = self._done.get()
            if outcome is None:
                self._working -= 1
            elif isinstance(outcome, BaseException):
                self.client.stop.set()
                raise outcome
            else:
                yield outcome

    def leave(self, seconds: float) -> list[Outcome]:
        """Stop asking; answers that still come within some seconds."""
        self.client.stop.set()
        until, found = time.monotonic() + seconds, []
        while self._working:
            try:
                outcome = self._done.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            self._working -= outcome is None
            if isinstance(outcome, Outcome):
                found.append(outcome)
        return found

    def _one(self, question: Question, give: Callable[[Question], Asked]) -> Outcome:
        begun = time.monotonic()
        asked = None
        try:
            asked = give(question)
            reply = self.client.chat(messages(asked), **self.options)
        except NoAnswer as error:
            return Outcome(question.id, None, str(error), error.about_all, asked, error.tries)
        except FoveateError as error:
            return Outcome(question.id, None, str(error), False, asked, 0)
        return Outcome(question.id, reply.text, "", False, asked, reply.tries, time.monotonic() - begun)


def messages(asked: Asked) -> list[dict[str, Any]]:
    """A question as the protocol has it: frames in order, then the text."""
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in asked.frames]
    content.append({"type": "text", "text": asked.prompt})
    told = [{"role": "system", "content": asked.system}] if asked.system else []
    return [*told, {"role": "user", "content": content if asked.frames else asked.prompt}]
