"""Makes the pictures of these pages from the mixers themselves: what they cost, and who influences whom.

    python docs/families/make_pictures.py

writes ``docs/images/families/*.svg``. Nothing is timed or trained: costs are counted by ``Mixer.cost``, and influence
is taken at the weights a mixer starts from, so the pictures come out the same on every machine but for rounding.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import torch
from torch import Tensor

from foveate.mixers import Mixer
from foveate.ops.s2_pattern import LocalStride
from foveate.pages.charts import Line, line_chart
from foveate.pages.heatmaps import matrix_map
from foveate.registry import find

HERE = Path(__file__).parent
PICTURES = HERE.parent / "images" / "families"
STYLE = HERE.parents[1] / "foveate" / "pages" / "templates" / "page.css"

#: Mixers of each family, with options.
FAMILIES: dict[str, dict[str, dict[str, object]]] = {
    "attention": {"softmax_attention": {"position": "rope"}, "sigmoid_attention": {"pos": "rope"}, "aaren": {}},
    "linear": {"lightning_attention": {}, "normalized_attention": {}, "mamba": {}, "mamba2": {}, "s4d": {}},
    "near": {"window_attention": {"window": 16}, "tcnca": {"chunk_size": 16}, "mega": {"chunk_size": 16}},
    "memory": {"titans_lmm": {"chunk": 8}, "titans_mac": {"segment": 16}, "landmark_attention": {"block_size": 15}},
    "recurrent": {"lstm": {}, "quasi_lstm": {}, "rg_lru": {}, "gated_conv": {}},
}
DIM, HEADS, LENGTHS = 256, 4, [2**k for k in range(6, 16)]
SEEN = 64


def made(name: str, dim: int, options: dict[str, object], grid: tuple[int, ...]) -> Mixer:
    """A causal mixer at the weights it starts from, told the length to come."""
    cls = find(name, "mixer").load()
    heads = {"num_heads": HEADS} if "num_heads" in inspect.signature(cls).parameters else {}
    torch.manual_seed(0)
    return cls(dim, causal=True, **{**heads, **cls.options_for(grid), **options}).eval()


def influence(mixer: Mixer, x: Tensor) -> Tensor:
    """Root of the summed squares of ``d y_t / d x_s``: ``(tokens, tokens)``; squares by four random projections."""
    layout = mixer.plan_tokens((x.shape[1],))
    embeddings = {role: torch.zeros(n, mixer.dim) for role, n in zip(layout.roles, layout.role_sizes, strict=True)}
    rows = []
    for t in range(x.shape[1]):
        found = torch.zeros(x.shape[1])
        for seed in range(4):
            x = x.detach().requires_grad_()
            direction = torch.randn(mixer.dim, generator=torch.Generator().manual_seed(seed))
            y = layout.extract(mixer(layout.insert(x, embeddings), layout=layout))
            (gradient,) = torch.autograd.grad((y[0, t] * direction).sum(), x)
            found += gradient[0].square().sum(-1)
        rows.append(found.sqrt())
    return torch.stack(rows)


def family(name: str) -> dict[str, str]:
    """File names and SVG of one family."""
    torch.manual_seed(1)
    x = torch.randn(1, SEEN, 32)
    drawn = {}
    for mixer, options in FAMILIES[name].items():
        values = influence(made(mixer, 32, options, (SEEN,)), x)
        drawn[f"{mixer}.svg"] = matrix_map(
            values.tolist(),
            title=f"{mixer}: who influences whom",
            description=f"How much each of {SEEN} random tokens changes each output, at the weights it starts from.",
            row_name="output",
            column_name="input",
        )
    costs = {n: [made(n, DIM, o, (length,)).cost((length,)) for length in LENGTHS] for n, o in FAMILIES[name].items()}
    ticks = [(64.0, "64"), (512.0, "512"), (4096.0, "4,096"), (32768.0, "32,768")]
    for kind, label, of in (
        ("flops", "FLOPs per token", lambda cost, n: cost.flops / n),
        ("state", "bytes of streaming state", lambda cost, n: cost.state_bytes),
    ):
        lines = [
            Line(mixer, [(n, of(cost, n)) for n, cost in zip(LENGTHS, found, strict=True)], tone=tone)
            for tone, (mixer, found) in enumerate(costs.items(), start=1)
        ]
        drawn[f"{name}_{kind}.svg"] = line_chart(
            lines,
            title=f"{label}, {name}",
            description=f"Width {DIM}, {HEADS} heads, one sample, by the cost formulas of the mixers.",
            x_label="tokens",
            y_label=label,
            log=True,
            x_ticks=ticks,
        )
    return {file: standalone(svg) for file, svg in drawn.items()}


def shards() -> dict[str, str]:
    """File names and SVG of what heads of S2-Attention keep: windows in full, stripes lighter, and the union."""
    pattern, size = LocalStride(4, local_blocks=2, vert_stride=4), 24
    kept = pattern.blocks(size, size)
    near = (torch.arange(size)[:, None] - torch.arange(size)) < 2
    drawn = {f"head_{head}": torch.where(near, 1.0, 0.3) * one for head, one in enumerate(kept)}
    drawn["union"] = kept.sum(0) / pattern.num_heads
    return {
        f"s2_{name}.svg": standalone(
            matrix_map(
                values.tolist(),
                title=f"S2-Attention, {name.replace('_', ' ')}",
                description=f"Blocks of keys that blocks of queries read, {size} each: a window of 2, a stride of 4.",
                row_name="queries",
                column_name="keys",
            )
        )
        for name, values in drawn.items()
    }


def standalone(svg: str) -> str:
    """A drawing as a file of its own, with the part of the pages' style that drawings use, light and dark."""
    css = STYLE.read_text(encoding="utf-8")
    blocks = re.findall(r"\{([^{}]*--t1[^{}]*)\}", css)[:2]
    light, dark = (re.findall(r"(--[a-z0-9]+: [^;]+;)", block) for block in blocks)
    rules = re.findall(r"^((?:\.chart|\.grid|\.line|\.dot|\.leader|\.future|\.tone-|\.heat)[^\n]*)$", css, re.MULTILINE)
    style = f"svg{{{' '.join(light)}}} @media (prefers-color-scheme: dark){{svg{{{' '.join(dark)}}}}} {' '.join(rules)}"
    style += " svg.chart{font-family:system-ui,sans-serif}"
    # As a file of its own a drawing is cut at its edge, over which a page lets names run.
    svg = svg.replace('viewBox="0 0 540 ', 'viewBox="0 0 575 ', 1)
    head, _, rest = svg.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{style}</style>{rest}\n'


def main() -> None:
    """Write them all."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for drawn in (*map(family, FAMILIES), shards()):
        for file, svg in drawn.items():
            (PICTURES / file).write_text(svg, encoding="utf-8")
            print(file, len(svg))


if __name__ == "__main__":
    main()
