"""Recall and passkeys: which mixers find what was read before, and who keeps finding it: benchmarks/recall.md.

    python benchmarks/recall.py                       # everything, then print the section of benchmarks/recall.md
    python benchmarks/recall.py --only mqar           # one probe; what is finished is not trained again
    python benchmarks/recall.py --systems mamba,gru   # some systems; the page needs all of them
    python benchmarks/recall.py --write               # put the section into benchmarks/recall.md

Every probe is one ``foveate compare``: the same small decoder around every mixer (`LanguageModel`), the same steps,
the same learning rates to choose from on validation, three seeds, test scored once. Killed at any moment, the same
command goes on. The orderings that papers claim are checked and told, whether they hold or not.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marked import told, write_section

from foveate.compare import Settings, run
from foveate.ops.s2_pattern import LocalStride
from foveate.registry import list_names

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "benchmarks" / "recall.md"
SEEDS = 3
RATES, SWEEP = (1e-3, 3e-3), 0.5  # before half of the steps nobody has left the plateau of MQAR
#: Of every decoder.
SIZES = {"dim": 64, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
#: What a system must be above the most frequent answer for its place to mean anything: more than knowing which answers
#: are possible.
LEARNED = 0.2
#: Tokens that windows and chunks see, below what the probes ask for.
WINDOW = 16


@dataclass(frozen=True)
class Probe:
    """One comparison.

    Attributes:
        task, data: of ``foveate compare``.
        steps: of every trial.
        about: a sentence for the page.
        systems: who takes part.
        orders: pairs (better, other, paper) that a paper claims, and by how much the first may be behind.
        options: of every decoder ("") and of single mixers, in this probe.
    """

    task: str
    data: dict[str, Any]
    steps: int
    about: str
    systems: tuple[str, ...]
    orders: tuple[tuple[str, str, str, float], ...] = ()
    options: dict[str, dict[str, Any]] = field(default_factory=dict)


#: Options of single mixers in all probes: what they see at once is less than what is asked for.
OWN: dict[str, dict[str, Any]] = {
    "window_attention": {"window": WINDOW},
    "tcnca": {"chunk_size": WINDOW},
    "tcnca_simple": {"chunk_size": WINDOW},
    "mega": {"chunk_size": WINDOW},
    "titans_mac": {"segment": WINDOW},
    "titans_mag": {"window": WINDOW},
    "titans_mal": {"window": WINDOW},
    "landmark_attention": {"block_size": 15},
    "s2_attention": {"block_size": 4, "small_blocks": True, "local_blocks": 2},
    "hip_attention": {"mask_k": 8, "block_size_q": 4, "window": 6, "num_sinks": 2},
}
_EVERYBODY = (
    "softmax_attention",
    "sigmoid_attention",
    "aaren",
    "normalized_attention",
    "dsf_linear_attention",
    "lightning_attention",
    "mamba",
    "mamba2",
    "selective_token_mixer",
    "rg_lru",
    "s4d",
    "gated_conv",
    "gru",
    "lstm",
    "tcnca",
    "mega",
    "window_attention",
    "landmark_attention",
    "s2_attention",
    "hip_attention",
    "titans_lmm",
    "titans_mac",
    "titans_mag",
    "titans_mal",
)
#: Of the passkey: what the probe "budget" is about.
_LEFT_OUT = ("s2_attention", "hip_attention")
#: Keys that a query of 256 tokens reads in the probe "budget": on average those of four heads' shards.
BUDGET = round(sum(LocalStride(4, 4, 2, 4).kept_pairs(256)) / 4 / 256)
_DSF = "Sieber et al., 2024 (dsf)"

PROBES = {
    "mqar": Probe(
        "recall",
        {"length": 32, "pairs": 4, "vocabulary": 64, "test_lengths": "64,128", "samples": 48_000},
        1500,
        "Multi-query associative recall: 4 pairs in 32 tokens, 64 words.",
        _EVERYBODY,
        (
            ("softmax_attention", "normalized_attention", _DSF, 0.02),
            ("normalized_attention", "dsf_linear_attention", _DSF, 0.0),
        ),
    ),
    "single": Probe(
        "recall",
        {"form": "single", "length": 32, "vocabulary": 18, "test_lengths": "64"},
        4000,
        f"One query behind 15 pairs of 8 keys; chunks and windows of {WINDOW} tokens.",
        ("softmax_attention", "tcnca", "tcnca_simple", "mega", "window_attention"),
        (("tcnca", "mega", "Terzic et al., 2023 (tcnca)", 0.02),),
    ),
    "passkey": Probe(
        "passkey",
        {"length": 64, "digits": 1, "vocabulary": 32, "depths": 5, "test_lengths": "128,256,1024"},
        600,
        f"One digit in 64 tokens, tested up to 1,024; windows of {WINDOW} tokens. All read whole samples at once; "
        "landmark attention's own inference, which retrieves blocks, is measured at 16 times the training length by "
        "the claim `passkey_at_sixteen_times_the_length` (`foveate verify landmark_attention`).",
        tuple(name for name in _EVERYBODY if name not in _LEFT_OUT),
        (
            ("landmark_attention", "window_attention", "Mohtashami and Jaggi, 2023 (landmark_attention)", 0.0),
            ("titans_mac", "window_attention", "Behrouz et al., 2025 (titans)", 0.0),
            ("titans_mag", "window_attention", "Behrouz et al., 2025 (titans)", 0.0),
        ),
    ),
    "budget": Probe(
        "passkey",
        {"length": 128, "digits": 1, "vocabulary": 32, "depths": 5, "test_lengths": "256"},
        600,
        f"One digit in 128 tokens, tested up to 256, where all but softmax attention see {BUDGET} keys a query: shards "
        "(on average; blocks of 4, 2 near ones, a stride of 4), a search with its window and sinks, a window; 4 heads.",
        ("softmax_attention", "s2_attention", "hip_attention", "window_attention"),
        (
            ("s2_attention", "window_attention", "Lin et al., 2024 (s2_attention)", 0.0),
            ("hip_attention", "window_attention", "Lee et al., 2024 (hip_attention)", 0.0),
        ),
        {
            "": {"num_heads": 4},
            "hip_attention": {"mask_k": 16, "block_size_q": 4, "window": 16, "num_sinks": BUDGET - 32},
            "window_attention": {"window": BUDGET},
        },
    ),
}


def options_of(name: str, system: str) -> dict[str, Any]:
    """Of a system's decoder in a probe."""
    given = PROBES[name].options
    return {**SIZES, **given.get("", {}), **OWN.get(system, {}), **given.get(system, {})}


