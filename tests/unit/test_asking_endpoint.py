"""A server is asked again where that can help, and its refusals are told in its own words."""

from __future__ import annotations

import email.utils
import socket
import threading
import time
from pathlib import Path

import pytest

from foveate.asking import client as client_module
from foveate.asking.client import Client, NoAnswer, chat_url, key_from
from foveate.asking.judge import endpoint_judge
from foveate.errors import InvalidValue
from tests.toy_clips import Stub

QUESTION = [{"role": "user", "content": "[q] Which way?"}]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_WAIT", 0.01)


@pytest.mark.parametrize("fault", ["429", "500", "503", "hang", "cut", "half", "drop", "error", "html"])
def test_what_may_pass_is_asked_again(fault: str):
    with Stub({"q": [fault, fault]}) as stub:
        reply = Client(stub.url, "m", timeout=0.3).chat(QUESTION)
    assert (reply.text, reply.tries, stub.asked["q"]) == ("A for q", 3, 3)


@pytest.mark.parametrize(
    ("fault", "reason", "about_all"),
    [
        ("429", "429 Too Many Requests: no 429 today", False),
        ("500", "500 Internal Server Error: no 500 today", False),
        ("hang", "no answer from the server within 0.3 s", True),
        ("cut", "reply was cut off", False),
        ("half", "not JSON, or cut off", False),
        ("drop", "no connection to the server", True),
        ("html", "gateway", False),
        ("error", "overloaded", False),
    ],
)
def test_what_does_not_pass_is_a_reason(fault: str, reason: str, about_all: bool):
    with Stub({"q": [fault] * 9}) as stub, pytest.raises(NoAnswer, match=reason) as caught:
        Client(stub.url, "m", timeout=0.3, retries=1).chat(QUESTION)
    assert "(asked 2 times)" in str(caught.value)
    assert (caught.value.about_all, caught.value.tries, stub.asked["q"]) == (about_all, 2, 2)


@pytest.mark.parametrize(
    ("fault", "reason", "about_all"),
    [
        ("400", "400 Bad Request: no 400 today", False),
        ("413", "no 413 today", False),
        ("401", "401 Unauthorized: no 401 today", True),
        ("404", "no 404 today", True),
        ("301", "it leads to elsewhere", True),
        ("schema", "another form than chat completions .it has output, not choices", True),
        ("null", "without text .finish_reason 'length'", False),
    ],
)
def test_what_is_final_is_asked_once(fault: str, reason: str, about_all: bool):
    with Stub({"q": [fault] * 9}) as stub, pytest.raises(NoAnswer, match=reason) as caught:
        Client(stub.url, "m").chat(QUESTION)
    assert (caught.value.about_all, stub.asked["q"]) == (about_all, 1)


def test_waits_grow_with_a_random_part_and_servers_may_set_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client_module, "FIRST_WAIT", 1.0)
    for tried, whole in ((1, 1), (2, 2), (5, 16), (20, 60)):
        waits = [client_module._wait(tried) for _ in range(200)]
        assert whole / 2 <= min(waits) < 0.7 * whole
        assert 1.3 * whole < max(waits) <= 1.5 * whole
    assert client_module._retry_after("2.5") == 2.5
    assert client_module._retry_after("-1") == 0.0
    assert client_module._retry_after("99999999") == client_module.LONGEST_RETRY_AFTER
    assert client_module._retry_after(email.utils.formatdate(time.time() + 30)) == pytest.approx(30, abs=2)
    assert client_module._retry_after("soon") is None
    assert client_module._retry_after("nan") is None
    with Stub({"q": ["429"]}) as stub:  # it says 0 seconds
        begun = time.monotonic()
        Client(stub.url, "m").chat(QUESTION)
    assert time.monotonic() - begun < 0.4


def test_a_wait_ends_when_told_to_stop(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client_module, "FIRST_WAIT", 60.0)
    stop = threading.Event()
    with Stub({"q": ["500"] * 9}) as stub:
        threading.Timer(0.2, stop.set).start()
        begun = time.monotonic()
        with pytest.raises(NoAnswer):
            Client(stub.url, "m", stop=stop).chat(QUESTION)
    assert time.monotonic() - begun < 5


def test_what_is_sent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", " secret \n")
    with Stub() as stub:
        Client(stub.url + "/", "m", key=key_from("MY_KEY")).chat(QUESTION, max_tokens=5, seed=1)
    assert stub.bodies == [{"model": "m", "messages": QUESTION, "max_tokens": 5, "seed": 1}]
    assert stub.headers[0]["Authorization"] == "Bearer secret"
    assert stub.headers[0]["path"] == "/v1/chat/completions"


@pytest.mark.parametrize("status", ["301", "302", "307"])
def test_a_key_does_not_follow_to_another_server(status: str):
    with Stub() as other, Stub({"q": [status]}, leads_to=other.url) as stub:
        with pytest.raises(NoAnswer, match=rf"{status} .*it leads to {other.url}: give that address"):
            Client(stub.url, "m", key="secret").chat(QUESTION)
        assert not other.headers


def test_addresses_and_keys(monkeypatch: pytest.MonkeyPatch):
    assert chat_url("http://h:1") == "http://h:1/v1/chat/completions"
    assert chat_url("https://h/api/v3/") == "https://h/api/v3/chat/completions"
    assert chat_url("http://h/v1/chat/completions") == "http://h/v1/chat/completions"
    assert chat_url("https://h/x?api-version=2") == "https://h/x/chat/completions?api-version=2"
    for url in ("localhost:8000", "ftp://h", "http://", "http://h:port", "file:///etc/passwd"):
        with pytest.raises(InvalidValue, match="is no address"):
            chat_url(url)
    monkeypatch.delenv("NO_KEY", raising=False)
    monkeypatch.setenv("BAD_KEY", "a\nb")
    for name in ("NO_KEY", "BAD_KEY"):
        with pytest.raises(InvalidValue, match=name):
            key_from(name)
    for options in ({"timeout": 0}, {"retries": -1}):
        with pytest.raises(InvalidValue, match=next(iter(options))):
            Client("http://h", "m", **options)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_a_server_that_is_not_there():
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(NoAnswer, match=r"no server answers there .Connection refused"):
        Client(url, "m").check()
    with pytest.raises(InvalidValue, match="no server answers there"):
        endpoint_judge(url, "m")


def test_a_judge(tmp_path: Path):
    with Stub() as stub:
        judge = endpoint_judge(stub.url, "m")
        assert judge("[q] Which?", "left", "I think left") == 0  # "A for q" says nothing of correct
        assert judge("[q] Which?", "left", "I think left") == 0
        assert stub.asked["q"] == 1
        said = stub.bodies[0]["messages"][-1]["content"]
    assert all(part in said for part in ("[q] Which?", "left", "I think left"))
    with Stub({"q": ["400"]}) as stub, pytest.raises(InvalidValue, match=r"judge 'm' gives no verdict: .*no 400"):
        endpoint_judge(stub.url, "m")("[q] Which?", "left", "right")
