"""``bench``: what ops, mixers and models cost here, and against every installed peer."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InvalidValue
from .values import names as split_names
from .values import whole_numbers


def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAMES]...", help="Benchmarks; none: all.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only these: op, mixer or model.")] = None,
    sizes: Annotated[str | None, typer.Option(help="Sizes, by commas.", show_default="each benchmark's own")] = None,
    passes: Annotated[str, typer.Option(help="forward, forward+backward, by commas.")] = "forward,forward+backward",
    threads: Annotated[str | None, typer.Option(help="Thread counts, by commas.", show_default="1, then 2")] = None,
    seconds: Annotated[float, typer.Option(help="Time given to each contender at each size.")] = 0.5,
    limit: Annotated[float, typer.Option(help="Leave out what needs longer than this for one call.")] = 30.0,
    busy: Annotated[bool, typer.Option("--busy", help="Measure although the machine is busy.")] = False,
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Measure other libraries too.")] = True,
    out: Annotated[Path, typer.Option(help="Folder for bench.json and bench.html.")] = Path("foveate-runs/bench"),
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file too.")] = None,
    only_list: Annotated[bool, typer.Option("--list", help="Print benchmarks and peers, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record instead of tables.")] = False,
) -> None:
    """Time ops, mixers and models against every installed peer, after testing that they agree.

    All contenders take turns in one run, on one pinned thread first and then on two; a busy machine is refused.
    """
    for option, file in (("--out", out), ("--markdown", markdown)):
        if file is not None and file.exists() and file.is_dir() != (option == "--out"):
            raise InvalidValue(f"{option} {file} is not possible: it is a {'folder' if file.is_dir() else 'file'}.")
    from ..bench.cases import choose_cases
    from ..bench.settings import BenchSettings
    from ..measure.machine import usable_cores

    cases = choose_cases(names or (), kind)
    if only_list:
        _print_list(cases, as_json)
        return
    default = (1, 2) if usable_cores() > 1 else (1,)
    settings = BenchSettings(
        sizes=whole_numbers(sizes, "sizes") if sizes else (),
        passes=split_names(passes),
        threads=whole_numbers(threads, "threads") if threads else default,
        seconds=seconds,
        limit=limit,
        busy=busy,
        peers=peers,
    )
    from ..bench import page, tables
    from ..bench.runner import run_benchmark
    from ..files import atomic_write

    command = shlex.join(["foveate", *sys.argv[1:]])
    record = run_benchmark(cases, settings, command=command, on_event=lambda line: print(line, file=sys.stderr))
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / "bench.json", json.dumps(record, indent=2))
    atomic_write(out / "bench.html", page.render(record))
    if markdown is not None:
        atomic_write(markdown, tables.markdown(record))
    if as_json:
        print(json.dumps(record, indent=2))
        return
    from rich.console import Console

    console = Console()
    console.print(tables.terminal(record, console.width))
    print(f"\nreport: {out / 'bench.html'}")


def _print_list(cases: list[Any], as_json: bool) -> None:
    from ..bench.peers import all_peers

    peers = all_peers()
    if as_json:
        told = [{"name": c.name, "kind": c.kind, "about": c.about, "sizes": c.sizes, "unit": c.unit} for c in cases]
        others = [{"name": p.name, "of": p.of, "absent": p.absent()} for p in peers]
        print(json.dumps({"benchmarks": told, "peers": others}, indent=2))
        return
    for case in cases:
        against = [p.name for p in peers if p.serves(case) and not p.absent()]
        print(f"{case.kind:6} {case.name:34} {case.about}" + (f"; against {', '.join(against)}" if against else ""))
    for peer in peers:
        if why := peer.absent():
            print(f"peer   {peer.name:34} not here: {why}")
