"""The selective scan: the fast form against the loop over positions, and both against sums written out."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from foveate.errors import InvalidType, InvalidValue
from foveate.ops import backend, selective_scan_blocks
from foveate.ops.selective_scan import selective_scan, selective_state_update

Q = 16  # positions of a block in these tests
LENGTHS = (1, Q - 1, Q, Q + 1, 3 * Q + 5)


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selective_scan_blocks, "LONGEST_BLOCK", Q)


def make(
    length: int,
    maps: str = "varying",
    *,
    number: bool = False,
    batch: int = 2,
    channels: int = 6,
    states: int = 3,
    strength: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Arguments of the op; ``number`` makes A complex."""
    generator = torch.Generator().manual_seed(length)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    def either(*shape: int) -> Tensor:
        return torch.complex(draw(*shape), draw(*shape)) if number else draw(*shape)

    read = 2 * length if number else length
    shapes = {"varying": (batch, states, read), "grouped": (batch, 2, states, read)}
    A = -strength * (0.1 + draw(channels, states).abs())
    given = {
        "u": draw(batch, channels, length),
        "delta": draw(batch, channels, length),
        "A": torch.complex(A, draw(channels, states)) if number else A,
        "B": either(channels, states) if maps == "constant" else draw(*shapes[maps]),
        "C": either(channels, states) if maps == "constant" else draw(*shapes[maps]),
        "D": draw(channels),
        "z": draw(batch, channels, length),
        "delta_bias": draw(channels),
        "initial_state": either(batch, channels, states),
    }
    return {name: value.requires_grad_() for name, value in given.items()}


def answer(given: dict[str, Tensor], name: str = "torch", **options: object) -> dict[str, Tensor]:
    """Output, last state, and the gradient of every argument of a loss that reads both."""
    with backend(name):
        y, last = selective_scan(**given, delta_softplus=True, return_last_state=True, **options)  # type: ignore[arg-type]
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    loss = (y * weights).sum() + last.abs().square().sum()
    gradients = torch.autograd.grad(loss, list(given.values()))
    return {"y": y, "last": last, **dict(zip(given, gradients, strict=True))}


def agree(found: dict[str, Tensor], expected: dict[str, Tensor], limit: float = 1e-10) -> None:
    for name, want in expected.items():
        assert found[name].isfinite().all(), name
        error = (found[name] - want).abs().max() / want.abs().max().clamp(min=1e-6)
        assert error <= limit, f"{name} deviates by {error:.2e}"


# The definition


def test_definition_is_the_sum_written_out():
    given = make(7)
    delta = F.softplus(given["delta"] + given["delta_bias"][:, None])
    y = torch.zeros_like(given["u"])
    for t in range(7):
        for j in range(t + 1):
            decay = torch.exp(given["A"] * delta[:, :, j + 1 : t + 1].sum(-1, keepdim=True))  # (batch, D, N)
            added = (delta[:, :, j] * given["u"][:, :, j]).unsqueeze(-1) * given["B"][:, None, :, j]
            y[:, :, t] += (given["C"][:, None, :, t] * decay * added).sum(-1)
        decay = torch.exp(given["A"] * delta[:, :, : t + 1].sum(-1, keepdim=True))
        y[:, :, t] += (given["C"][:, None, :, t] * decay * given["initial_state"]).sum(-1)
    y = (y + given["D"][:, None] * given["u"]) * F.silu(given["z"])
    with backend("reference"):
        torch.testing.assert_close(selective_scan(**given, delta_softplus=True), y, rtol=1e-12, atol=1e-12)


def test_complex_numbers_are_pairs_of_real_states():
    # Twice the real part of a complex state is what a conjugate pair gives; here the pair is written out.
    given = make(9, number=True)
    B, C = (torch.view_as_complex(given[n].unflatten(-1, (-1, 2))) for n in ("B", "C"))
    h, want = given["initial_state"], []
    delta = F.softplus(given["delta"] + given["delta_bias"][:, None])
    for t in range(9):
        h = torch.exp(delta[:, :, t, None] * given["A"]) * h + (delta * given["u"])[:, :, t, None] * B[:, None, :, t]
        pair = (h * C[:, None, :, t]).sum(-1)
        want.append((pair + pair.conj()).real)
    y = (torch.stack(want, -1) + given["D"][:, None] * given["u"]) * F.silu(given["z"])
    torch.testing.assert_close(selective_scan(**given, delta_softplus=True), y, rtol=1e-10, atol=1e-10)


