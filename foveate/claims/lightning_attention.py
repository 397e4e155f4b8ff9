"""Claims of "Various Lengths, Constant Speed" (TransNormerLLM, arXiv 2405.17381)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..measure.flops import count_flops
from ..measure.isolated import allocated_bytes_of, peak_bytes_of
from ..mixers.lightning_attention import LightningAttention
from ..mixers.linear_attention import Decay
from ..mixers.parts import SRMSNorm
from ..models.language.lightning_attention import TransNormerLLM
from ..ops import backend
from ..ops.linear_attention import build_slopes, layer_slopes, lightning_attention
from . import Measurement, claim
from ._processor import cpu_seconds, exponent


def _deviation(found: Tensor, expected: Tensor) -> float:
    """Largest deviation relative to the largest expected magnitude."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def _train(q: Tensor, k: Tensor, v: Tensor, slope: Tensor, block: int | None = None) -> list[Tensor]:
    """The op's output and the gradients of its mean square."""
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    q, k, v = leaves
    o = lightning_attention(q, k, v, slope, block=block)
    return [o.detach(), *torch.autograd.grad(o.square().mean(), leaves)]


@claim(
    "lightning_attention",
    kind="exact",
    says="Blocks need no cumulative sum and lose nothing: outputs and gradients equal the masked quadratic form to "
    "1e-4.",
)
def blocks_equal_the_quadratic_form() -> Measurement:
    """150 and 333 tokens, blocks 1 to 400, slopes 1e-6 to 1. Seen failing (0.16) with the state read one step
    too new."""
    worst = 0.0
    for n in (150, 333):
        q, k, v = (torch.randn(2, 4, n, width) for width in (16, 16, 24))
        for slope in (torch.tensor([1e-6, 1e-3, 0.1, 1.0]), build_slopes(4)):
            with backend("reference"):
                expected = _train(q, k, v, slope)
            for block in (1, 16, 64, n, 400):
                found = _train(q, k, v, slope, block=block)
                worst = max(worst, *map(_deviation, found, expected))
    return Measurement.at_most(worst, 1e-4, "largest relative deviation of outputs and gradients in float32; at most")


@claim(
    "lightning_attention",
    kind="exact",
    says="Decoding token by token after a prompt equals the forward pass to 1e-4, with a state whose size is constant.",
)
def decoding_equals_forward() -> Measurement:
    """Three layers, 300 tokens. Seen failing (0.05) when a prompt does not move the position that LRPE goes on from."""
    lm = TransNormerLLM(vocabulary=40, dim=32, depth=3, num_heads=4, lrpe_layers=(0, 2)).eval()
    tokens, worst, sizes = torch.randint(40, (2, 300)), 0.0, set()
    with torch.no_grad():
        expected = lm(tokens)
        for prompt in (1, 100, 250):
            logits, state = lm.prefill(tokens[:, :prompt], lm.init_state(2))
            outputs = [logits]
            for t in range(prompt, 300):
                logits, state = lm.step(tokens[:, t], state)
                outputs.append(logits[:, None])
                sizes.add(state.nbytes)
            worst = max(worst, _deviation(torch.cat(outputs, 1), expected))
    if len(sizes) != 1:
        worst = math.inf
    return Measurement.at_most(
        worst, 1e-4, f"largest relative deviation of logits; state bytes {sorted(sizes)}; at most"
    )


@claim(
    "lightning_attention",
    kind="exact",
    says="Nothing looks ahead: after any token is replaced, all earlier outputs are the same bit for bit.",
)
def nothing_looks_ahead() -> Measurement:
    """Ten tokens at and around borders of chunks and pieces. Seen failing (7 of 10) with each next token
    visible."""
    mixer, x, changed = LightningAttention(32, num_heads=4, lrpe=True).eval(), torch.randn(1, 600, 32), 0
    with torch.no_grad():
        y = mixer(x)
        for t in (1, 31, 32, 33, 63, 64, 511, 512, 513, 599):
            other = x.clone()
            other[:, t] = 9 * torch.randn(32)
            changed += not torch.equal(mixer(other)[:, :t], y[:, :t])
    return Measurement.at_most(changed, 0, "replaced tokens that changed an earlier output; none allowed")


@claim(
    "lightning_attention",
    kind="exact",
    says="SRMSNorm has no parameters and is RMSNorm with weights of 1.",
)
def srmsnorm_is_rmsnorm_without_weights() -> Measurement:
    """Seen failing (0.9) with the sum of squares in place of the mean."""
    x, plain = torch.randn(100, 64) * 5, nn.RMSNorm(64, eps=1e-6)
    worst = math.inf if list(SRMSNorm().parameters()) else _deviation(SRMSNorm()(x), plain(x).detach())
    return Measurement.at_most(worst, 1e-6, "largest relative deviation from torch's RMSNorm; at most")


@claim(
    "lightning_attention",
    kind="exact",
    says="Later layers see further: decay rates fall from layer to layer, to nearly none in the last.",
)
def decay_rates_fall_with_depth() -> Measurement:
    """24 layers of 8 heads. Seen failing (0.5) with the layers counted from the end."""
    rates = torch.stack([layer_slopes(8, layer, 24) for layer in range(24)])
    falling = bool((rates.diff(dim=0) < 0).all()) and bool((rates > 0).all())
    last = float(rates[-1].max())
    return Measurement(last, 1e-5, falling and last <= 1e-5, "largest rate of the last layer; at most, and all fall")


