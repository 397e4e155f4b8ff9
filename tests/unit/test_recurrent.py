"""LSTM and GRU as mixers: PyTorch's own layer on the real tokens, wherever the others lie."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from foveate.errors import InvalidType, InvalidValue
from foveate.measure.flops import count_flops
from foveate.mixers.gru import GRU
from foveate.mixers.lstm import LSTM
from foveate.mixers.recurrent import Recurrent

each = pytest.mark.parametrize("kind", [LSTM, GRU])
MASKS = {
    "right padding": [1, 1, 1, 1, 0, 0, 0],
    "left padding": [0, 0, 0, 1, 1, 1, 1],
    "gaps": [0, 1, 0, 0, 1, 1, 0],
    "one token": [0, 0, 0, 0, 1, 0, 0],
    "none": [0, 0, 0, 0, 0, 0, 0],
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@each
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("hidden", [None, 3])
def test_it_is_pytorchs_layer(kind: type[Recurrent], causal: bool, hidden: int | None) -> None:
    mixer, x = kind(6, causal=causal, hidden=hidden), torch.randn(2, 9, 6)
    theirs = (nn.LSTM if kind is LSTM else nn.GRU)(6, hidden or 6, batch_first=True, bidirectional=not causal)
    theirs.load_state_dict(mixer.rnn.state_dict())
    torch.testing.assert_close(mixer(x), mixer.out(theirs(x)[0]))


@each
@pytest.mark.parametrize("causal", [True, False])
def test_meta_counts_what_the_layer_does(kind: type[Recurrent], causal: bool) -> None:
    # On meta the loop over time is left out; the count must be that of PyTorch's layer, which has it.
    with torch.device("meta"):
        mixer, x = kind(6, causal=causal, hidden=4), torch.empty(3, 7, 6)
        layer = count_flops(lambda: mixer.rnn(x))
        projection = 2 * 3 * 7 * 4 * mixer.directions * 6
        assert count_flops(lambda: mixer(x)) == layer + projection == mixer.cost((7,), 3).flops
        assert mixer(x).shape == x.shape


@each
@pytest.mark.parametrize("causal", [True, False])
def test_only_real_tokens_are_read(kind: type[Recurrent], causal: bool) -> None:
    mixer, x = kind(6, causal=causal), torch.randn(len(MASKS), 7, 6)
    mask = torch.tensor(list(MASKS.values())).bool()
    y = mixer(x.masked_fill(~mask[..., None], torch.nan), mask=mask)
    for sample, name in enumerate(MASKS):
        real = mask[sample]
        assert y[sample, ~real].eq(0).all(), name
        if real.any():
            torch.testing.assert_close(y[sample, real], mixer(x[sample : sample + 1, real])[0], msg=name)


@each
def test_states_after_gaps_are_those_of_the_real_tokens(kind: type[Recurrent]) -> None:
    mixer, x = kind(6, causal=True, hidden=4), torch.randn(len(MASKS), 7, 6)
    mask = torch.tensor(list(MASKS.values())).bool()
    _, before = mixer.prefill(torch.randn(len(MASKS), 3, 6), mixer.init_state(len(MASKS)))
    y, after = mixer.prefill(x, before, mask)
    for sample, name in enumerate(MASKS):
        alone = before.reorder(torch.tensor([sample]))
        if mask[sample].any():
            expected, alone = mixer.prefill(x[sample : sample + 1, mask[sample]], alone)
            torch.testing.assert_close(y[sample, mask[sample]], expected[0], msg=name)
        torch.testing.assert_close(after.hidden[sample], alone.hidden[0], msg=name)
        if kind is LSTM:
            torch.testing.assert_close(after.cell[sample], alone.cell[0], msg=name)


@each
def test_the_state_has_its_width_and_dtype(kind: type[Recurrent]) -> None:
    state = kind(6, causal=True, hidden=4).bfloat16().init_state(3)
    assert (tuple(state.hidden.shape), state.hidden.dtype) == ((3, 4), torch.bfloat16)
    assert state.nbytes == 3 * 4 * 2 * (2 if kind is LSTM else 1)


@each
def test_gradients_pass_through_the_state(kind: type[Recurrent]) -> None:
    mixer, x = kind(5, causal=True).double(), torch.randn(2, 8, 5).double().requires_grad_()
    (whole,) = torch.autograd.grad(mixer(x).sin().sum(), x)
    first, state = mixer.prefill(x[:, :5], mixer.init_state(2))
    second, _ = mixer.prefill(x[:, 5:], state)
    (pieces,) = torch.autograd.grad(torch.cat([first, second], 1).sin().sum(), x)
    torch.testing.assert_close(pieces, whole)


@each
def test_compile_leaves_it_as_it_is(kind: type[Recurrent]) -> None:
    mixer, x = kind(6, causal=True), torch.randn(2, 9, 6)
    torch.testing.assert_close(torch.compile(mixer, backend="eager")(x), mixer(x))


@each
def test_refuses(kind: type[Recurrent]) -> None:
    for hidden in (0, -1, 2.5):
        with pytest.raises(
            InvalidValue, match=re.escape(f"hidden={hidden!r} is not possible: a positive whole number")
        ):
            kind(6, hidden=hidden)  # type: ignore[call-arg]
    with pytest.raises(InvalidType, match="has no streaming form with causal=False"):
        kind(6, causal=False).prefill(torch.zeros(1, 2, 6), None)  # type: ignore[arg-type]
    mixer = kind(6, causal=True)
    with pytest.raises(InvalidValue, match="step takes one token"):
        mixer.step(torch.zeros(1, 2, 6), mixer.init_state(1))
