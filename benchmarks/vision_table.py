"""Parameters and multiply-adds of every published size of every image model, beside what its publication prints.

``python benchmarks/vision_table.py`` writes ``benchmarks/vision_table.md``. Models are built on the meta device:
nothing is computed, and the result is the same on every machine. A difference of more than 1 % that nobody has
explained (in the model's ``cost_differences``) ends the script with status 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

from foveate.models.vision.table import Row, rows
from foveate.registry import entries

PAGE = Path(__file__).with_suffix(".md")
OPENING = """# Sizes of image models

Made by `python benchmarks/vision_table.py`. Millions of parameters and billions of multiply-adds (in matrix products,
convolutions and attention, for one image), counted here and as the publication prints them. A number that rounds to
what is printed counts as equal; a difference of more than 1 % is explained below the table.
"""


def cells(row: Row) -> list[str]:
    """A line of the table."""
    ours = row.counted.parameters / 1e6, row.counted.macs / 1e9
    line = [f"`{row.name}`", str(row.pixels)]
    for counted, printed, difference in zip(ours, (row.parameters, row.macs), row.differences, strict=True):
        apart = "" if printed is None else "=" if not difference else f"{100 * (counted / printed - 1):+.1f} %"
        line += [f"{counted:.2f}", "" if printed is None else f"{printed}", apart]
    return line


def section(model: str, found: list[Row]) -> str:
    """The table of one model, and its explanations."""
    head = ["size", "pixels", "parameters", "printed", "", "multiply-adds", "printed", ""]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *(cells(row) for row in found)]
    text = f"## {model}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
    said: dict[str, list[str]] = {}
    for row in found:
        if row.explained:
            said.setdefault(row.explained, []).append(f"`{row.name}`")
    notes = [f"- {', '.join(names)}: {why}" for why, names in said.items()]
    return "\n\n".join([text, "\n".join(notes)] if notes else [text]) + "\n"


def main() -> int:
    """Write the page; 1 if a difference is not explained."""
    models = [e.name for e in entries("model") if e.configurations and e.spec.reads == "image"]
    found = {model: rows(model) for model in models}
    PAGE.write_text("\n".join([OPENING, *(section(*item) for item in found.items())]), encoding="utf-8")
    wrong = [row for of in found.values() for row in of if max(row.differences) > 0.01 and not row.explained]
    for row in wrong:
        print(f"{row.name}: {row.counted} differs from the publication and is not explained", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
