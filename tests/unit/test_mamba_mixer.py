"""MambaMixer's mixers: scans and masks, channels, averages, streams, cost and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from foveate.errors import InvalidType, InvalidValue, UnknownName
from foveate.measure.memory import saved_bytes
from foveate.mixers import Mixer, TokenLayout
from foveate.mixers.mamba import Mamba
from foveate.mixers.mamba_mixer import MambaMixer, SelectiveChannelMixer, SelectiveTokenMixer
from foveate.mixers.selective_block import SCANS, SelectiveBlock
from foveate.mixers.weighted_average import MambaMixerBlock, MambaMixerStack, WeightedAverage
from foveate.models.official import load_official
from foveate.ops import backend


def noisy(module: nn.Module, scale: float = 0.1, seed: int = 0) -> nn.Module:
    """Parameters away from where they start: zeros would hide faults."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return module


def tokens(length: int, dim: int = 12, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, length, dim, generator=torch.Generator().manual_seed(seed))


# The token mixer


@pytest.mark.parametrize(
    "options", [{}, {"bias": True, "conv_bias": False, "d_conv": 3}, {"expand": 1, "d_state": 3, "dt_rank": 5}]
)
def test_one_direction_with_official_keys_is_mamba(options: dict[str, object]):
    mamba, mixer = noisy(Mamba(12, **options)), SelectiveTokenMixer(12, causal=True, **options)  # type: ignore[arg-type]
    load_official(mixer, mamba.state_dict())
    x, mask = tokens(37), torch.rand(2, 37, generator=torch.Generator().manual_seed(5)) < 0.7
    assert torch.equal(mixer(x), mamba(x))
    torch.testing.assert_close(mixer(x, mask=mask), mamba(x, mask=mask))


def test_two_directions_are_two_scans_under_one_gate():
    mixer, x = noisy(SelectiveTokenMixer(12)), tokens(21)
    block = mixer.block
    total = torch.zeros(2, 21, 24)
    u, z = block.in_proj(x).chunk(2, -1)
    for index, order in enumerate((range(21), range(20, -1, -1))):
        alone = SelectiveTokenMixer(12, causal=True).block
        alone.branches[0].load_state_dict(block.branches[index].state_dict())
        one, _ = alone.first.scan_core(u[:, list(order)], z[:, list(order)], None, None, None)
        total += one[:, list(order)]
    torch.testing.assert_close(mixer(x), block.out_proj(total))


def test_a_new_scan_is_one_entry(monkeypatch: pytest.MonkeyPatch):
    def turn(x: Tensor, grid: tuple[int, ...]) -> Tensor:
        return x.unflatten(1, grid).transpose(1, 2).flatten(1, 2)

    monkeypatch.setitem(SCANS, "columns", (turn, lambda x, grid: turn(x, grid[::-1])))
    rows, columns = noisy(SelectiveBlock(6, ("forward",))), SelectiveBlock(6, ("columns",))
    columns.load_state_dict(rows.state_dict())
    x = tokens(15, 6).unflatten(1, (3, 5))
    mask = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(5)) < 0.7
    for given in (None, mask):
        y = columns(x.flatten(1, 2), None if given is None else given.flatten(1), grid=(3, 5))[0].unflatten(1, (3, 5))
        turned = None if given is None else given.transpose(1, 2).flatten(1)
        expected = rows(x.transpose(1, 2).flatten(1, 2), turned)[0].unflatten(1, (5, 3)).transpose(1, 2)
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_masked_tokens_are_as_if_they_had_never_been_there(causal: bool, bias: bool):
    mixer, x = noisy(SelectiveTokenMixer(12, causal=causal, bias=bias)), tokens(23)
    mask = torch.arange(23).expand(2, -1) % 3 != 1
    x = x.masked_fill(~mask[..., None], float("nan")).requires_grad_()
    y = mixer(x, mask=mask)
    kept = [t for t in range(23) if t % 3 != 1]
    torch.testing.assert_close(y[:, kept], mixer(x[:, kept]))
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


def test_documents_are_apart_in_both_directions():
    mixer, x = noisy(SelectiveTokenMixer(12)), tokens(30)
    segments = (torch.arange(30) >= 11).long().expand(2, -1)
    mask = torch.rand(2, 30, generator=torch.Generator().manual_seed(5)) < 0.7
    y = mixer(x, mask=mask, layout=TokenLayout((30,), segments=segments))
    torch.testing.assert_close(y[:, :11], mixer(x[:, :11], mask=mask[:, :11]))
    torch.testing.assert_close(y[:, 11:], mixer(x[:, 11:], mask=mask[:, 11:]))


def test_a_forward_scan_without_a_promise_of_causality():
    mixer = SelectiveTokenMixer(12, scans=("forward",))
    assert not mixer.causal
    with pytest.raises(InvalidType, match="SelectiveTokenMixer has no streaming form with causal=False"):
        mixer.step(tokens(1)[:, 0], None)  # type: ignore[arg-type]
    with pytest.raises(InvalidType, match="no streaming form with causal=False"):
        mixer.prefill(tokens(2), None)  # type: ignore[arg-type]


