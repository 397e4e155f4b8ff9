"""Claims of the paper that introduced long short-term memory (Neural Computation 9(8), 1997)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..mixers.lstm import LSTM
from . import Measurement, claim

LAG = 1_000


@claim("lstm", kind="exact", says="Three gates decide what enters the memory cell, what stays in it and what is said.")
def gates_are_those_of_the_equations() -> Measurement:
    """Seen failing with the input and the forget gate exchanged, and without the tanh of what is said."""
    mixer, x = LSTM(6, causal=True, hidden=5).double(), torch.randn(2, 12, 6, dtype=torch.float64)
    with torch.no_grad():
        h = c = torch.zeros(2, 5, dtype=torch.float64)
        outputs, weights = [], dict(mixer.rnn.named_parameters())
        for token in x.unbind(1):
            products = F.linear(token, weights["weight_ih_l0"], weights["bias_ih_l0"])
            enter, stay, candidate, say = (
                products + F.linear(h, weights["weight_hh_l0"], weights["bias_hh_l0"])
            ).chunk(4, -1)
            c = stay.sigmoid() * c + enter.sigmoid() * candidate.tanh()
            h = say.sigmoid() * c.tanh()
            outputs.append(mixer.out(h))
        worst = float((torch.stack(outputs, 1) - mixer(x)).abs().max())
    return Measurement.at_most(worst, 1e-12, "largest deviation from the equations, token by token")


@claim("lstm", kind="exact", says="Error flows through the cell over 1,000 steps, where a plain recurrence loses it.")
def error_flow_is_constant() -> Measurement:
    """Seen failing with the usual initial forget bias of 0, through which half of the error goes lost at every step."""
    torch.manual_seed(0)
    gated = _held_open(LSTM(4, causal=True, hidden=8)).double().rnn
    plain = nn.RNN(4, 8, batch_first=True).double()
    x = torch.randn(1, LAG, 4, dtype=torch.float64)
    cell = torch.zeros(1, 1, 8, dtype=torch.float64, requires_grad=True)
    (through_cell,) = torch.autograd.grad(gated(x, (torch.zeros_like(cell), cell))[1][1].sum(), cell)
    hidden = torch.zeros(1, 1, 8, dtype=torch.float64, requires_grad=True)
    (through_plain,) = torch.autograd.grad(plain(x, hidden)[1].sum(), hidden)
    kept, lost = float(through_cell.norm()) / 8**0.5, float(through_plain.norm()) / 8**0.5
    detail = f"share of the error that arrives {LAG:,} steps earlier; in a plain recurrence {lost:.0e}"
    return Measurement(kept, 0.5, kept >= 0.5 and lost < 1e-6, detail)


@claim(
    "lstm", kind="learned", says="It learns to hold a symbol over 1,000 distracting steps; a plain recurrence does not."
)
def bridges_long_lags() -> Measurement:
    """Seen failing with the usual initial biases of 0 for both gates, and with an input gate that begins half open."""
    accuracy = {}
    for name in ("lstm", "plain"):
        torch.manual_seed(0)
        reader = _held_open(LSTM(4, causal=True, hidden=8)).rnn if name == "lstm" else nn.RNN(4, 8, batch_first=True)
        accuracy[name] = _first_symbol(reader)
    detail = f"accuracy on the first of {LAG:,} symbols; of a plain recurrence {accuracy['plain']:.2f} (chance is 0.5)"
    return Measurement(accuracy["lstm"], 0.99, accuracy["lstm"] >= 0.99 and accuracy["plain"] < 0.75, detail)


def _held_open(mixer: LSTM) -> LSTM:
    """Gates that begin as in the paper: all is kept (it has no forget gate), little enters (negative input biases)."""
    with torch.no_grad():
        mixer.rnn.bias_ih_l0[: mixer.hidden] -= 6.0
        mixer.rnn.bias_ih_l0[mixer.hidden : 2 * mixer.hidden] = 9.0
    return mixer


def _first_symbol(reader: nn.RNNBase) -> float:
    """Accuracy after learning to say, at the end, which of two symbols the sequence began with."""
    head = nn.Linear(8, 2)
    optimizer = torch.optim.Adam([*reader.parameters(), *head.parameters()], lr=5e-2)

    def draw(batch: int) -> tuple[Tensor, Tensor]:
        first = torch.randint(2, (batch,))
        rest = torch.randint(2, 4, (batch, LAG - 1))
        return F.one_hot(torch.cat([first[:, None], rest], 1), 4).float(), first

    for _ in range(150):
        x, first = draw(32)
        loss = F.cross_entropy(head(reader(x)[0][:, -1]), first)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*reader.parameters(), *head.parameters()], 1.0)
        optimizer.step()
    with torch.no_grad():
        x, first = draw(512)
        return float((head(reader(x)[0][:, -1]).argmax(-1) == first).float().mean())
