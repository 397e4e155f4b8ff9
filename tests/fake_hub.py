"""A Hugging Face hub in this process, over HTTP, with what its client needs to make repos, commit, look and download.

Repos are kept in memory as lists of commits. ``main`` is the last one; tags can be given. Files are always sent inside
the commit (the hub's "regular" mode).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

TOKEN = "hf_right"


class FakeHub:
    """The server and what it holds.

    Attributes:
        repos: id to commits, oldest first; a commit is a dictionary of files, its id a hash of names and content.
        tags: (repo, tag) to commit id.
        private, gated: ids of repos.
        asked: method and path of every request.
        fails_with: status of the answer to everything; None: it works.
    """

    def __init__(self) -> None:
        self.repos: dict[str, list[dict[str, bytes]]] = {}
        self.tags: dict[tuple[str, str], str] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.asked: list[str] = []
        self.fails_with: int | None = None
        hub = self

        class Handler(_Handler):
            fake = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes] | None:
        """The files of a revision: a branch, a tag or a commit; None if there is none of this name."""
        commits = self.repos.get(repo, [])
        wanted = self.tags.get((repo, revision), revision)
        for files in reversed(commits):
            if wanted in ("main", commit_id(files)):
                return files
        return None


def commit_id(files: dict[str, bytes]) -> str:
    """The id of a commit."""
    found = hashlib.sha1()
    for name, content in sorted(files.items()):
        found.update(f"{name} {len(content)} ".encode() + content)
    return found.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a test's output is its own."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.fake.asked.append(f"{self.command} {path}")
        if self.fake.fails_with is not None:
            return self._send(self.fake.fails_with, {"error": "out of order"})
        for pattern, method in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found:
                return getattr(self, method)(body, **found.groupdict())
        return self._send(404, {"error": f"the fake hub has no {path}"})

    def _send(self, status: int, content: Any = b"", **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def _logged_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _found(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """The files of a revision; None: the refusal has been sent."""
        if repo not in self.fake.repos or (repo in self.fake.private and not self._logged_in):
            return self._send(401, {"error": "no such repo"}, X_Error_Code="RepoNotFound")
        if repo in self.fake.gated:
            return self._send(403, {"error": "ask first"}, X_Error_Code="GatedRepo")
        files = self.fake.files(repo, revision)
        if files is None:
            self._send(404, {"error": "no such revision"}, X_Error_Code="RevisionNotFound")
        return files

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked.get('organization') or 'me'}/{asked['name'].rpartition('/')[2]}"
        if not self._logged_in:
            return self._send(401, {"error": "log in"})
        if repo in self.fake.repos:
            return self._send(409, {"url": f"{self.fake.url}/{repo}", "error": "it exists"})
        self.fake.repos[repo] = [{".gitattributes": b""}]
        if asked.get("private") or asked.get("visibility") == "private":
            self.fake.private.add(repo)
        return self._send(200, {"url": f"{self.fake.url}/{repo}", "name": repo})

    def _preupload(self, body: bytes, repo: str, revision: str) -> None:
        files = json.loads(body)["files"]
        self._send(200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})

    def _commit(self, body: bytes, repo: str, revision: str) -> None:
        if not self._logged_in:
            return self._send(403, {"error": "not yours"})
        if (files := self._found(repo, revision)) is None:
            return None
        files = dict(files)
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        self.fake.repos[repo].append(files)
        at = f"{self.fake.url}/{repo}/commit/{commit_id(files)}"
        return self._send(200, {"success": True, "commitOid": commit_id(files), "commitUrl": at})

    def _info(self, body: bytes, repo: str, revision: str = "main") -> None:
        if (files := self._found(repo, revision)) is not None:
            siblings = [{"rfilename": name} for name in files]
            about = {"id": repo, "modelId": repo, "sha": commit_id(files), "siblings": siblings, "tags": []}
            self._send(200, {**about, "private": repo in self.fake.private, "downloads": 0, "likes": 0})

    def _tree(self, body: bytes, repo: str, revision: str) -> None:
        if (files := self._found(repo, revision)) is not None:
            self._send(
                200,
                [
                    {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for n, c in files.items()
                ],
            )

    def _resolve(self, body: bytes, repo: str, revision: str, file: str) -> None:
        if (files := self._found(repo, revision)) is None:
            return None
        at = commit_id(files)
        if file not in files:
            return self._send(404, {"error": "no such file"}, X_Error_Code="EntryNotFound", X_Repo_Commit=at)
        return self._send(200, files[file], ETag=f'"{hashlib.sha1(files[file]).hexdigest()}"', X_Repo_Commit=at)

    def _valid(self, body: bytes) -> None:
        self._send(200, {"errors": [], "warnings": []})


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES = [
    (r"/api/repos/create", "_create"),
    (r"/api/validate-yaml", "_valid"),
    (rf"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)", "_preupload"),
    (rf"/api/models/{_REPO}/commit/(?P<revision>[^/]+)", "_commit"),
    (rf"/api/models/{_REPO}/revision/(?P<revision>[^/]+)", "_info"),
    (rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", "_tree"),
    (rf"/api/models/{_REPO}", "_info"),
    (rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", "_resolve"),
]


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch, cache: Any) -> Iterator[FakeHub]:
    """A hub that huggingface_hub asks instead of the real one, with an empty cache, logged in."""
    from huggingface_hub import constants

    hub = FakeHub()
    threading.Thread(target=hub.server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
