"""Claims of "Selective Structured State-Spaces for Long-Form Video Understanding" (arXiv 2303.14526): the mixer."""

from __future__ import annotations

import math

import torch

from ..measure.flops import count_flops
from ..measure.memory import saved_bytes
from ..mixers.s4d import S4D
from ..mixers.selective_s4 import SelectiveS4
from ..ops import backend
from ..ops.s4_kernel import hippo_legs, s4_kernel, s4_matrices
from . import Measurement, claim


@claim(
    "selective_s4",
    kind="exact",
    says="The choice needs no dense self-attention: scores come from a momentum copy of the state-space model, which "
    "follows xi = m xi + (1 - m) theta and gets no gradient.",
)
def the_copy_follows_without_gradient() -> Measurement:
    """One step of an optimiser, then of the copy. Seen failing (0.007) with the copy moved by m in place of 1 - m."""
    mixer = SelectiveS4(16, momentum=0.9).double()
    before = [value.clone() for value in mixer.guide.buffers()]
    optimizer = torch.optim.SGD(mixer.parameters(), lr=0.1)
    mixer(torch.randn(2, 50, 16, dtype=torch.float64)).square().mean().backward()
    optimizer.step()
    mixer.after_step()
    theta = dict(mixer.s4.named_parameters())
    worst = 0.0
    for (name, value), old in zip(mixer.guide.named_buffers(), before, strict=True):
        worst = max(worst, float((value - 0.9 * old - 0.1 * theta[name]).abs().max().detach()))
    trained = any(value.requires_grad for value in mixer.guide.buffers()) or any(mixer.guide.parameters())
    return Measurement.at_most(math.nan if trained else worst, 1e-12, "largest deviation of a weight of the copy")


@claim(
    "selective_s4",
    kind="exact",
    says="With all tokens kept it is the dense model, bit for bit; otherwise exactly the kept ones are read, in order.",
)
def kept_tokens_stay_in_order() -> Measurement:
    """Shares of 0.1 to 1 of 97 tokens. Seen failing (0.88) with the best tokens read in the order of their scores."""
    worst, x = 0.0, torch.randn(2, 97, 16)
    with torch.no_grad():
        for share in (0.1, 0.5, 0.9, 1.0):
            mixer = SelectiveS4(16, keep_ratio=share).eval()
            y, count = mixer(x), math.floor(share * 97 + 0.5)
            for sample in range(2):
                kept = (y[sample] != 0).any(-1)
                expected = mixer.s4(x[sample : sample + 1, kept])[0]
                if int(kept.sum()) != count:
                    return Measurement(int(kept.sum()), count, False, f"tokens kept of 97 at a share of {share}")
                worst = max(worst, float((y[sample, kept] - expected).abs().max()))
            dense = torch.equal(y, mixer.s4(x)) if share == 1 else True
            worst = worst if dense else math.nan
    return Measurement.at_most(worst, 1e-6, "largest difference from the layer on the kept tokens alone")


@claim(
    "selective_s4",
    kind="exact",
    says="The causal form, which is not the paper's, streams exactly: steps equal the whole sequence at once.",
)
def the_causal_form_streams() -> Measurement:
    """In float64, about half of the tokens kept. Seen failing (0.82) with the mean over all tokens, later ones too."""
    with torch.no_grad():
        mixer = SelectiveS4(16, causal=True).double().eval()
        x = torch.randn(1, 300, 16, dtype=torch.float64)
        mixer.generator.score.bias.copy_(-mixer.logits(x).median(1).values[0])  # about half are kept
        expected = mixer(x)
        y, state = mixer.prefill(x[:, :200], mixer.init_state(1))
        outputs, size = [y], state.nbytes
        for x_t in x[:, 200:].unbind(1):
            y, state = mixer.step(x_t, state)
            outputs.append(y[:, None])
        error, kept = float((torch.cat(outputs, 1) - expected).abs().max()), float((expected != 0).double().mean())
    good = 0.2 < kept < 0.8 and state.nbytes == size
    return Measurement.at_most(error if good else math.nan, 1e-10, f"largest difference; {kept:.0%} kept; at most")


@claim(
    "selective_s4",
    kind="exact",
    says="The S4 layer's convolution equals its recurrence.",
)
def convolution_equals_recurrence() -> Measurement:
    """HiPPO-LegS with 16 states over 256 tokens, float64. Seen failing (1.7) without the low-rank correction."""
    w, read, p = hippo_legs(16)
    B = torch.stack([read, p]).expand(4, -1, -1)
    C = torch.stack([torch.randn(4, 8, dtype=w.dtype), p.expand(4, -1)], 1)
    dt = torch.logspace(-3, -1, 4, dtype=torch.float64)
    kernel = s4_kernel(w, B, C, dt, 256)
    dA, x, out = s4_matrices(w, B, C, dt, 256)
    answers = []
    for _ in range(256):
        answers.append((out * x).sum(-1).real)
        x = (dA @ x.unsqueeze(-1)).squeeze(-1)
    expected = torch.stack(answers, -1)
    return Measurement.at_most(
        float((kernel - expected).abs().max() / expected.abs().max()), 1e-9, "largest relative difference; at most"
    )


@claim(
    "selective_s4",
    kind="scaling",
    says="Time is nearly linear in tokens: products grow with an exponent of at most 1.05 from 4,096 to 65,536 tokens, "
    "and nothing of tokens times tokens is made.",
)
def products_are_linear() -> Measurement:
    """Counted without computing, in both forms. Seen failing (1.99) with chunks as long as the sequence."""
    worst = 0.0
    for causal in (False, True):
        with torch.device("meta"), backend("torch"):
            mixer = SelectiveS4(32, causal=causal).eval()
            short, long = (count_flops(lambda m=mixer, n=n: m(torch.empty(1, n, 32))) for n in (4096, 65_536))
        worst = max(worst, math.log(long / short) / math.log(16))
    return Measurement.at_most(worst, 1.05, "exponent; at most")


@claim(
    "selective_s4",
    kind="scaling",
    says="Memory falls by 23 % against the dense model where the best half is read: here what the layer keeps for a "
    "backward pass. While training with zeros in the place of dropped tokens nothing is saved.",
)
def memory_falls() -> Measurement:
    """11,820 tokens, as in the paper, of 32 channels. Seen failing (1.0) with zeros in the places of dropped ones."""
    x = torch.randn(1, 11_820, 32, requires_grad=True)
    with backend("torch"):
        selective = saved_bytes(SelectiveS4(32, causal=False).eval(), x)
        dense = saved_bytes(S4D(32, causal=False), x)
        training = saved_bytes(SelectiveS4(32, causal=False).train(), x)
    detail = f"of the dense layer's bytes; at most. While training: {training / dense:.2f}"
    return Measurement.at_most(selective / dense, 0.77, detail)


@claim(
    "selective_s4",
    kind="needs-pretrained",
    says="Accuracy on LVU, COIN and Breakfast rises by up to 9.6 % over the S4 model before it.",
)
def beats_the_dense_model_on_long_video() -> Measurement:
    """Nothing is measured, so it cannot pass."""
    need = (
        "not measured: no weights were released; it needs the videos of LVU, COIN and Breakfast, features of ViT-L/16 "
        "and Video-Swin, and the selective video model, which is not built"
    )
    return Measurement(math.nan, 0.0, False, f"points of accuracy above ViS4mer (at least); {need}.")
