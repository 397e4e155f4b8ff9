"""Claims of "TCNCA: Temporal Convolution Network with Chunked Attention" (arXiv 2312.05605)."""

from __future__ import annotations

import math

import torch

from ..measure.flops import count_flops, training_flops
from ..mixers.damped_ema import MultiHeadEMA
from ..mixers.dilated_tcn import DilatedTCN
from ..mixers.tcnca import TCNCA, Mega, TCNCASimple
from ..ops import backend
from . import Measurement, claim
from ._far_recall import far_recall_accuracy
from ._processor import cpu_seconds, exponent

LONG = 131_072


@claim(
    "tcnca",
    kind="exact",
    says="Work is O(L) in place of O(L log L): from 1,024 to 131,072 tokens the convolutions' operations grow exactly "
    "128 times, and those of an FFT convolution by 17/10 more.",
)
def operations_are_linear() -> Measurement:
    """Counted without computing; the FFT's by formula. Seen failing (0.77) with rows padded to a power of eight."""
    with torch.device("meta"), backend("torch"), torch.no_grad():
        tcn = DilatedTCN(64, kernel_size=4, levels=5, dilation_factor=4)
        short, long = (count_flops(lambda n=n: tcn(torch.empty(1, n, 64))) for n in (1024, LONG))
    fft = math.log2(LONG) / math.log2(1024)
    detail = f"growth over 128 of the convolutions' operations (exactly); that of an FFT's is {fft:.2f}"
    return Measurement(long / short / 128, 1.0, long == 128 * short and short == 2 * 1024 * 64 * 4 * 5, detail)


@claim(
    "tcnca",
    kind="exact",
    says="The reach is 1 + (K - 1)(f^N - 1)/(f - 1) tokens, twice as far back with two convolutions per level, no more "
    "and, with f up to K, without holes.",
)
def reach_is_the_formula() -> Measurement:
    """Gradients of one output in float64. Seen failing (933 tokens wrong) with dilations that grow evenly."""
    wrong = 0
    for taps, factor, levels in ((2, 2, 7), (3, 3, 4), (4, 4, 4), (5, 2, 5)):
        for convs in (1, 2):
            tcn = DilatedTCN(2, kernel_size=taps, levels=levels, dilation_factor=factor, convs_per_block=convs).double()
            reach = 1 + convs * (taps - 1) * (factor**levels - 1) // (factor - 1)
            x = torch.randn(1, reach + 40, 2, dtype=torch.float64, requires_grad=True)
            t = reach + 20
            (gradient,) = torch.autograd.grad(tcn(x)[:, t].sum(), x)
            seen = (gradient[0] != 0).any(-1)
            expected = torch.zeros_like(seen)
            expected[t - reach + 1 : t + 1] = True
            wrong += int((seen != expected).sum())
    return Measurement.at_most(wrong, 0, "tokens seen that should not be, or missed, in eight stacks; at most")


@claim("tcnca", kind="exact", says="Nothing looks ahead: what follows a token leaves its output as it is, bit for bit.")
def nothing_looks_ahead() -> Measurement:
    """Both forms and MEGA, at borders of chunks and elsewhere. Seen failing (983) with the moving average by FFT."""
    changed = 0
    with torch.no_grad():
        for cls in (TCNCA, TCNCASimple, Mega):
            mixer, x = cls(16, causal=True, chunk_size=16), torch.randn(1, 100, 16)
            y = mixer(x)
            for t in (0, 1, 14, 15, 16, 31, 32, 47, 63, 64, 80, 98):
                other = x.clone()
                other[:, t + 1 :] = torch.randn(1, 99 - t, 16)
                changed += int((mixer(other)[:, : t + 1] != y[:, : t + 1]).sum())
    return Measurement.at_most(changed, 0, "numbers of outputs that later tokens changed; at most")


@claim("tcnca", kind="exact", says="Streaming equals the whole sequence at once, with a state of constant size.")
def streaming_is_constant_and_exact() -> Measurement:
    """300 steps after 700 tokens read at once, float64. Seen failing (0.68) with a chunk that never ends."""
    worst, constant = 0.0, True
    with torch.no_grad():
        for cls in (TCNCA, TCNCASimple, Mega):
            mixer, x = cls(16, causal=True).double(), torch.randn(1, 1000, 16, dtype=torch.float64)
            expected = mixer(x)
            y, state = mixer.prefill(x[:, :700], mixer.init_state(1))
            size, outputs = state.nbytes, [y]
            for x_t in x[:, 700:].unbind(1):
                y, state = mixer.step(x_t, state)
                outputs.append(y[:, None])
            worst = max(worst, float((torch.cat(outputs, 1) - expected).abs().max()))
            constant &= state.nbytes == size
    return Measurement.at_most(worst if constant else math.nan, 1e-10, "largest difference; at most")


