"""A small suite about made-up clips, and a server that speaks the chat-completions protocol, faults included."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from foveate.registry import register
from foveate.scorers.base import Answer, Clip, Figure, Notes, Question, Row, Shown, Suite, Verdict, figure
from foveate.scorers.reading import read_json, read_lines


@register("scorer", "toy_clips")
class ToyClips(Suite):
    """Which way does the square move?"""

    slug = "toy_clips"
    sections = ("overall",)
    published = {"way": 4}
    shown = Shown(frames=4)

    def __init__(self, annotations: str | Path | None = None, *, tasks: Sequence[str] | None = None) -> None:
        self.notes = Notes()
        self.questions = {}
        for entry in read_json(Path(annotations)) if annotations else []:
            clip = Clip(None, entry.get("until"))
            options = {"A": "left", "B": "right"}
            question = Question(
                entry["id"], entry["task"], entry["video"], "Which way?", "A", "choice", options, "A", clip=clip
            )
            if tasks is None or question.task in tasks:
                self.questions[question.id] = question

    def answers(self, predictions: Path) -> list[Answer]:
        lines = read_lines(predictions, self.notes)
        return [Answer(self.questions[line["id"]], line["response"], predictions.name) for _, line in lines]

    def judge(self, question: Question, response: Any, rules: str) -> Verdict:
        return Verdict(float(response == question.truth), True)

    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        return [figure("overall", "all", rows)]

    def prompt(self, question: Question, frames: int | None = None) -> str:
        return f"[{question.id}] {frames} frames. {question.question}"

    def system_prompt(self, question: Question) -> str:
        return "Look well."


def write_clip(file: Path, frames: int = 24, fps: int = 8, size: tuple[int, int] = (64, 48), gop: int = 6) -> None:
    """A clip whose frame i is as bright as 10 i, so that a frame tells its number."""
    import av

    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4" if file.suffix == ".avi" else "libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", gop
        for i in range(frames):
            picture = np.full((size[1], size[0], 3), 10 * i, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def number_of(frame: np.ndarray) -> int:
    """Which frame of :func:`write_clip` this is."""
    return round(float(frame.mean()) / 10)


def write_suite(folder: Path, count: int = 4, clips: int = 2, **clip: Any) -> Path:
    """Annotations of ``count`` questions about ``clips`` clips in ``folder/videos``; the annotations' file."""
    for i in range(clips):
        write_clip(folder / "videos" / f"clip{i}.mp4", **clip)
    entries = [
        {"id": f"way/{i}", "task": "way", "video": f"clip{i % clips}.mp4", "until": 1.0 + i} for i in range(count)
    ]
    file = folder / "toy.json"
    file.write_text(json.dumps(entries))
    return file


def install(folder: Path) -> None:
    """Make the suite known to processes that have the folder on their path."""
    record = folder / "toyclips-1.0.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: toyclips\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[foveate.plugins]\ntoyclips = tests.toy_clips\n")


class Stub:
    """A chat-completions server. Use as a context manager.

    Args:
        faults: by question id, what goes wrong at its first tries: "429", "500", "hang", "cut", "half", "drop", "400",
            "401", "schema", "null", "error" or "html"; "*" for all others.
        delay: seconds before each answer.
        leads_to: address that a redirection names.
    """

    def __init__(
        self, faults: Mapping[str, Sequence[str]] | None = None, delay: float = 0.0, leads_to: str = ""
    ) -> None:
        self.leads_to = leads_to
        self.faults = {id: list(found) for id, found in (faults or {}).items()}
        self.delay = delay
        self.asked: Counter[str] = Counter()  #: requests by id
        self.answered: Counter[str] = Counter()  #: requests that were given an answer
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: dict[str, list[float]] = {}
        self.lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.serve(self, body)

            def do_GET(self) -> None:  # where a redirection leads
                stub.serve(self, {"messages": ["none"]})

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> Stub:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def serve(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        found = re.search(r"\[([\w/]+)\] ", json.dumps(body["messages"][-1]))
        id = found[1] if found else "?"
        with self.lock:
            self.asked[id] += 1
            self.bodies.append(body)
            self.headers.append({"path": handler.path, **dict(handler.headers)})
            self.times.setdefault(id, []).append(time.monotonic())
            left = self.faults.get(id, self.faults.get("*", []))
            fault = left[0] if id not in self.faults and left else left.pop(0) if left else ""
        time.sleep(self.delay)
        answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": f"A for {id}"}}]})
        status, told = 200, {}
        if fault == "hang":
            time.sleep(3.0)
            return
        if fault == "drop":
            handler.connection.close()
            return
        if fault.isdigit():
            status, answer = int(fault), json.dumps({"error": {"message": f"no {fault} today"}})
            told = {"Retry-After": "0"} if fault == "429" else {}
            told |= {"Location": self.leads_to} if self.leads_to else {}
        wrong = {
            "schema": '{"output": "A"}',
            "null": '{"choices": [{"message": {"content": null}, "finish_reason": "length"}]}',
            "error": '{"error": {"message": "overloaded", "code": 503}}',
            "html": "<html>gateway</html>",
            "half": answer[:40],
        }
        answer = wrong.get(fault, answer)
        handler.send_response(status)
        for name, value in told.items():
            handler.send_header(name, value)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(answer) + (100 if fault == "cut" else 0)))
        handler.end_headers()
        handler.wfile.write(answer.encode())
        if not fault:
            with self.lock:
                self.answered[id] += 1


def pictures(body: Mapping[str, Any]) -> list[np.ndarray]:
    """The frames of a request."""
    from PIL import Image

    content = body["messages"][-1]["content"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1])))) for url in urls]
