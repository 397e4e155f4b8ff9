"""``verify``: a system's claims, measured here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InvalidValue
from .values import duration, names


def verify(
    slugs: Annotated[
        list[str] | None, typer.Argument(metavar="[SLUG]...", help="Systems, as `foveate list` names them.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="All systems.")] = False,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="exact, scaling, learned or needs-pretrained; by commas, or repeated.", show_default="all kinds"
        ),
    ] = None,
    timed: Annotated[
        bool | None,
        typer.Option(
            "--timed/--no-timed", help="Only checks that compare times, or none of them.", show_default="all checks"
        ),
    ] = None,
    missing: Annotated[
        bool, typer.Option("--missing", help="Leave out what --out holds, measured on the present sources.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Checks at once.", show_default="one a core")] = None,
    timeout: Annotated[str, typer.Option(help="Time that a check may take, such as 90s or 30m.")] = "30m",
    out: Annotated[Path, typer.Option(help="File that results are merged into.")] = Path("foveate-runs/claims.json"),
    page: Annotated[
        Path | None, typer.Option(help="Make a Markdown page of that file; without systems, only this.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results of this run as JSON.")] = False,
) -> None:
    """Check systems' claims here: claimed against measured. Exit status 1 if one fails or ends in an error.

    Each check runs in a process of its own with one thread; those that compare times run alone, after all others.
    """
    if all_ and slugs:
        raise InvalidValue(f"--all is not possible together with {slugs[0]!r}: give systems, or --all.")
    if not (all_ or slugs or page):
        raise InvalidValue("verify does not know what to check: give systems, or --all.")
    seconds, kinds = duration(timeout, "--timeout"), names(",".join(kind or ()))
    from ..verification import choose, results

    checks = choose(slugs or None, kinds, timed or None)
    if page is not None:
        results.check_page(page)
        if not (all_ or slugs or out.exists()):
            raise InvalidValue(f"--page {page} is not possible: {out} does not exist, and nothing is to be measured.")
    record: dict[str, Any] = {"systems": {}}
    if all_ or slugs:
        options = {"timed": timed, "missing": missing, "workers": workers, "timeout": seconds, "out": out}
        record = _measured(slugs, kinds, options, out)
        if as_json:
            print(json.dumps(record, indent=2))
        else:
            _print(record, out, bool(checks))
    if page is not None:
        from ..files import atomic_write
        from ..verification.page import markdown

        atomic_write(page, markdown(results.read(out)))
    if any(c["result"] in ("fails", "error") for s in record["systems"].values() for c in s["claims"].values()):
        raise typer.Exit(1)


def _measured(slugs: list[str] | None, kinds: tuple[str, ...], options: dict[str, Any], out: Path) -> dict[str, Any]:
    from ..verification import verify
    from ..verification.display import Display

    with Display() as display:
        try:
            return verify(slugs or None, kinds, progress=display.event, **options)
        except KeyboardInterrupt:
            done = f"{len(display.ended)} of {display.total} claims are checked"
    print(f"foveate: interrupted: {done}, with results in {out}; --missing checks the rest.", file=sys.stderr)
    raise typer.Exit(130)


def _print(record: dict[str, Any], out: Path, any_claims: bool) -> None:
    from rich.console import Console

    from ..verification.display import counted, tables

    results = [c["result"] for s in record["systems"].values() for c in s["claims"].values()]
    if not results:
        print("Nothing is missing." if any_claims else "There are no such claims: nothing was checked.")
        return
    console = Console()
    console.print(tables(record))
    console.print(f"{counted(results)}: {out}", soft_wrap=True, highlight=False)
