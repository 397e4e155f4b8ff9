"""Image backbones against timm, transformers and MONAI, with the same weights.

    python benchmarks/image_speed.py                     # everything, then print the section of the page
    python benchmarks/image_speed.py --only swin_tiny    # some rows; the page needs all of them
    python benchmarks/image_speed.py --write             # put the section into benchmarks/image_speed.md

Both networks answer the same images in turns, without gradients, on pinned threads, after their answers were compared.
The peak of memory is that of all tensors during a first answer in a fresh process, on one thread.
timm needs torchvision, so this wants an environment with torch, torchvision, timm, transformers and monai of versions
that fit; foveate's kernels are those built in this checkout. A busy machine is refused.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from marked import write_section
from torch import Tensor, nn

import foveate
from foveate.bench.pinning import pinned, refuse_if_busy
from foveate.measure.isolated import allocated_bytes_of
from foveate.measure.machine import cpu_name
from foveate.models.official import load_official

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "benchmarks" / "image_speed.md"
#: Pairs of calls at least: the speed of a machine that others use too changes within seconds, so calls take turns.
PAIRS_TIMED = 9
#: Largest difference of the answers, relative to the largest answer.
ALIKE = 1e-4


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name)


def _transformers(config: str, model: str, **options: object) -> nn.Module:
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**options))


def _monai(feature_size: int) -> nn.Module:
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(in_channels=1, out_channels=3, feature_size=feature_size)


@dataclass(frozen=True)
class Pair:
    """A network here and in another library.

    Attributes:
        ours: name of a published size, or of a registered model with ``options``.
        theirs: makes the other.
        source: the layout of its weights.
        promised: how many times as fast ours must be, at the least.
        image: shape of one sample.
        batches: how many samples at once.
        options: of our constructor.
    """

    ours: str
    theirs: Callable[[], nn.Module]
    source: str = "timm"
    promised: float = 0.97
    image: tuple[int, ...] = (3, 224, 224)
    batches: tuple[int, ...] = (1, 8)
    options: tuple[tuple[str, object], ...] = ()

    @property
    def title(self) -> str:
        """The name, with what is set apart."""
        return " ".join([self.ours, *(f"{name}={value}" for name, value in self.options)])


PAIRS = (
    Pair("swin_tiny", lambda: _timm("swin_tiny_patch4_window7_224"), promised=1.1),
    Pair("davit_tiny", lambda: _timm("davit_tiny"), promised=1.1),
    Pair("mambaout_tiny", lambda: _timm("mambaout_tiny"), promised=1.1),
    Pair("focalnet_tiny_srf", lambda: _timm("focalnet_tiny_srf"), promised=1.1),
    Pair("focalnet_tiny_lrf", lambda: _timm("focalnet_tiny_lrf"), promised=1.1),
    Pair("maxvit_tiny_tf_224", lambda: _timm("maxvit_tiny_tf_224"), promised=1.3),
    Pair("vit_small", lambda: _timm("vit_small_patch16_224")),
    Pair("convnext_tiny", lambda: _timm("convnext_tiny")),
    Pair(
        "swin_tiny", lambda: _transformers("SwinConfig", "SwinForImageClassification", num_labels=1000), "transformers"
    ),
    Pair(
        "convnext_tiny",
        lambda: _transformers("ConvNextConfig", "ConvNextForImageClassification", num_labels=1000),
        "transformers",
    ),
    Pair(
        "swin_unetr",
        lambda: _monai(24),
        "monai",
        1.5,
        (1, 64, 64, 64),
        (1,),
        (("in_chans", 1), ("num_classes", 3), ("feature_size", 24)),
    ),
    Pair(
        "swin_unetr",
        lambda: _monai(48),
        "monai",
        1.2,
        (1, 64, 64, 64),
        (1,),
        (("in_chans", 1), ("num_classes", 3), ("feature_size", 48)),
    ),
)


def _logits(answer: object) -> Tensor:
    return answer if isinstance(answer, Tensor) else answer.logits  # type: ignore[attr-defined]


def networks(pair: Pair) -> tuple[nn.Module, nn.Module]:
    """Ours and theirs, with the same weights."""
    torch.manual_seed(0)
    theirs = pair.theirs().eval()
    ours = foveate.create(pair.ours, kind="model", **dict(pair.options)).eval()
    load_official(ours, theirs.state_dict(), pair.source)
    return ours, theirs


def megabytes(pair: Pair, batch: int, whose: int) -> float:
    """Peak of the tensors that ours (0) or theirs (1) holds besides weights and images while it answers."""
    setup = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import image_speed\n"
        f"network = image_speed.networks(image_speed.PAIRS[{PAIRS.index(pair)}])[{whose}]\n"
        f"x = torch.randn({batch}, {', '.join(map(str, pair.image))})"
    )
    return allocated_bytes_of(["with torch.inference_mode(): network(x)"], setup)[0] / 1e6


def _in_turns(one: Callable[[], object], other: Callable[[], object], seconds: float) -> tuple[list[float], ...]:
    """Milliseconds of each call of both, which take turns; nothing else runs meanwhile in this process."""
    times: tuple[list[float], ...] = [], []
    gc.collect()
    gc.disable()
    try:
        with torch.inference_mode():
            one(), other()
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or len(times[1]) < PAIRS_TIMED:
                for call, own in zip((one, other), times, strict=True):
                    start = time.perf_counter()
                    call()
                    own.append(1e3 * (time.perf_counter() - start))
    finally:
        gc.enable()
    return times


def measure(pair: Pair, threads: int, seconds: float) -> Iterator[str]:
    """Lines of the table, one for each batch."""
    ours, theirs = networks(pair)
    for batch in pair.batches:
        x = torch.randn(batch, *pair.image)
        with torch.inference_mode():
            one, other = ours(x), _logits(theirs(x))
        apart = float((one - other).abs().max() / other.abs().max())
        if apart > ALIKE:
            raise SystemExit(f"{pair.title}: answers differ by {apart:.1e}, so nothing is timed")
        with pinned(threads):
            here, there = _in_turns(lambda x=x: ours(x), lambda x=x: theirs(x), seconds)
        ratio = statistics.median(b / a for a, b in zip(here, there, strict=True))
        verdict = "" if ratio >= pair.promised else " (short)"
        memory = " | "
        if threads == 1:
            held = [megabytes(pair, batch, whose) for whose in (0, 1)]
            memory = f"{held[0]:.0f} | {held[1]:.0f}" + (" (more)" if held[0] > held[1] else "")
        yield (
            f"| {pair.title} | {pair.source} | {batch} | {threads} | "
            f"{statistics.median(here):.0f} | {statistics.median(there):.0f} | "
            f"{ratio:.2f}{verdict} | {pair.promised:g} | {memory} | {apart:.0e} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="names of our models")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=15.0, help="for each pair and batch")
    parser.add_argument("--busy", action="store_true", help="measure although the machine does other work")
    parser.add_argument("--write", action="store_true", help=f"put the section into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    if options.write and (options.only or options.busy):
        parser.error("--write needs everything on a quiet machine: leave out --only and --busy")
    if not options.busy:
        refuse_if_busy()
    lines = ["| model | peer | batch | threads | ms | peer ms | times as fast | promised | MB | peer MB | differs by |"]
    lines += ["|---|---|" + "---:|" * 9]
    for pair in PAIRS:
        if options.only and pair.ours not in options.only:
            continue
        for threads in options.threads:
            for line in measure(pair, threads, options.seconds):
                print(line, flush=True)
                lines.append(line)
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("torch", "timm", "transformers", "monai"))
    lines += [
        "",
        "Medians over calls in turns: of milliseconds, and of the ratios of neighbouring calls, without gradients. MB: "
        f"the peak of all tensors besides weights and images during a first answer. {versions}, on {cpu_name()}, by:",
        "",
        "    python benchmarks/image_speed.py --write",
    ]
    if options.write:
        write_section(PAGE, "image speed", "\n".join(lines))


if __name__ == "__main__":
    main()
