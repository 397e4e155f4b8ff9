"""What writing costs: tokens a second and bytes of state after 1,000, 8,000 and 32,000 tokens, per mixer.

``python benchmarks/generate.py --markdown benchmarks/generate.md`` puts every mixer into the same
:class:`~foveate.models.language.language_model.LanguageModel` with random weights and feeds all of them the same
tokens in chunks of 512, in turns. At each context the state is kept; then steps from all of these states are timed,
interleaved, on one thread, without the choice of a token, which is timed by itself. All times are the processor's.
Ratios are to the first mixer in the same run. It refuses when others compute, unless ``--busy`` is given.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from foveate.generation import Sampling
from foveate.measure.machine import cpu_name, usable_cores
from foveate.models.language.language_model import LanguageModel
from foveate.pages.figures import format_bytes

SYSTEMS = ("softmax_attention", "sigmoid_attention", "lightning_attention", "mamba", "mamba2", "gru", "lstm", "aaren")
SIZES: dict[str, Any] = {"vocabulary": 256, "dim": 256, "depth": 4, "num_heads": 4}
CHUNK = 512


def typical(calls: dict[str, Callable[[], None]], seconds: float, rounds: int = 20) -> dict[str, float]:
    """Processor seconds of a call of each, in turns: on one thread they are the wall's where nobody else computes."""
    times: dict[str, list[float]] = {key: [] for key in calls}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for key, call in calls.items():
                started, count = time.process_time(), 0
                while (took := time.process_time() - started) < seconds / rounds or count < 3:
                    call()
                    count += 1
                if turn:  # the first grows buffers and caches
                    times[key].append(took / count)
    return {key: statistics.median(durations) for key, durations in times.items()}


def stepper(model: LanguageModel, state: Any) -> Callable[[], None]:
    """Reads one token after the other, going on from the state."""
    token, held = torch.tensor([7]), [state]

    def step() -> None:
        held[0] = model.step(token, held[0])[1]

    return step


def read(model: LanguageModel, state: Any, tokens: torch.Tensor) -> tuple[Any, float]:
    """The state after the tokens, and the processor's seconds they took."""
    started = time.process_time()
    for piece in tokens.split(CHUNK, 1):
        _, state = model.prefill(piece, state)
    return state, time.process_time() - started


def measured(systems: list[str], contexts: list[int], seconds: float) -> list[list[str]]:
    """Rows of the table."""
    tokens = torch.randint(SIZES["vocabulary"], (1, max(contexts)), generator=torch.Generator().manual_seed(0))
    models: dict[str, LanguageModel] = {}
    for name in systems:
        torch.manual_seed(0)
        models[name] = LanguageModel(name, **SIZES).eval()
    rates: dict[str, list[float]] = {name: [] for name in systems}
    sizes: dict[str, list[int]] = {name: [] for name in systems}
    steps: dict[str, Callable[[], None]] = {}
    with torch.inference_mode():
        states = {name: read(model, model.init_state(1), tokens[:, :CHUNK])[0] for name, model in models.items()}
        done = CHUNK
        for context in contexts:
            for name, model in models.items():
                states[name], took = read(model, states[name], tokens[:, done:context])
                rates[name].append((context - done) / took)
                sizes[name].append(states[name].nbytes)
                steps[f"{name} {context}"] = stepper(model, states[name])
            print(f"read {context:,} tokens", flush=True)
            done = context
    times = typical(steps, seconds)
    rows = []
    for name, model in models.items():
        parameters = sum(p.numel() for p in model.parameters())
        row = [name, f"{parameters / 1e6:.1f} M", *(f"{rate:,.0f}" for rate in rates[name])]
        for context in contexts:
            mine, first = (times[f"{n} {context}"] for n in (name, systems[0]))
            row.append(f"{1 / mine:,.0f} ({first / mine:.2f})")
        rows.append([*row, *(format_bytes(size) for size in sizes[name])])
    return rows


def choosing(vocabularies: tuple[int, ...], seconds: float) -> list[list[str]]:
    """Rows: microseconds that the choice of one token takes."""
    ways = {
        "greedy": Sampling(temperature=0),
        "drawn": Sampling(),
        "top_k 40": Sampling(top_k=40),
        "top_p 0.95": Sampling(top_p=0.95),
        "min_p 0.05": Sampling(min_p=0.05),
    }
    uniform, calls = torch.full((1,), 0.5, dtype=torch.float64), {}
    for size in vocabularies:
        logits = -1.2 * torch.arange(1.0, size + 1).log()[None]  # as frequencies of words fall
        for way, sampling in ways.items():
            calls[f"{way} {size}"] = lambda sampling=sampling, logits=logits: sampling.choose(logits, uniform)
    times = typical(calls, seconds)
    return [[way, *(f"{1e6 * times[f'{way} {size}']:,.0f}" for size in vocabularies)] for way in ways]


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Markdown; all columns but the first to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure and print; see the module's own words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="mixers, by commas; ratios are to the first")
    parser.add_argument("--contexts", default="1000,8000,32000")
    parser.add_argument("--seconds", type=float, default=0.6, help="for the steps of each mixer at each context")
    parser.add_argument("--busy", action="store_true", help="measure although others compute")
    parser.add_argument("--markdown", type=Path, help="write the tables there")
    given = parser.parse_args()
    load = psutil.cpu_percent(interval=2)
    if load > 15 and not given.busy:
        sys.exit(
            f"the machine is busy ({load:.0f} % of its cores): timings would mean nothing; --busy measures anyway."
        )
    torch.set_num_threads(1)
    systems, contexts = given.systems.split(","), [int(n) for n in given.contexts.split(",")]
    rows = measured(systems, contexts, given.seconds)
    heads = ["mixer", "parameters"]
    for what in ("read, tokens/s up to", "written, tokens/s after", "state after"):
        heads += [f"{what} {context:,}" for context in contexts]
    vocabularies = (257, 50_257)
    choice = choosing(vocabularies, given.seconds / 4)
    text = f"{table(heads, rows)}\n\nThe choice of a token by itself, in microseconds:\n\n"
    text += table(["way", *(f"of {size:,} tokens" for size in vocabularies)], choice) + "\n"
    print(text)
    if given.markdown is not None:
        command = " ".join(["python", "benchmarks/generate.py", *sys.argv[1:]])
        facts = f"{cpu_name()}, {usable_cores()} cores; {load:.0f} % of them were busy with other work before."
        sizes = ", ".join(f"{name} {size}" for name, size in SIZES.items())
        head = (
            f"# What writing costs\n\nMade by `{command}` on {datetime.now(UTC):%Y-%m-%d}.\n\n"
            f"- {facts}\n- `LanguageModel` with {sizes}, one sample, one thread, random weights.\n"
            f"- In brackets: times as fast as {systems[0]} in the same run; all times are the processor's.\n"
            f"- A cache of keys and values is held in buffers that double.\n"
        )
        given.markdown.write_text(f"{head}\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
