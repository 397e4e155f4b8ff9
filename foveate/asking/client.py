"""One question to a server that speaks the chat-completions protocol, asked again where that can help.

Too many requests, errors of the server, time-outs, broken connections and cut-off replies are asked again, each time
after twice as long with a random part, or when the server says (``Retry-After``). Everything else a server refuses is
final, and its own words are the reason.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidValue, invalid

#: Answers of a server that may be different next time.
AGAIN = (408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 529)
#: Refusals that are about the server, the key or the model, not about the question.
ABOUT_ALL = (401, 403, 404)
#: Seconds before the second try; doubled with every further one up to the longest.
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
#: The longest that a server may make us wait, in seconds.
LONGEST_RETRY_AFTER = 600.0
#: Characters of a server's own words that are kept.
LONGEST_REASON = 300


class NoAnswer(InvalidValue):
    """A question that a server did not answer.

    Attributes:
        about_all: whether other questions would fare the same.
        tries: how often it was asked.
    """

    def __init__(self, reason: str, *, about_all: bool = False, tries: int = 1) -> None:
        super().__init__(reason)
        self.about_all, self.tries = about_all, tries


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered, and at which try."""

    text: str
    tries: int = 1


class _Again(Exception):
    """A try that failed in a way that may pass."""

    def __init__(self, reason: str, wait: float | None = None, about_all: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.about_all = reason, wait, about_all


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *given: Any) -> None:
        return None  # a key must not follow to another server


class Client:
    """A model behind a server.

    Args:
        url: the server's address with its version, ``http://localhost:8000/v1``; ``/chat/completions`` is added.
        model: its name there.
        key: sent as a bearer token; None: none.
        timeout: seconds that a server may be silent.
        retries: how often a question is asked again.
        stop: when set, nothing is waited for or asked any more.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        timeout: float = 120.0,
        retries: int = 5,
        stop: threading.Event | None = None,
    ) -> None:
        if timeout <= 0:
            raise invalid("timeout", timeout, "more than 0 seconds")
        if retries < 0:
            raise invalid("retries", retries, "0 or more")
        self.url, self.model, self.timeout, self.retries = chat_url(url), model, timeout, retries
        self.stop = stop or threading.Event()
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "foveate"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._open = urllib.request.build_opener(_NoRedirects).open

    def check(self) -> None:
        """Try to reach the server once.

        Raises:
            NoAnswer: nobody listens there.
        """
        parts = urllib.parse.urlsplit(self.url)
        host = parts.hostname or ""
        if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
            return  # the proxy alone knows
        try:
            with socket.create_connection((host, parts.port or {"http": 80, "https": 443}[parts.scheme]), self.timeout):
                return
        except OSError as error:
            raise NoAnswer(f"{self.url}: no server answers there ({_words(error)}).", about_all=True) from error

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Reply:
        """Ask, and ask again where that can help.

        Args:
            messages: of the conversation, as the protocol has them.
            options: further fields of the request: ``max_tokens``, ``temperature``, ``seed``.

        Raises:
            NoAnswer: refused, or no answer at the last try.
        """
        body = json.dumps({"model": self.model, "messages": list(messages), **options}).encode()
        tried = 0
        while True:
            tried += 1
            try:
                return Reply(self._once(body, tried), tried)
            except _Again as failed:
                if tried > self.retries or self.stop.is_set():
                    times = "once" if tried == 1 else f"{tried} times"
                    reason = f"{failed.reason} (asked {times})."
                    raise NoAnswer(reason, about_all=failed.about_all, tries=tried) from failed
                self.stop.wait(_wait(tried) if failed.wait is None else failed.wait)

    def _once(self, body: bytes, tried: int) -> str:
        request = urllib.request.Request(self.url, body, self._headers, method="POST")
        try:
            with self._open(request, timeout=self.timeout) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            raise self._refused(error, tried) from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(cause, TimeoutError):
                raise _Again(f"no answer from the server within {self.timeout:g} s", about_all=True) from error
            if isinstance(error, http.client.IncompleteRead):
                raise _Again("the server's reply was cut off") from error
            raise _Again(f"no connection to the server ({_words(cause)})", about_all=True) from error
        try:
            found = json.loads(content)
        except ValueError as error:
            raise _Again(f"the server's reply is not JSON, or cut off: {_short(content)!r}") from error
        return _text(found, tried)

    def _refused(self, error: urllib.error.HTTPError, tried: int) -> Exception:
        try:
            content = error.read()
        except (OSError, http.client.HTTPException):  # what it had to say was cut off; its status was not
            content = b""
        reason = f"the server answers {error.code} {error.reason}"
        said = _message(content)
        reason += f": {said}" if said else ""
        if error.code in AGAIN:
            return _Again(reason, _retry_after(error.headers.get("Retry-After")))
        if 300 <= error.code < 400:
            reason += f" (it leads to {error.headers.get('Location', 'elsewhere')}: give that address)"
            return NoAnswer(reason + ".", about_all=True, tries=tried)
        return NoAnswer(reason.rstrip(".") + ".", about_all=error.code in ABOUT_ALL, tries=tried)


def chat_url(url: str) -> str:
    """The address at which a server takes chat completions.

    Raises:
        InvalidValue: not an address of the web.
    """
    parts = urllib.parse.urlsplit(url)
    try:
        legal = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        legal = False
    if not legal:
        raise InvalidValue(f"endpoint {url!r} is no address: give one such as http://localhost:8000/v1.")
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path = (path or "/v1") + "/chat/completions"
    return urllib.parse.urlunsplit(parts._replace(path=path, fragment=""))


def key_from(variable: str | None) -> str | None:
    """The key in an environment variable.

    Raises:
        InvalidValue: it is not set, or cannot be a key.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InvalidValue(f"the environment variable {variable} is not set: put the server's key there.")
    if not key.isascii() or not key.isprintable():
        raise InvalidValue(f"the environment variable {variable} holds no key: it has characters that no header may.")
    return key


