"""Pages: one HTML file that needs nothing else, no network, no fonts, no libraries.

Charts are inline SVG that follows light and dark. A page forbids itself every request by its content security policy,
and every text is escaped by jinja2: names of files, columns and contestants come from users.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from . import figures

#: A time to the full minute in ISO 8601: its seconds need not be shown.
_ISO_TIME = re.compile(r"\b(\d{4}-\d\d-\d\d)T(\d\d:\d\d):00(?:\.0+)?")
_TEMPLATES = Path(__file__).parent / "templates"


def render_page(template: str, folder: Path, **values: Any) -> str:
    """A page as HTML.

    Args:
        template: a file that extends ``frame.html``.
        folder: where it lies.
        values: what it shows.
    """
    environment, script = _environment(folder)
    policy = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(policy=policy, script=Markup(script), **values)


@functools.cache
def _environment(folder: Path) -> tuple[jinja2.Environment, str]:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment, (_TEMPLATES / "page.js").read_text(encoding="utf-8")


def charts_of(drawings: Iterable[str]) -> list[Markup]:
    """Drawings as safe markup (they escape their own texts), empty ones left out."""
    return [Markup(drawing) for drawing in drawings if drawing]


def date(iso: str) -> str:
    """A moment in words."""
    moment = datetime.fromisoformat(iso)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def facts(values: Mapping[str, Any], skip: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(name, value) in words; what is unknown is left out, records of records get a line for each inner one."""
    told: list[tuple[str, str]] = []
    for key, value in values.items():
        name = key.replace("_", " ")
        if key in skip or value in (None, "", [], {}):
            continue
        if isinstance(value, Mapping) and all(isinstance(inner, Mapping) for inner in value.values()):
            told += [(f"{name}: {inner}", _fact(record, 1)) for inner, record in value.items()]
        else:
            told.append((name, _fact(value)))
    return told


def _fact(value: Any, depth: int = 0) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        counts = all(isinstance(v, int) for v in value.values())  # counts by name: only those that are not 0
        parts = [f"{k} {_fact(v, depth + 1)}" for k, v in value.items() if v is not None and (v or not counts)]
        return _few(parts, 12, ", " if depth else "; ") or "none"
    if isinstance(value, list | tuple):
        return _few([_fact(v, depth + 1) for v in value], 16, ", ")
    return _ISO_TIME.sub(r"\1 \2", str(value))


def _few(parts: Sequence[str], most: int, separator: str) -> str:
    tail = f"{separator}… ({len(parts)} in all)" if len(parts) > most else ""
    return separator.join(parts[:most]) + tail


def machine_lines(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    """:func:`facts` of :func:`~foveate.measure.machine.machine_facts`, memory as people read it."""
    machine = dict(machine)
    if figures.finite(machine.get("memory_bytes")):
        machine["memory"] = figures.format_bytes(machine.pop("memory_bytes"))
    return facts(machine)