# The channel mixer


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_the_channel_mixer_is_the_token_mixer_of_the_transposed(groups: int):
    channels = noisy(SelectiveChannelMixer(9, seq_len=10, groups=groups))
    turned = SelectiveTokenMixer(10 // groups)
    turned.block.load_state_dict(channels.block.state_dict())
    x = tokens(10, 9)
    parts = [turned(part.transpose(1, 2)).transpose(1, 2) for part in x.chunk(groups, 1)]
    torch.testing.assert_close(channels(x), torch.cat(parts, 1))


def test_channels_see_both_sides_unless_told():
    x = tokens(6, 8)
    other = x.clone()
    other[..., 4] += 1
    for bidirectional in (True, False):
        mixer = noisy(SelectiveChannelMixer(8, seq_len=6, bidirectional=bidirectional), 0.3)
        changed = (mixer(other) != mixer(x)).any(1).any(0)
        assert changed.tolist() == [bidirectional] * 4 + [True] * 4


def test_the_length_is_the_one_it_was_built_for():
    with pytest.raises(InvalidValue, match=r"SelectiveChannelMixer: grid \(7,\) is not possible: it must be \(6,\)"):
        SelectiveChannelMixer(8, seq_len=6)(tokens(7, 8))
    assert MambaMixer.options_for((14,)) == SelectiveChannelMixer.options_for((14,)) == {"seq_len": 14}


# Averages


def test_coefficients_weigh_what_the_equations_say():
    average = WeightedAverage(3)
    with torch.no_grad():
        for number, parameter in enumerate(average.parameters()):
            parameter.copy_(torch.arange(1.0, len(parameter) + 1) * 10**number)
    a, b, t, g = (dict(average.named_parameters())[n] for n in ("alpha", "beta", "theta", "gamma"))
    y = [torch.full((1,), 2.0**i) for i in range(4)]
    z = [y[0], *(7 * v for v in y[1:3])]  # both kinds begin with the input
    # Layer 3 of 3: rows behind those of the layers 1 and 2.
    expected = sum(a[3 + i] * y[i] + b[3 + i] * z[i] for i in range(3))
    torch.testing.assert_close(average.for_tokens(3, y[:3], z), expected)
    expected = sum(t[5 + i] * y[i] for i in range(4)) + sum(g[3 + i] * z[i] for i in range(3))
    torch.testing.assert_close(average.for_channels(3, y, z), expected)
    assert (len(a), len(b), len(t), len(g)) == (6, 6, 9, 6)


def test_all_ones_make_the_residual_network():
    # y_ch(0) = x counted once, every later output once: what the chain with residuals hands from mixer to mixer.
    class Twice(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return 2 * x

    x = tokens(5, 4)
    stacks = []
    for averaging in (True, False):
        torch.manual_seed(0)
        blocks = [MambaMixerBlock(4, Twice(), Twice(), residual=not averaging, dropout=0.0) for _ in range(2)]
        stacks.append(MambaMixerStack(blocks, averaging=averaging))
    average = stacks[0].average
    assert average is not None
    with torch.no_grad():
        for name, parameter in average.named_parameters():
            parameter.fill_(1)
            for layer in (1, 2):
                if name in ("alpha", "theta"):
                    average.row(name, layer)[0] = 0
    seen = {}
    for name, stack in zip(("averages", "residuals"), stacks, strict=True):
        stack.blocks[1].channel_norm.register_forward_pre_hook(lambda _, given, n=name: seen.update({n: given[0]}))  # type: ignore[union-attr]
        stack(x)
    torch.testing.assert_close(seen["averages"], seen["residuals"])


def test_every_coefficient_learns_and_nothing_is_changed_in_place():
    mixer, x = noisy(MambaMixer(8, seq_len=6, layers=3)), tokens(6, 8)
    mixer(x).pow(3).mean().backward()
    for name, parameter in mixer.stack.average.named_parameters():  # type: ignore[union-attr]
        assert parameter.grad is not None
        assert (parameter.grad != 0).all(), name


# All three


@pytest.mark.parametrize(
    "mixer",
    [
        SelectiveTokenMixer(12),
        SelectiveTokenMixer(12, causal=True, bias=True),
        SelectiveChannelMixer(12, seq_len=18, groups=3),
        SelectiveChannelMixer(12, seq_len=18, bidirectional=False),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_activation_bytes_are_those_kept(mixer: Mixer, batch: int):
    x = tokens(18, batch=batch).requires_grad_()
    assert mixer.cost((18,), batch).activation_bytes == saved_bytes(mixer, x)


@pytest.mark.parametrize("mixer", [SelectiveTokenMixer(12), MambaMixer(12, seq_len=19, layers=2)])
def test_backends_agree(mixer: Mixer):
    noisy(mixer)
    y = mixer(tokens(19))
    with backend("reference"):
        torch.testing.assert_close(mixer(tokens(19)), y)


@pytest.mark.parametrize(
    ("cls", "options", "error", "says"),
    [
        (SelectiveTokenMixer, {"scans": ("sideways",)}, UnknownName, "unknown scan 'sideways'"),
        (SelectiveTokenMixer, {"scans": ()}, InvalidValue, r"scans=\(\) .*at least one"),
        (SelectiveTokenMixer, {"scans": ("forward", "forward")}, InvalidValue, "different names"),
        (SelectiveTokenMixer, {"causal": True, "scans": ("backward",)}, InvalidValue, r"legal is \('forward',\)"),
        (SelectiveTokenMixer, {"d_state": 0}, InvalidValue, "d_state=0 .*positive whole number"),
        (SelectiveChannelMixer, {"causal": True}, InvalidValue, "SelectiveChannelMixer has no causal form"),
        (SelectiveChannelMixer, {"seq_len": 0}, InvalidValue, "seq_len=0"),
        (SelectiveChannelMixer, {"groups": 3}, InvalidValue, "groups=3 .*divide seq_len=16"),
        (MambaMixer, {"causal": True}, InvalidValue, "MambaMixer has no causal form"),
        (MambaMixer, {"layers": 0}, InvalidValue, "layers=0"),
    ],
)
def test_refuses_illegal_options(cls: type[Mixer], options: dict, error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        cls(12, **options)
