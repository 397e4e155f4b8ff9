"""The text of the small Llama: the sources of Python's own standard library, which are wherever Python is.

A document is a package or a module, with the files of a package in the order of their paths, so that a name can come
back after tens of thousands of tokens. Whole subjects are kept back, a module together with its tests.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

#: What is never read: what is installed into the library, tables without words, and what differs by machine.
LEFT_OUT = ("site-packages", "dist-packages", "encodings", "pydoc_data", "__phello__", "config-", "_sysconfigdata")
#: Subjects that are not trained on.
KEPT_BACK = {
    "validation": ("argparse", "logging", "http", "httpservers", "httplib", "http_cookies", "http_cookiejar"),
    "test": ("email", "inspect", "typing", "tarfile", "decimal", "pydecimal"),
}


def subject(document: str) -> str:
    """``test/test_email`` and ``email`` are about ``email``."""
    return document.removeprefix("test/").removeprefix("test_").removesuffix(".py").lstrip("_")


def split_of(document: str) -> str:
    """train, validation or test."""
    return next((split for split, subjects in KEPT_BACK.items() if subject(document) in subjects), "train")


def documents(split: str, root: Path | None = None) -> dict[str, str]:
    """The documents of a split by name, in order of names.

    Args:
        split: "train", "validation" or "test".
        root: folder of a standard library; None = that of the running Python.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    parts: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if inside.parts[0].startswith(LEFT_OUT):
            continue
        name = "/".join(inside.parts[: 2 if inside.parts[0] == "test" else 1])
        if split_of(name) != split:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # test data in other encodings
            continue
        parts.setdefault(name, []).append(f"# {inside.as_posix()}\n{text}")
    return {name: "\n".join(texts) for name, texts in parts.items()}
