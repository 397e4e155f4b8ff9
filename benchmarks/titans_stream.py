"""A million tokens through the memory of Titans, and how far float32 drifts: benchmarks/titans_stream.md.

    python benchmarks/titans_stream.py                       # print the table
    python benchmarks/titans_stream.py --write               # put it into the page
    python benchmarks/titans_stream.py --tokens 65536        # a shorter stream

Each memory reads the same random tokens twice, in pieces of 4,096: once in float32, once in float64 with the same
weights. The state is handed from piece to piece and nothing else is kept.
"""

from __future__ import annotations

import argparse
import copy
import re
import time
from pathlib import Path

import psutil
import torch

from foveate.mixers.titans import NeuralMemory, TitansLMM

PAGE = Path(__file__).resolve().parent / "titans_stream.md"
PIECE = 4096
WIDTH = 16
MEMORIES = {
    "titans_lmm, 1 matrix": lambda: TitansLMM(WIDTH, num_heads=1, chunk=64, depth=1),
    "titans_lmm, 2 matrices": lambda: TitansLMM(WIDTH, num_heads=1, chunk=64),
    "titans_lmm, 4 matrices": lambda: TitansLMM(WIDTH, num_heads=1, chunk=64, depth=4),
    "titans_lmm, 4 matrices, norm": lambda: TitansLMM(WIDTH, num_heads=1, chunk=64, depth=4, norm=True),
    "titans_pytorch_memory": lambda: NeuralMemory(WIDTH, num_heads=1, chunk=64, rebase=64, max_lr=0.01),
}


@torch.no_grad()
def stream(name: str, tokens: int) -> str:
    """One row: the largest relative deviation in the first piece, in the last one and anywhere, state and memory."""
    torch.manual_seed(0)
    mixer = MEMORIES[name]().eval()
    exact = copy.deepcopy(mixer).double()
    state, wide = mixer.init_state(1), exact.init_state(1)
    start, deviations, sizes, seconds, resident = state.nbytes, [], set(), 0.0, []
    for _ in range(tokens // PIECE):
        x = torch.randn(1, PIECE, WIDTH)
        before = time.perf_counter()
        y, state = mixer.prefill(x, state)
        seconds += time.perf_counter() - before
        expected, wide = exact.prefill(x.double(), wide)
        deviations.append(float((y - expected).abs().max() / expected.abs().max().clamp(min=1e-30)))
        sizes.add(state.nbytes)
        resident.append(psutil.Process().memory_info().rss)
    if sizes != {start}:
        raise RuntimeError(f"{name}: the state had {sorted(sizes)} bytes")
    grown = (max(resident) - resident[len(resident) // 8]) / 2**20
    cells = (
        f"{state.nbytes:,}",
        *(f"{d:.1e}" for d in (deviations[0], deviations[-1], max(deviations))),
        f"{grown:.0f}",
        f"{tokens / seconds:,.0f}",
    )
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=2**20)
    parser.add_argument("--write", action="store_true", help="put the table into the page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        "| memory | bytes of state | deviation, first piece | last piece | largest | MiB grown | tokens/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in MEMORIES:
        rows.append(stream(name, options.tokens))
        print(rows[-1], flush=True)
    table = f"<!-- table -->\n{options.tokens:,} tokens of width {WIDTH}.\n\n" + "\n".join(rows) + "\n<!-- end -->"
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(re.sub(r"<!-- table -->.*<!-- end -->", table, page, flags=re.DOTALL), encoding="utf-8")
    else:
        print(table)


if __name__ == "__main__":
    main()