@claim(
    "tcnca",
    kind="exact",
    says="MEGA, the system compared with, is the released one: its moving average, here a scan, equals the released "
    "FFT convolution, causal and both ways.",
)
def scan_equals_the_released_convolution() -> Measurement:
    """In float64. Seen failing (3.4) with averages of what follows that begin with the token itself."""
    worst = 0.0
    with torch.no_grad():
        for causal in (True, False):
            ema, x = MultiHeadEMA(16, causal=causal).double(), torch.randn(2, 500, 16, dtype=torch.float64)
            worst = max(worst, float((ema(x) - ema.by_fft(x)).abs().max()))
    return Measurement.at_most(worst, 1e-11, "largest difference; at most")


@claim(
    "tcnca",
    kind="scaling",
    timed=True,
    says="Dilated convolutions are at least twice as fast as the FFT convolution of a moving average whose kernel is "
    "ready: four levels of 32 channels at 131,072 tokens (on a GPU up to 7.07 and 2.86 times forward and backward).",
)
def faster_than_the_fft() -> Measurement:
    """Processor time forward. Pilots on a busy machine: 3.7 to 4.9. Seen failing with taps summed one by one (1.7) and
    with PyTorch's dilated convolution (1.3)."""
    tcn, x = DilatedTCN(32, kernel_size=4, levels=4), torch.randn(1, LONG, 32)
    ema = MultiHeadEMA(32)
    kernel, lengths = ema.kernel(LONG).detach(), (LONG // 4, LONG)
    with torch.no_grad():
        fast = [cpu_seconds(lambda n=n: tcn(x[:, :n]), 4) for n in lengths]
        slow = cpu_seconds(lambda: ema.by_fft(x, kernel), 3)
        whole = cpu_seconds(lambda: ema.by_fft(x), 1)
    grows = exponent((fast[0], fast[1]), lengths)
    detail = (
        f"times as fast (at least), {whole / fast[1]:.0f} with the kernel made anew as in training; from a quarter of "
        f"the length on the time grows with an exponent of {grows:.2f}"
    )
    return Measurement.at_least(slow / fast[1], 2.0, detail)


@claim(
    "tcnca",
    kind="scaling",
    says="Training is linear in the length: four times the operations of 16,384 tokens at 65,536, within 1 %.",
)
def training_is_linear() -> Measurement:
    """Forward and backward, counted without computing. Seen failing (15.8) without chunks."""
    with torch.device("meta"), backend("torch"):
        mixer = TCNCA(64, causal=True)
        short, long = (training_flops(mixer, torch.empty(1, n, 64)) for n in (16_384, 65_536))
    return Measurement.at_most(long / short, 4.04, f"times those at 16,384 tokens ({long / 1e9:.0f} GFLOPs); at most")


@claim(
    "tcnca",
    kind="learned",
    says="On associative recall the simplified form is as good as MEGA or better after equal training, where the pair "
    "is outside of the chunk and within reach: two layers of 32 channels, 15 pairs of 8 keys, chunks of 16.",
)
def recalls_beyond_the_chunk_like_mega() -> Measurement:
    """4,000 steps each, about a minute of one core. Neither has learned the task by then; a guess is right in 1 of 8.

    Pilots of one seed: 0.54 against 0.47; 0.51 to 0.54 with dense convolutions or 64 channels after 3,000 steps. Seen
    failing (-0.13) with one convolution of two taps per layer, through which a chunk hears the last token before it.
    """
    options = {"length": 32, "keys": 8, "chunk": 16, "steps": 4000, "lr": 4e-3}
    simple = far_recall_accuracy([TCNCASimple(32, causal=True, levels=3, chunk_size=16) for _ in range(2)], **options)
    mega = far_recall_accuracy([Mega(32, causal=True, chunk_size=16) for _ in range(2)], **options)
    detail = f"accuracy above MEGA's {mega:.2f}; at least. Its own is {simple:.2f}"
    return Measurement.at_least(simple - mega, -0.02, detail)


@claim(
    "tcnca",
    kind="needs-pretrained",
    says="On enwik8 it reaches a lower loss than MEGA, with 1.37 and 1.24 times faster forward and backward passes in "
    "training.",
)
def beats_mega_on_enwik8() -> Measurement:
    """Nothing is measured, so it cannot pass."""
    need = (
        "not measured: no weights were released, the kernel size, growth and depth of the published convolutions are "
        "not known here, and training 39 M parameters for 400,000 steps on enwik8 needs a GPU"
    )
    return Measurement(math.nan, 0.0, False, f"bits per character below MEGA's (at least); {need}.")


@claim(
    "tcnca",
    kind="needs-pretrained",
    says="On Long Range Arena it infers 1.28 times faster than MEGA on average at similar accuracy.",
)
def matches_mega_on_long_range_arena() -> Measurement:
    """Nothing is measured, so it cannot pass."""
    need = "not measured: no weights were released, and six tasks of up to 16,384 tokens are to be trained on a GPU"
    return Measurement(math.nan, 1.28, False, f"times as fast (at least); {need}.")