def settings(name: str, out: Path, systems: tuple[str, ...], workers: int, steps: int | None = None) -> Settings:
    """The comparison of a probe."""
    probe = PROBES[name]
    return Settings(
        task=probe.task,
        data=probe.data,
        systems=systems,
        options={system: options_of(name, system) for system in systems},
        out=str(out / name),
        steps=steps or probe.steps,
        seeds=SEEDS,
        learning_rates=RATES,
        sweep_share=SWEEP,
        patience=0,
        refit=False,
        workers=workers,
        threads=1,
    )


def cell(score: dict[str, float | None]) -> str:
    """A mean, with its deviation over seeds."""
    mean, deviation = score["mean"], score["std"]
    if mean is None:
        return "-"
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def table(name: str, board: dict[str, Any]) -> list[str]:
    """The Markdown of one probe."""
    probe, metrics = PROBES[name], board["metrics"]
    lines = [f"## {name}", "", probe.about, ""]
    heads = [m.replace("accuracy_at_", "at ").replace("_", " ") for m in metrics]
    lines += ["| # | system | " + " | ".join(heads) + " | parameters |"]
    lines += ["|" + "---|" * (len(heads) + 3)]
    for row in board["rows"]:
        if row["status"] != "done":
            lines.append(f"| - | {row['system']} | {row['reason']} |" + " |" * len(heads))
            continue
        scores = " | ".join(cell(row["test"][m]) for m in metrics)
        lines.append(f"| {row['rank']} | {row['system']} | {scores} | {row['parameters']:,} |")
    return [*lines, "", *orders(name, board), ""]