@claim(
    "lightning_attention",
    kind="scaling",
    says="Attention costs B (d + e) + 2 d e multiply-adds per token and head whatever the length: at 32,768 tokens, "
    "width 128 and blocks of 64 over 50 times fewer than causal softmax attention.",
)
def cost_per_token_is_constant() -> Measurement:
    """Counted on the meta device, border states included. Seen failing (0.5) with blocks as long as the
    sequence."""
    d, block, per_token = 128, 64, []
    for n in (4096, 32_768):
        with torch.device("meta"), backend("torch"):
            q, k, v = (torch.empty(1, 1, n, d) for _ in range(3))
            flops = count_flops(lambda q=q, k=k, v=v: lightning_attention(q, k, v, block=block))
        per_token.append(flops / 2 / n)
    ratio = (32_768 + 1) * d / per_token[1]  # the causal half of n^2 (d + e) multiply-adds, per token
    steady = abs(per_token[1] / per_token[0] - 1) < 0.02
    detail = f"{per_token[1]:,.0f} multiply-adds per token at 32,768 tokens, {per_token[0]:,.0f} at 4,096; at least"
    return Measurement(ratio, 50, ratio >= 50 and steady, "times fewer than softmax attention: " + detail)


@claim(
    "lightning_attention",
    kind="scaling",
    says="Training memory grows linearly with the length: 65,536 tokens of width 64 with 4 heads stay below 1 GiB.",
)
def memory_is_linear() -> Measurement:
    """Seen failing (the process runs out of memory) with the reference form."""
    setup = "from foveate.mixers.lightning_attention import LightningAttention\n"
    setup += "mixer = LightningAttention(64, num_heads=4, lrpe=True)\n"
    setup += "def train(n): mixer(torch.randn(1, n, 64).requires_grad_()).square().mean().backward()\ntrain(64)"
    short, long = allocated_bytes_of([f"train({n})" for n in (16_384, 65_536)], setup)
    power, peak = exponent((short, long), (16_384, 65_536)), peak_bytes_of("train(65536)", setup)
    detail = f"MiB at the peak above the idle process; below 1024; exponent of tensors' bytes {power:.2f}, at most 1.1"
    return Measurement(peak / 2**20, 1024, peak < 2**30 and power <= 1.1, detail)


@claim(
    "lightning_attention",
    kind="scaling",
    timed=True,
    says="Constant speed: with 65,536 tokens in total, training takes the same time at lengths 2,048 and 32,768.",
)
def speed_does_not_depend_on_length() -> Measurement:
    """Processor time of forward and backward. Seen failing (17) with blocks of 1/16 of the sequence."""

    def seconds(n: int) -> float:
        q, k, v = (torch.randn(65_536 // n, 2, n, 32) for _ in range(3))
        return cpu_seconds(lambda: _train(q, k, v, build_slopes(2)), repeats=2)

    ratio = min(seconds(32_768) / seconds(2048) for _ in range(2))
    return Measurement.at_most(ratio, 1.25, "processor time at length 32,768 over that at 2,048, same tokens; at most")


def _recall_loss(decay: Decay, seed: int) -> float:
    """Mean loss of the last 20 of 300 steps on telling the token before the one before the last."""
    torch.manual_seed(seed)
    lm = TransNormerLLM(vocabulary=16, dim=64, depth=2, num_heads=4, glu_dim=128, decay=decay)
    optimizer, lag, losses = torch.optim.AdamW(lm.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1), 3, []
    for _ in range(300):
        tokens = torch.randint(16, (16, 64))
        loss = F.cross_entropy(lm(tokens)[:, lag:].flatten(0, 1), tokens[:, :-lag].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses[-20:]) / 20


@claim(
    "lightning_attention",
    kind="learned",
    says="Decay helps: a small TransNormerLLM learns to recall a recent token faster than plain linear attention does.",
)
def decay_beats_plain_linear_attention() -> Measurement:
    """The token three steps back, 2 layers of width 64, 300 steps, 3 seeds; pilots found gaps of 0.5 nats. Seen failing
    (0.0) with the last layer's decay in both layers."""
    gaps = [_recall_loss("none", seed) - _recall_loss("official", seed) for seed in range(3)]
    detail = "smallest of three gaps in cross entropy (nats), plain minus decayed; at least"
    return Measurement.at_least(min(gaps), 0.1, detail)


@claim(
    "lightning_attention",
    kind="needs-pretrained",
    says="The released 385M, 1B and 7B models score 66.7, 72.1 and 80.1 on PIQA, and 46.3, 56.5 and 75.2 on HellaSwag.",
)
def commonsense_scores() -> Measurement:
    """Cannot be checked here."""
    need = (
        "not measured: it needs the released weights (TransNormerLLM on the Hugging Face hub), the two benchmarks, and "
    )
    return Measurement(math.nan, 66.7, False, need + "for the 7B model about 28 GiB of memory.")