def _wait(tried: int) -> float:
    return min(FIRST_WAIT * 2 ** (tried - 1), LONGEST_WAIT) * random.uniform(0.5, 1.5)


def _retry_after(value: str | None) -> float | None:
    """Seconds that a header asks to wait for, as a number or a date; None where it does not."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER) if seconds == seconds else None


def _text(found: Any, tried: int) -> str:
    """The text of a chat completion.

    Raises:
        NoAnswer: it is something else, or has no text.
        _Again: an error, in a reply that says it went well, that may pass.
    """
    if isinstance(found, dict) and isinstance(found.get("error"), dict | str):
        code = found["error"].get("code") if isinstance(found["error"], dict) else None
        reason = f"the server answers with an error: {_message(json.dumps(found).encode())}"
        if code in AGAIN:
            raise _Again(reason)
        raise NoAnswer(reason.rstrip(".") + ".", tries=tried)
    try:
        choice = found["choices"][0]
        message = choice["message"]
        content = message["content"]
    except (TypeError, KeyError, IndexError) as error:
        keys = ", ".join(map(str, found))[:80] if isinstance(found, dict) else type(found).__name__
        raise NoAnswer(
            f"the server answers in another form than chat completions (it has {keys or 'nothing'}, "
            "not choices[0].message.content): give an endpoint that speaks that protocol.",
            about_all=True,
            tries=tried,
        ) from error
    if isinstance(content, list):  # in parts
        content = "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    if content is None and isinstance(message.get("refusal"), str):
        content = message["refusal"]
    if not isinstance(content, str):
        why = choice.get("finish_reason")
        told = f" (finish_reason {why!r})" if why else ""
        raise NoAnswer(f"the server answers without text{told}.", tries=tried)
    return content


def _message(content: bytes) -> str:
    """A server's own words in the body of an error."""
    try:
        found = json.loads(content)
    except ValueError:
        return _short(content)
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(key):
            found = found[key]
    return _short(found if isinstance(found, str) else json.dumps(found)) if found else ""


def _short(text: str | bytes) -> str:
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 3] + "..."


def _words(error: object) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
