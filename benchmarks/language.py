"""Language models on one small text: how close others come to softmax attention, and at what cost.

    python benchmarks/language.py TEXT                 # both comparisons, then print the section of the page
    python benchmarks/language.py TEXT --only equal    # one of them; what is finished is not trained again
    python benchmarks/language.py TEXT --write         # put the section into benchmarks/language.md

TEXT is Karpathy's tinyshakespeare (1.1 MB, 65 different characters). ``equal`` is one ``foveate compare language`` over
all mechanisms at equal tokens, the same small decoder around each; ``long`` trains softmax attention alone, larger and
for longer. Characters are tokens, so nats per token are nats per character. Killed at any moment, the same command goes
on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from marked import told, write_section

from foveate.compare import Settings, run

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "benchmarks" / "language.md"
#: Characters of a sample.
CONTEXT = 256
#: Of every decoder in the comparison at equal tokens.
SIZES = {"dim": 128, "depth": 4, "num_heads": 4}
SYSTEMS = (
    "softmax_attention",
    "sigmoid_attention",
    "window_attention",
    "landmark_attention",
    "tcnca",
    "mega",
    "lightning_attention",
    "lightning_attention_2",
    "transnormer_llm",
    "normalized_attention",
    "mamba",
    "mamba2",
    "selective_token_mixer",
    "titans_lmm",
    "titans_mac",
    "aaren",
    "gated_conv",
    "rg_lru",
    "lstm",
    "gru",
)
COMMON: dict[str, Any] = {"task": "language", "patience": 0, "refit": False}
RUNS: dict[str, dict[str, Any]] = {
    "equal": {
        "systems": SYSTEMS,
        "options": dict.fromkeys(SYSTEMS, SIZES),
        "tokens": 1_000_000,
        "batch_size": 16,
        "learning_rates": (1e-3, 3e-3),
        "seeds": 1,
        "threads": 1,
    },
    "long": {
        "systems": ("softmax_attention",),
        "options": {"softmax_attention": {"dim": 192, "depth": 6, "num_heads": 6, "dropout": 0.1}},
        "tokens": 6_000_000,
        "batch_size": 16,
        "learning_rates": (2e-3,),
        "seeds": 1,
        "threads": 2,
        "workers": 1,
    },
}


def settings(name: str, text: Path, out: Path) -> Settings:
    """One of the comparisons."""
    data = {"source": str(text), "tokenizer": "characters", "context": CONTEXT, "eval_tokens": 1 << 20}
    return Settings(**COMMON, **RUNS[name], data=data, out=str(out / name))


def table(board: dict[str, Any]) -> list[str]:
    """The Markdown of one leaderboard, by validation, which is where the others that use this text are scored."""
    lines = ["| system | validation nats | test nats | bits per byte | parameters | MFLOPs per token | minutes |"]
    lines += ["|---|" + "---:|" * 6]
    rows = [row for row in board["rows"] if row["status"] == "done"]
    for row in sorted(rows, key=lambda row: row["val"]["nats_per_token"]["mean"]):
        val, test = (row[split]["nats_per_token"]["mean"] for split in ("val", "test"))
        flops = f"{row['flops'] / CONTEXT / 1e6:.2f}" if row["flops"] else "-"
        lines.append(
            f"| {row['system']} | {val:.3f} | {test:.3f} | {row['test']['bits_per_byte']['mean']:.3f} "
            f"| {row['parameters']:,} | {flops} | {row['seconds'] / 60:.1f} |"
        )
    lines += [f"\n{row['system']}: {row['reason']}" for row in board["rows"] if row["status"] != "done"]
    return lines


def section(boards: dict[str, dict[str, Any]]) -> str:
    """The Markdown of everything that was found."""
    lines: list[str] = []
    for name, board in boards.items():
        about = RUNS[name]
        sizes = ", ".join(f"{option} {value}" for option, value in next(iter(about["options"].values())).items())
        threads = "one thread" if about["threads"] == 1 else f"{about['threads']} threads"
        lines += [
            f"## {name}",
            "",
            f"{about['tokens']:,} tokens each, samples of {CONTEXT} characters, batches of {about['batch_size']}, "
            f"learning rates {', '.join(f'{rate:g}' for rate in about['learning_rates'])} (chosen on validation), "
            f"{threads}; {sizes}.",
            "",
            *table(board),
            "",
        ]
    first = next(iter(boards.values()))
    lines += [
        "Nats per character and bits per byte of held-out text, lower is better. FLOPs are those of a forward pass "
        f"over {CONTEXT} characters, divided by their number. Minutes are of a machine that did other work at the same "
        "time: upper bounds, not to be compared. `ngram` is modified Kneser-Ney, a table and no network: on so short a "
        "text all networks of the comparison at equal tokens are behind it.",
        "",
        f"Made with torch {first['versions']['torch']} on {first['machine']['cpu']} by:",
        "",
        "    python benchmarks/language.py tinyshakespeare/input.txt --write",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--only", nargs="+", choices=[*RUNS], default=[*RUNS])
    parser.add_argument(
        "--out", type=Path, default=ROOT / "foveate-runs" / "language", help="folder of the comparisons"
    )
    parser.add_argument("--write", action="store_true", help=f"put the section into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    if options.write and set(options.only) != set(RUNS):
        parser.error("--write needs everything: leave out --only")
    out = options.out.resolve()
    boards = {name: run(settings(name, options.text.resolve(), out), on_event=told) for name in options.only}
    text = section(boards)
    print(text)
    if options.write:
        write_section(PAGE, "language", text)


if __name__ == "__main__":
    main()