# The fast form


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("number", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("maps", ["varying", "grouped", "constant"])
@pytest.mark.parametrize("length", LENGTHS)
def test_blocks_equal_the_loop(length: int, maps: str, number: bool):
    given = make(length, maps, number=number)
    agree(answer(given), answer(given, "reference"))
    for name in ("D", "z", "delta_bias", "initial_state"):
        del given[name]
    agree(answer(given), answer(given, "reference"))


@pytest.mark.parametrize("length", [255, 513, 1100])
def test_default_blocks_equal_the_loop(length: int):
    given = make(length)
    agree(answer(given), answer(given, "reference"))


def test_many_samples_are_scanned_in_groups(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(selective_scan_blocks, "BLOCK_NUMBERS", 2 * Q * 18)  # two samples at a time
    given = make(3 * Q + 5, "grouped", batch=5)
    agree(answer(given), answer(given, "reference"))


@pytest.mark.usefixtures("short_blocks")
def test_one_map_in_groups_and_the_other_not():
    given = make(Q + 1, "grouped")
    given["C"] = given["C"][:, 0].detach().requires_grad_()
    agree(answer(given), answer(given, "reference"))


def test_strong_decay_stays_finite():
    # A divided form, exp(s_t) sum_j b_j / exp(s_j), overflows as soon as a running sum passes 88.
    given = make(3 * Q + 5, strength=300.0, dtype=torch.float32)
    found = answer(given)
    agree(found, answer(given, "reference"), 1e-4)
    assert found["A"].abs().max() > 0


def test_steps_do_not_grow_like_the_length():
    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.calls += 1
            return function(*args, **(kwargs or {}))

    given = make(4096, batch=1, dtype=torch.float32)
    with Count() as counter:
        y = selective_scan(**given, delta_softplus=True)
    assert counter.calls < 4096 / 2
    with Count() as counter:
        y.sum().backward()
    assert counter.calls < 4096


@pytest.mark.usefixtures("short_blocks")
def test_gradcheck():
    given = make(Q + 3, "grouped", batch=1, channels=4, states=2)
    names = list(given)

    def call(*values: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(names, values, strict=True))
        return selective_scan(**named, delta_softplus=True, return_last_state=True)  # type: ignore[return-value]

    assert torch.autograd.gradcheck(call, list(given.values()), fast_mode=True)
    given = make(3, number=True, batch=1, channels=2, states=2)
    assert torch.autograd.gradcheck(call, list(given.values()))


# Gaps, documents, steps


def test_steps_of_zero_leave_the_state():
    given = make(20)
    y, last = selective_scan(**given, delta_softplus=True, return_last_state=True)
    longer = dict(given)
    for name in ("u", "z", "B", "C"):
        longer[name] = torch.cat((given[name], 100 * torch.randn_like(given[name])[..., :13]), -1)
    longer["delta"] = F.pad(given["delta"], (0, 13), value=float("-inf"))
    y_longer, last_longer = selective_scan(**longer, delta_softplus=True, return_last_state=True)
    torch.testing.assert_close(y_longer[..., :20], y)
    torch.testing.assert_close(last_longer, last)
    (gradient,) = torch.autograd.grad(last_longer.sum(), longer["delta"])
    assert gradient.isfinite().all()
    assert (gradient[..., 20:] == 0).all()

    longer["delta"] = F.pad(given["delta"], (0, 13), value=0.5)  # real steps: the outputs hold, the state does not
    y_longer, last_longer = selective_scan(**longer, delta_softplus=True, return_last_state=True)
    torch.testing.assert_close(y_longer[..., :20], y)
    assert not torch.allclose(last_longer, last)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("form", ["reference", "torch"])
@pytest.mark.parametrize("number", [False, True], ids=["real", "complex"])
def test_documents_are_apart(form: str, number: bool):
    borders, given = (0, 5, Q, 2 * Q + 3, 3 * Q), make(3 * Q, number=number)
    seq_idx = torch.zeros(2, 3 * Q, dtype=torch.long)
    for index, (start, stop) in enumerate(itertools.pairwise(borders)):
        seq_idx[:, start:stop] = (7, 3, 7, 9)[index]  # the same number again is another document
    packed = answer(given, form, seq_idx=seq_idx)
    parts, step = [], 2 if number else 1
    for start, stop in itertools.pairwise(borders):
        part = {name: value.detach() for name, value in given.items()}
        part |= {name: part[name][..., start:stop] for name in ("u", "delta", "z")}
        part |= {name: part[name][..., step * start : step * stop] for name in ("B", "C")}
        if start:
            del part["initial_state"]
        parts.append(selective_scan(**part, delta_softplus=True, return_last_state=True))
    torch.testing.assert_close(packed["y"], torch.cat([y for y, _ in parts], -1))
    torch.testing.assert_close(packed["last"], parts[-1][1])
    with backend(form):
        _, last = selective_scan(**given, delta_softplus=True, return_last_state=True, seq_idx=seq_idx)
    gradients = torch.autograd.grad(last.abs().sum(), [given["initial_state"], given["u"]])
    assert (gradients[0] == 0).all(), "the last document sees the initial state"
    assert (gradients[1][..., : borders[-2]] == 0).all(), "the last document sees the one before"


@pytest.mark.parametrize("maps", ["varying", "grouped"])
def test_steps_equal_the_scan(maps: str):
    given = make(12, maps)
    y, last = selective_scan(**given, delta_softplus=True, return_last_state=True)
    state = given["initial_state"]
    for t in range(12):
        out, state = selective_state_update(
            state,
            given["u"][:, :, t],
            given["delta"][:, :, t],
            given["A"],
            given["B"][..., t],
            given["C"][..., t],
            given["D"],
            given["z"][:, :, t],
            given["delta_bias"],
            dt_softplus=True,
        )
        torch.testing.assert_close(out, y[:, :, t])
    torch.testing.assert_close(state, last)


def test_a_step_does_not_change_its_state():
    state = torch.randn(2, 3, 4)
    kept = state.clone()
    x, A, B = torch.randn(2, 3), -torch.rand(3, 4), torch.randn(2, 4)
    selective_state_update(state, x, x.abs(), A, B, B)
    assert torch.equal(state, kept)


# Dtypes and tools


def test_half_precision_keeps_float32_states():
    given = {name: value.detach() for name, value in make(200, dtype=torch.float32).items()}
    half = {name: value.bfloat16() for name, value in given.items() if name not in ("A", "initial_state")}
    full = given | {name: value.float() for name, value in half.items()}
    y, last = selective_scan(**full, delta_softplus=True, return_last_state=True)
    half_y, half_last = selective_scan(**(given | half), delta_softplus=True, return_last_state=True)
    assert half_y.dtype == torch.bfloat16
    assert half_last.dtype == torch.float32
    torch.testing.assert_close(half_last, last)
    torch.testing.assert_close(half_y.float(), y, rtol=1e-2, atol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = selective_scan(**full, delta_softplus=True, return_last_state=True)
    torch.testing.assert_close(inside, y)


def test_the_compiled_op_is_sound():
    given = {n: v.detach().float() for n, v in make(20, "grouped").items()}
    fast = (given["u"].mT, given["delta"].mT, given["A"], *(given[n].permute(0, 3, 1, 2) for n in "BC"))
    rest = (given["D"], given["z"].mT, given["delta_bias"], given["initial_state"], None, True, 16)
    values = [v.requires_grad_() if isinstance(v, Tensor) else v for v in (*fast, *rest)]
    opcheck(torch.ops.foveate.selective_scan.default, tuple(values))


def test_compiles_as_one_graph():
    given = make(40, dtype=torch.float32)
    torch.compiler.reset()

    def call(**given: Tensor) -> tuple[Tensor, Tensor]:
        return selective_scan(**given, delta_softplus=True, return_last_state=True)  # type: ignore[return-value]

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    loss = sum(m.square().sum() for m in compiled(**given))
    expected = sum(m.square().sum() for m in call(**given))
    torch.testing.assert_close(loss, expected)
    found, want = (torch.autograd.grad(m, list(given.values())) for m in (loss, expected))  # type: ignore[arg-type]
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other)
    torch.compiler.reset()


def test_shapes_on_meta():
    given = {name: value.detach().to("meta") for name, value in make(30, "grouped").items()}
    y, last = selective_scan(**given, delta_softplus=True, return_last_state=True)
    assert y.is_meta
    assert (y.shape, last.shape) == (given["u"].shape, (2, 6, 3))


# Refusals


@pytest.mark.parametrize(
    ("name", "value", "error", "says"),
    [
        ("u", torch.zeros(2, 6), InvalidValue, r"u has shape \(2, 6\).*\(batch, D, L\)"),
        ("u", torch.zeros(2, 6, 0), InvalidValue, r"u has shape \(2, 6, 0\).*L >= 1"),
        ("A", torch.zeros(5, 3), InvalidValue, r"A has shape \(5, 3\).*D=6"),
        ("B", torch.zeros(2, 4, 3, 8), InvalidValue, r"B has 4 groups.*divide D=6"),
        ("B", torch.zeros(2, 3, 7), InvalidValue, r"B has shape \(2, 3, 7\).*L=8"),
        ("C", torch.zeros(3, 3), InvalidValue, r"C has shape \(3, 3\).*D=6"),
        ("delta", torch.zeros(2, 6, 9), InvalidValue, r"delta has shape \(2, 6, 9\): it must be \(2, 6, 8\)"),
        ("z", torch.zeros(2, 5, 8), InvalidValue, "z has shape"),
        ("D", torch.zeros(3), InvalidValue, r"D has shape \(3,\): it must be \(6,\)"),
        ("delta_bias", torch.zeros(3), InvalidValue, "delta_bias has shape"),
        ("initial_state", torch.zeros(2, 6, 4), InvalidValue, r"initial_state has shape .* \(2, 6, 3\)"),
        ("initial_state", torch.zeros(2, 6, 3).half(), InvalidType, r"initial_state must be torch\.float32"),
        ("seq_idx", torch.zeros(2, 9), InvalidValue, "seq_idx has shape"),
    ],
)
def test_refuses_what_does_not_fit(name: str, value: Tensor, error: type[Exception], says: str):
    given = {key: tensor.detach().float() for key, tensor in make(8).items()}
    with pytest.raises(error, match=says):
        selective_scan(**(given | {name: value}))


def test_groups_of_both_maps_must_agree():
    given = {key: tensor.detach() for key, tensor in make(8).items()}
    given |= {"B": torch.zeros(2, 2, 3, 8), "C": torch.zeros(2, 3, 3, 8)}
    with pytest.raises(InvalidValue, match=r"C has 3 groups.*must agree"):
        selective_scan(**given)


def test_complex_maps_are_twice_as_long():
    given = {key: tensor.detach() for key, tensor in make(8, number=True).items()}
    with pytest.raises(InvalidValue, match="2 L=16"):
        selective_scan(**(given | {"B": given["B"][..., :8]}))


def test_a_step_refuses_more_than_one_token():
    state, A, B = torch.zeros(2, 6, 3), -torch.ones(6, 3), torch.zeros(2, 3)
    with pytest.raises(InvalidValue, match=r"x has shape \(2, 6, 2\): a step takes one token of shape \(2, 6\)"):
        selective_state_update(state, torch.zeros(2, 6, 2), torch.zeros(2, 6, 2), A, B, B)
    with pytest.raises(InvalidType, match="state must be float32"):
        selective_state_update(state.half(), torch.zeros(2, 6), torch.zeros(2, 6), A, B, B)
    with pytest.raises(InvalidValue, match="B has 4 groups"):
        selective_state_update(state, torch.zeros(2, 6), torch.zeros(2, 6), A, torch.zeros(2, 4, 3), B)
