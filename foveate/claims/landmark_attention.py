"""Claims of "Random-Access Infinite Context Length for Transformers" (arXiv 2305.16300)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..measure.cost import linear_flops
from ..measure.flops import count_flops
from ..mixers.landmark_attention import LandmarkAttention
from ..ops.landmark_attention import landmark_attention, landmark_grouped_softmax
from . import Measurement, claim


@claim("landmark_attention", kind="exact", says="The grouped softmax is a distribution, and landmarks get none of it.")
def rows_sum_to_one() -> Measurement:
    """Seen failing with the own block's landmark left visible, and with landmarks' columns not cleared."""
    scores = 3 * torch.randn(2, 2, 60, 60, dtype=torch.float64)
    landmark = torch.arange(60) % 8 == 7
    weights = landmark_grouped_softmax(scores, landmark)
    off = float((weights.sum(-1) - 1).abs().max() + weights[..., landmark].abs().max())
    unequal = float((weights - _by_rows(scores, landmark)).abs().max())
    return Measurement.at_most(max(off, unequal), 1e-6, "off one, weight of a landmark, or off a row-by-row reading")


def _by_rows(scores: Tensor, landmark: Tensor) -> Tensor:
    """The paper's equations, one query at a time."""
    weights = torch.zeros_like(scores)
    ends = landmark.nonzero().flatten().tolist()
    for i in range(scores.shape[2]):
        row = scores[:, :, i]
        closed = [e for e in ends if e < i]
        own = [j for j in range(closed[-1] + 1 if closed else 0, i + 1) if j not in ends]
        together = row[..., closed + own].softmax(-1)
        weights[:, :, i, own] = together[..., len(closed) :]
        for number, end in enumerate(closed):
            block = list(range(closed[number - 1] + 1 if number else 0, end))
            weights[:, :, i, block] = row[..., block].softmax(-1) * together[..., number, None]
    return weights


@claim("landmark_attention", kind="exact", says="Without landmarks it is causal softmax attention.")
def plain_without_landmarks() -> Measurement:
    """Seen failing with one landmark in the sequence."""
    q, k, v = (torch.randn(2, 3, 40, 8, dtype=torch.float64) for _ in range(3))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    nowhere = torch.zeros(40, dtype=torch.bool)
    ours = (landmark_attention(q, k, v, is_landmark=nowhere), landmark_attention(q, k, v, block_size=40))
    worst = max(float((o - expected).abs().max()) for o in ours)
    return Measurement.at_most(worst, 1e-6, "largest deviation from softmax attention, of flags and of one long block")


@claim("landmark_attention", kind="exact", says="Fetching every block, a stream in chunks is attention to everything.")
def all_blocks_are_everything() -> Measurement:
    """Seen failing with one block less, and with the released code's positions."""
    worst = 0.0
    for rotary in (False, True):
        mixer = LandmarkAttention(32, num_heads=4, block_size=7, top_k=14, chunk=10, rotary=rotary).eval()
        layout = mixer.plan_tokens((110,))
        x = torch.randn(2, layout.length, 32)
        with torch.no_grad():
            whole = mixer(x, layout=layout)
            pieces, state = [], mixer.init_state(2)
            for piece in x.split(23, 1):
                y, state = mixer.prefill(piece, state)
                pieces.append(y)
        worst = max(worst, float((torch.cat(pieces, 1) - whole).abs().max() / whole.abs().max()))
    return Measurement.at_most(worst, 1e-4, "relative deviation of 11 chunks from one pass, with and without rotary")


@claim("landmark_attention", kind="exact", says="At 32k tokens a query reads fewer than 600 keys and one per block.")
def keys_of_one_query() -> Measurement:
    """Seen failing with a chunk of 350 tokens. Counted from the FLOPs of one step, at the end of a chunk."""
    block, chunk, dim, tokens = 50, 250, 8, 32_749
    mixer = LandmarkAttention(dim, num_heads=1, block_size=block, top_k=5, chunk=chunk).eval()
    with torch.no_grad():
        _, state = mixer.prefill(torch.randn(1, mixer.slots(tokens), dim), mixer.init_state(1))
        flops = count_flops(lambda: mixer.step(torch.randn(1, dim), state))
    gates = state.blocks.count
    keys = (flops - linear_flops(1, dim, 4 * dim) - 2 * dim * gates) / (4 * dim)
    bound = 5 * (block + 1) + block + chunk
    share = tokens / (keys + gates)
    detail = f"keys and values read by the last query of a chunk, and {gates} landmarks: {share:.0f} times fewer in all"
    return Measurement(keys, 600, keys < 600 and share >= 25 and bound < 600, detail)


@claim("landmark_attention", kind="exact", says="With a bound on its blocks, a stream's state stops growing.")
def bounded_state() -> Measurement:
    """Seen failing without the bound."""
    mixer = LandmarkAttention(16, num_heads=2, block_size=5, top_k=2, max_blocks=8, chunk=10).eval()
    state, sizes = mixer.init_state(1), []
    with torch.no_grad():
        for _ in range(3):
            _, state = mixer.prefill(torch.randn(1, mixer.slots(500), 16), state)
            sizes.append(state.nbytes)
    return Measurement.at_most(max(sizes) / min(sizes), 1.0, f"largest over smallest state of {sizes} bytes")


@claim("landmark_attention", kind="needs-pretrained", says="Fine-tuned, LLaMA-7B reads 32k tokens and finds a passkey.")
def llama_at_32k() -> Measurement:
    """Cannot be checked here."""
    need = "not measured: it needs LLaMA-7B and 15,000 steps of fine-tuning with landmarks on RedPajama"
    return Measurement(math.nan, 0.9, False, f"share of passkeys found at 32k tokens (at least); {need}.")


@claim("landmark_attention", kind="needs-pretrained", says="On PG-19 it matches Transformer-XL with fewer tokens read.")
def pg19_perplexity() -> Measurement:
    """Cannot be checked here."""
    need = "not measured: it needs PG-19 and 240,000 steps of a model with 12 layers of 1,024 channels"
    return Measurement(math.nan, 0.2, False, f"perplexity behind Transformer-XL at 2,048 tokens (at most); {need}.")
