"""A Llama that reads more: what other attentions of the same weights cost in perplexity, and save in time.

    python benchmarks/long_context.py                    # everything, then print the section of the page
    python benchmarks/long_context.py --only perplexity  # or prefill: one half of it
    python benchmarks/long_context.py --contexts 2048    # a look at one length
    python benchmarks/long_context.py --write            # put the section into benchmarks/long_context.md

The model is the small Llama of `benchmarks/small_llama`; the texts are documents of Python's standard library that it
was not trained on, whole packages in a fixed order. All systems read the same tokens with the same weights; only the
attention differs. Prefill is timed with all systems in turns, on one thread. What was measured is kept and not measured
again.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from library_text import documents
from marked import write_section
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, LlamaForCausalLM

from foveate.control import Control, HipAttention, S2Attention, SeerAttention, SlidingWindow
from foveate.control.seer_attention import distill
from foveate.files import read_json, write_json
from foveate.measure.machine import cpu_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "benchmarks" / "long_context.md"
GUIDE = ROOT / "docs" / "guides" / "longer-context.md"
FOLDER = ROOT / "benchmarks" / "small_llama"
OUT = ROOT / "foveate-runs" / "long_context"
CONTEXTS = (2048, 8192, 16384)
#: The documents that are read; each in pieces of the longest context, cut further for the shorter ones.
READ = ("_pydecimal.py", "email", "inspect.py", "tarfile.py", "typing.py")
#: Keys that a query may read: this share of the context.
SHARE = 4
SINKS = 16
#: Blocks of Seer's gate in each context, as many as blocks of 64 are in 32,768 tokens, and the share that is left out.
BLOCKS, SPARSITY = 512, 0.8
#: Longest samples that its gate is taught on, steps of so many tokens, and the highest rate.
TAUGHT, STEPS, RATE = 4096, 400, 1e-2
#: What is allowed: perplexity over dense attention's, and the speed of prefill.
ALLOWED, FASTER = 1.02, 2.0


def dense(model: LlamaForCausalLM, context: int) -> None:
    """All keys, by SDPA."""


def sliding_window(model: LlamaForCausalLM, context: int) -> Control:
    """The nearest keys and the first ones, a quarter of the context."""
    return SlidingWindow(window=context // SHARE - SINKS, sinks=SINKS)


def hip_attention(model: LlamaForCausalLM, context: int) -> Control:
    """Keys found by a search in a tree, a window and the first keys, together a quarter of the context."""
    window = context // SHARE // 4
    return HipAttention(mask_k=context // SHARE - window - SINKS, window=window, num_sinks=SINKS)


def hip_attention_coarse(model: LlamaForCausalLM, context: int) -> Control:
    """As many keys in blocks of 32, for blocks of 64 queries of which four are asked: a search that costs little."""
    window, block = context // SHARE // 4, 32
    options = {"block_size_q": 64, "block_size_k": block, "query_stride": 16}
    return HipAttention(mask_k=context // SHARE - window, window=window - block, num_sinks=block, **options)


def hip_attention_published(model: LlamaForCausalLM, context: int) -> Control:
    """As published: 512 searched keys, a window of 128, whatever the context."""
    return HipAttention(mask_k=512, window=128, num_sinks=SINKS)


def seer_attention(model: LlamaForCausalLM, context: int) -> Control:
    """A fifth of the blocks, chosen by a gate that was taught on training texts."""
    taught, block = min(context, TAUGHT), context // BLOCKS
    gates, folder = SeerAttention.for_model(model, block_size=block), OUT / f"gates_{taught}_{block}"
    if folder.exists():
        gates = SeerAttention.from_pretrained(folder)
    else:
        batches = text_of("train", taught, STEPS * TAUGHT // taught).split(TAUGHT // taught)
        losses = distill(gates, model, batches, steps=STEPS, lr=RATE)
        print(f"gates, {taught} tokens: loss {losses[0]:.3f} to {losses[-1]:.3f}", flush=True)
        gates.save_pretrained(folder)
    return gates.set_selection(select="ratio", ratio=1 - SPARSITY, last_block_dense=False)


def s2_attention(model: LlamaForCausalLM, context: int) -> Control:
    """A window of an eighth of the context and every 8th block before it, others for other heads: a quarter or less."""
    return S2Attention(block_size=64, local_blocks=context // 8 // 64, vert_stride=8)


SYSTEMS: dict[str, Callable[[LlamaForCausalLM, int], Control | None]] = {
    "dense": dense,
    "sliding_window": sliding_window,
    "hip_attention": hip_attention,
    "hip_attention_coarse": hip_attention_coarse,
    "hip_attention_published": hip_attention_published,
    "seer_attention": seer_attention,
    "s2_attention": s2_attention,
}
#: Those that read a quarter of the keys, as many as the window.
QUARTERS = ("hip_attention", "hip_attention_coarse")


def load() -> tuple[LlamaForCausalLM, Any]:
    """The model, which does not learn, and its tokenizer."""
    model = LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    return model.requires_grad_(False), AutoTokenizer.from_pretrained(FOLDER)


def pieces(tokenizer: Any, length: int, most: int) -> Tensor:
    """At most so many pieces of each document, from its beginning: ``(pieces, length + 1)`` int64."""
    kept, rows = documents("test"), []
    for name in READ:
        tokens = torch.tensor(tokenizer(kept[name], verbose=False)["input_ids"])
        count = min(most, (len(tokens) - 1) // length)
        rows += [tokens[i * length : (i + 1) * length + 1] for i in range(count)]
    return torch.stack(rows)


def text_of(split: str, length: int, count: int) -> Tensor:
    """Samples from all over a split's documents, always the same: ``(count, length)`` int64."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    texts = [text for text in documents(split).values() if len(text) > 6 * length]
    chosen = [texts[i * len(texts) // count] for i in range(count)]
    rows = [tokenizer(text[: 6 * length], verbose=False)["input_ids"][:length] for text in chosen]
    return torch.tensor(rows)


@torch.inference_mode()
def nats(model: LlamaForCausalLM, rows: Tensor, context: int) -> Tensor:
    """Of every token, read in samples of ``context`` tokens: ``(samples, context)``."""
    found = []
    for row in rows:
        x, y = row[:-1].view(-1, context), row[1:].view(-1, context)
        logits = model(input_ids=x, use_cache=False).logits
        found.append(cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(x))
    return torch.cat(found)


def perplexities(model: LlamaForCausalLM, rows: Tensor, context: int, name: str) -> list[float]:
    """Of a system: over all tokens, and over those of the second half of each sample; of Seer, what was left out."""
    control, parts, left_out = SYSTEMS[name](model, context), [], []
    with control.attached(model) if control else nullcontext():
        for row in rows:
            parts.append(nats(model, row[None], context))
            if isinstance(control, SeerAttention):
                left_out.append(1 - control.density())
    each = torch.cat(parts)
    found = [math.exp(float(part.mean())) for part in (each, each[:, context // 2 :])]
    found += [statistics.mean(left_out)] if left_out else []
    print(f"{context} {name}", *(f"{value:.4f}" for value in found), flush=True)
    return found


@torch.inference_mode()
def prefills(model: LlamaForCausalLM, tokens: Tensor, systems: list[str], rounds: int) -> dict[str, list[float]]:
    """The processor's seconds that reading the tokens into a cache took each time, all systems in turns."""
    controls = {name: SYSTEMS[name](model, len(tokens)) for name in systems}
    times: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(rounds + 1):
        for name, control in controls.items():
            with control.attached(model) if control else nullcontext():
                started = time.process_time()
                model(input_ids=tokens[None], use_cache=True, logits_to_keep=1)
                took = time.process_time() - started
            if turn:  # the first grows buffers
                times[name].append(took)
        print(f"round {turn}", *(f"{name} {t[-1]:.2f}" for name, t in times.items() if t), flush=True)
    return times


class Kept:
    """What was measured, in a file: it is not measured again."""

    def __init__(self, path: Path, again: bool) -> None:
        self.path = path
        self.found: dict[str, list[float]] = {}
        if path.exists() and not again:
            self.found = read_json(path)

    def add(self, values: dict[str, list[float]]) -> None:
        self.found |= values
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.found)


def verdict(what: str, holds: bool, detail: str) -> str:
    """A line about something that should be so."""
    return f"- {what}: {'holds' if holds else '**does not hold**'} ({detail})."


def perplexity_section(found: dict[str, list[float]], contexts: list[int], systems: list[str]) -> list[str]:
    """Markdown: a table of perplexities over dense attention's, and what should hold."""
    lines = ["| attention | " + " | ".join(f"{c:,} tokens | second half" for c in contexts) + " |"]
    lines += ["|---|" + "---:|" * (2 * len(contexts))]
    for name in systems:
        cells = []
        for context in contexts:
            for value, whole in zip(found[f"{context} {name}"][:2], found[f"{context} dense"], strict=True):
                cells.append(f"{value:.3f}" if name == "dense" else f"{value:.3f} ({value / whole - 1:+.1%})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("")
    for context in contexts:
        whole, scores = found[f"{context} dense"][0], {s: found[f"{context} {s}"][0] for s in systems}
        for name in (n for n in QUARTERS if n in scores):
            more = scores[name] / whole
            what = f"{name} at a quarter of the keys within {ALLOWED - 1:.0%} of dense at {context:,} tokens"
            lines.append(verdict(what, more <= ALLOWED, f"{more - 1:+.2%}"))
        if "seer_attention" in scores:
            more, left_out = scores["seer_attention"] / whole, found[f"{context} seer_attention"][2]
            what = f"seer_attention without {SPARSITY:.0%} of the blocks within {ALLOWED - 1:.0%} at {context:,} tokens"
            holds = more <= ALLOWED and left_out >= SPARSITY
            lines.append(verdict(what, holds, f"{more - 1:+.2%} without {left_out:.1%} of them"))
        for name in (n for n in QUARTERS if n in scores and "sliding_window" in scores):
            ours, theirs = scores[name], scores["sliding_window"]
            what = f"{name} better than a window of as many keys at {context:,} tokens"
            lines.append(verdict(what, ours < theirs, f"{ours:.3f} against {theirs:.3f}"))
    return lines


def prefill_section(found: dict[str, list[float]], systems: list[str]) -> list[str]:
    """Markdown: seconds of reading the longest context, and what should hold."""
    seconds = {name: statistics.median(found[f"prefill {name}"]) for name in systems}
    lines = ["| attention | seconds | times as fast as SDPA |", "|---|---:|---:|"]
    lines += [f"| {name} | {s:.2f} | {seconds['dense'] / s:.2f} |" for name, s in seconds.items()]
    lines.append("")
    for name in ("hip_attention", "hip_attention_coarse", "seer_attention"):
        if name in seconds:
            faster = seconds["dense"] / seconds[name]
            what = f"{name} reads {CONTEXTS[-1]:,} tokens at least {FASTER:g} times as fast as SDPA"
            lines.append(verdict(what, faster >= FASTER, f"{faster:.2f} times"))
    return lines


def summary(found: dict[str, list[float]], systems: list[str]) -> str:
    """The table of the guide: what each costs and saves at the longest context."""
    longest, rows = CONTEXTS[-1], []
    whole, slow = found[f"{longest} dense"][1], statistics.median(found["prefill dense"])
    for name in systems:
        value, seconds = found[f"{longest} {name}"][1], statistics.median(found[f"prefill {name}"])
        rows.append(f"| {name} | {value:.3f} | {value / whole - 1:+.1%} | {slow / seconds:.2f} |")
    head = f"| attention | perplexity, last {longest // 2:,} of {longest:,} tokens | against dense | speed of reading |"
    return "\n".join([head, "|---|---:|---:|---:|", *rows])


def section(found: dict[str, list[float]], contexts: list[int], systems: list[str]) -> str:
    """The Markdown of everything that was found."""
    return "\n".join(
        [
            "## Perplexity",
            "",
            *perplexity_section(found, contexts, systems),
            "",
            f"## Reading {CONTEXTS[-1]:,} tokens",
            "",
            *prefill_section(found, systems),
            "",
            f"Made with torch {torch.__version__} and transformers {transformers.__version__} on {cpu_name()}, one "
            f"thread, processor time, by:",
            "",
            "    python benchmarks/long_context.py --write",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("perplexity", "prefill"), help="one half, for a look")
    parser.add_argument("--contexts", default=",".join(map(str, CONTEXTS)), help="numbers of tokens, by commas")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="names, by commas, dense among them")
    parser.add_argument("--pieces", type=int, default=2, help="of each document, at most")
    parser.add_argument("--rounds", type=int, default=5, help="of prefill, behind one that does not count")
    parser.add_argument("--again", action="store_true", help="measure again what was measured")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)} and the guide")
    options = parser.parse_args()
    systems, contexts = options.systems.split(","), [int(n) for n in options.contexts.split(",")]
    everything = not options.only and set(systems) == set(SYSTEMS) and tuple(contexts) == CONTEXTS
    if options.write and not everything:
        parser.error("--write needs everything: leave out --only, --contexts and --systems")
    if "dense" not in systems:
        parser.error("dense has to be among --systems: the others are told by it")
    torch.set_num_threads(1)
    model, tokenizer = load()
    rows = pieces(tokenizer, CONTEXTS[-1], options.pieces)
    kept = Kept(OUT / f"pieces_{options.pieces}.json", options.again)
    if options.only != "prefill":
        for context in contexts:
            for name in systems:
                if f"{context} {name}" not in kept.found:
                    kept.add({f"{context} {name}": perplexities(model, rows, context, name)})
    if options.only != "perplexity" and any(f"prefill {name}" not in kept.found for name in systems):
        times = prefills(model, rows[0, :-1], systems, options.rounds)
        kept.add({f"prefill {name}": seconds for name, seconds in times.items()})
    if options.only == "perplexity":
        print("\n".join(perplexity_section(kept.found, contexts, systems)))
    elif options.only == "prefill":
        print("\n".join(prefill_section(kept.found, systems)))
    else:
        text = section(kept.found, contexts, systems)
        print(text)
        if options.write:
            write_section(PAGE, "long context", text)
            write_section(GUIDE, "long context", summary(kept.found, systems))


if __name__ == "__main__":
    main()
