"""The table of ``docs/export.md``, from the specs: ``python -m foveate.exporting.pages docs/export.md`` renews it."""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import InvalidValue
from ..registry import entries
from .promises import UNTRIED

BEGIN, END = "<!-- table of exports: begin -->", "<!-- table of exports: end -->"


def rows() -> list[str]:
    """One Markdown row for each registered mixer and model."""
    found = []
    for entry in (*entries("mixer"), *entries("model")):
        spec = entry.spec
        words = ["yes" if kept else "no" for kept in (spec.export, spec.onnx, spec.dynamic_length)]
        # A model of windows has one length by its nature: that needs no reason.
        lacks = not (spec.export and spec.onnx) or (entry.kind == "mixer" and not spec.dynamic_length)
        note = (spec.export_note or UNTRIED) if lacks else ""
        found.append(f"| {entry.kind} | `{entry.name}` | {' | '.join(words)} | {note} |")
    return found


def table() -> str:
    """The whole table."""
    head = ["| kind | name | pt2 | ONNX | any length | what keeps it from the rest |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *rows()])


def renew(page: Path) -> None:
    """Put the table between its marks.

    Raises:
        InvalidValue: the page has no marks.
    """
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise InvalidValue(f"{page} has no place for the table: it needs the lines {BEGIN} and {END}.")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    renew(Path(sys.argv[1]))