def orders(name: str, board: dict[str, Any]) -> list[str]:
    """What papers claim about who is better, and whether it is so here; of passkeys in the longest samples too."""
    found = {row["system"]: row for row in board["rows"] if row["status"] == "done"}
    first, *_, longest = board["metrics"]
    lines = []
    for better, other, paper, margin in PROBES[name].orders:
        claim = f"- {better} above {other} ({paper}): "
        if better not in found or other not in found:
            missing = ", ".join(s for s in (better, other) if s not in found)
            lines.append(f"{claim}not measured, for {missing} did not run.")
            continue
        told_of = []
        for metric in (first, longest) if PROBES[name].task == "passkey" else (first,):
            ours, theirs = (found[s]["test"][metric]["mean"] for s in (better, other))
            chance = found["token_frequencies"]["test"][metric]["mean"] if "token_frequencies" in found else 0.0
            holds = "holds" if ours >= theirs - margin else "**does not hold**"
            if max(ours, theirs) < chance + LEARNED:
                holds = "not decided, for neither has learned the task"
            told_of.append(f"{holds} ({metric.replace('_', ' ')} {ours:.2f} against {theirs:.2f})")
        lines.append(f"{claim}{'; '.join(told_of)}.")
    return lines


def section(boards: dict[str, dict[str, Any]], absent: dict[str, list[str]]) -> str:
    """The Markdown of everything that was found."""
    lines: list[str] = []
    for name, board in boards.items():
        lines += table(name, board)
        if absent[name]:
            lines += [f"Not in this version of foveate: {', '.join(absent[name])}.", ""]
    first = next(iter(boards.values()))
    steps = ", ".join(f"{name} {board['settings']['steps']:,}" for name, board in boards.items())
    lines += [
        f"Test scores, mean ± deviation over {SEEDS} seeds; systems with the same # cannot be told apart by the paired "
        f"test. Decoders of {', '.join(f'{k} {v:g}' for k, v in SIZES.items())}; learning rates "
        f"{', '.join(f'{rate:g}' for rate in RATES)}, chosen on validation; batches of 32. Steps: "
        f"{steps}. Made with torch "
        f"{first['versions']['torch']} on {first['machine']['cpu']}, one thread a trial, by:",
        "",
        "    python benchmarks/recall.py --write",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*PROBES], default=[*PROBES])
    parser.add_argument("--systems", help="names by commas; default: all that there are")
    parser.add_argument("--steps", type=int, help="of every trial, for a look")
    parser.add_argument("--out", type=Path, default=ROOT / "foveate-runs" / "recall", help="folder of the comparisons")
    parser.add_argument("--workers", type=int, default=1, help="trials at once")
    parser.add_argument("--write", action="store_true", help=f"put the section into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    if options.write and (options.systems or options.steps or set(options.only) != set(PROBES)):
        parser.error("--write needs everything: leave out --only, --systems and --steps")
    known, boards, absent = {*list_names("mixer"), *list_names("model")}, {}, {}
    for name in options.only:
        wanted = options.systems.split(",") if options.systems else PROBES[name].systems
        chosen = tuple(system for system in wanted if system in known)
        absent[name] = [system for system in wanted if system not in known]
        chosen_settings = settings(name, options.out.resolve(), chosen, options.workers, options.steps)
        boards[name] = run(chosen_settings, on_event=told)
    text = section(boards, absent)
    print(text)
    if options.write:
        write_section(PAGE, "recall", text)


if __name__ == "__main__":
    main()
