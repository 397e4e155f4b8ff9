"""SSD: the chunked form against the loop, the dense masked product and the selective scan; the gated norm after it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

from foveate.errors import InvalidType, InvalidValue
from foveate.measure.flops import count_flops
from foveate.ops import backend, native, ssd_chunks
from foveate.ops import gated_rms_norm as norm_module
from foveate.ops.backend import current_backend
from foveate.ops.gated_rms_norm import gated_rms_norm
from foveate.ops.selective_scan import selective_scan, selective_state_update
from foveate.ops.ssd import ssd, ssd_discrete

Q = 8
LENGTHS = (1, Q - 1, Q, Q + 1, 3 * Q + 5)


@pytest.fixture(params=["torch", "native"], autouse=True)
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs with each of the fast forms."""
    if request.param == "native" and not native.AVAILABLE:
        pytest.skip("the native kernels are not built here")
    with backend(request.param):
        yield request.param


def make(
    length: int, heads: int = 4, groups: int = 2, *, strength: float = 1.0, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    given = {
        "x": draw(2, length, heads, 3),
        "dt": draw(2, length, heads),
        "A": -strength * (0.1 + draw(heads).abs()),
        "B": draw(2, length, groups, 5),
        "C": draw(2, length, groups, 5),
        "D": draw(heads),
        "z": draw(2, length, heads, 3),
        "dt_bias": draw(heads),
        "initial_states": draw(2, heads, 3, 5),
    }
    return {name: value.requires_grad_() for name, value in given.items()}


def answer(given: dict[str, Tensor], name: str = "", **options: object) -> dict[str, Tensor]:
    """Output, final states, and the gradient of every argument of a loss that reads both."""
    options = {"chunk_size": Q, "dt_softplus": True, **options}
    with backend(name or current_backend()):
        y, last = ssd(**given, return_final_states=True, **options)  # type: ignore[arg-type]
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    loss = (y * weights).sum() + last.square().sum()
    gradients = torch.autograd.grad(loss, list(given.values()))
    return {"y": y, "last": last, **dict(zip(given, gradients, strict=True))}


def agree(found: dict[str, Tensor], expected: dict[str, Tensor], limit: float = 1e-10) -> None:
    for name, want in expected.items():
        assert found[name].isfinite().all(), name
        error = (found[name] - want).abs().max() / want.abs().max().clamp(min=1e-6)
        assert error <= limit, f"{name} deviates by {error:.2e}"


# What it computes


def test_is_the_dense_masked_product():
    given = make(64)
    B, C = (given[n].repeat_interleave(2, dim=2) for n in ("B", "C"))
    dt = F.softplus(given["dt"] + given["dt_bias"])
    a = dt * given["A"]
    mask = torch.zeros(2, 4, 64, 64, dtype=a.dtype)
    for i, j in itertools.product(range(64), range(64)):
        if j <= i:
            mask[:, :, i, j] = a[:, j + 1 : i + 1].sum(1).exp()
    scores = torch.einsum("bihn,bjhn->bhij", C, B) * mask
    y = torch.einsum("bhij,bjhp->bihp", scores, given["x"] * dt[..., None])
    start = torch.exp(a.cumsum(1))[..., None] * torch.einsum("bihn,bhpn->bihp", C, given["initial_states"])
    y = (y + start + given["D"][:, None] * given["x"]) * F.silu(given["z"])
    for name in ("reference", ""):
        torch.testing.assert_close(answer(given, name)["y"], y, rtol=1e-10, atol=1e-10)


def test_is_the_selective_scan_with_shared_decays():
    given = make(3 * Q + 5)
    flat = {"u": given["x"], "z": given["z"]}
    flat = {name: value.flatten(2).mT for name, value in flat.items()}
    shared = {
        "delta": given["dt"].repeat_interleave(3, 2).mT,
        "A": given["A"].repeat_interleave(3)[:, None].expand(-1, 5),
        "B": given["B"].permute(0, 2, 3, 1),
        "C": given["C"].permute(0, 2, 3, 1),
        "D": given["D"].repeat_interleave(3),
        "delta_bias": given["dt_bias"].repeat_interleave(3),
        "initial_state": given["initial_states"].flatten(1, 2),
    }
    y, last = selective_scan(**flat, **shared, delta_softplus=True, return_last_state=True)
    found = answer(given)
    torch.testing.assert_close(found["y"].flatten(2).mT, y)
    torch.testing.assert_close(found["last"].flatten(1, 2), last)


@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (3, 1), (2, 2)])
@pytest.mark.parametrize("length", LENGTHS)
def test_chunks_equal_the_loop(length: int, heads: int, groups: int, monkeypatch: pytest.MonkeyPatch):
    given = make(length, heads, groups)
    bare = {name: given[name] for name in ("x", "dt", "A", "B", "C")}
    expected, expected_bare = answer(given, "reference"), answer(bare, "reference")
    for numbers in (1, 2 * heads * Q * (Q + 8) * 2, 2**19):  # a chunk, two chunks, everything at a time
        monkeypatch.setattr(ssd_chunks, "BLOCK_NUMBERS", numbers)
        agree(answer(given), expected)
        agree(answer(bare), expected_bare)


def test_chunk_size_does_not_change_the_result():
    given = make(50)
    expected = answer(given, chunk_size=64)
    for size in (1, 7, 25, 50):
        agree(answer(given, chunk_size=size), expected)


def test_strong_decay_stays_finite():
    # Log decays of several hundred in a chunk: differences of running sums would be noise, quotients would overflow.
    given = make(150, strength=100.0, dtype=torch.float32)
    found = answer(given, chunk_size=64)
    exact = answer({name: value.detach().double().requires_grad_() for name, value in given.items()}, "reference")
    agree(found, {name: value.float() for name, value in exact.items()}, 1e-5)
    assert found["A"].abs().max() > 0


def test_gradcheck():
    given = make(Q + 3, 2, 1)
    names = list(given)

    def call(*values: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(names, values, strict=True))
        return ssd(**named, chunk_size=4, dt_softplus=True, return_final_states=True)  # type: ignore[return-value]

    assert torch.autograd.gradcheck(call, list(given.values()), fast_mode=True)


@pytest.mark.parametrize("form", ["native"], indirect=True)
def test_the_kernel_gives_way_where_it_is_differentiated_twice():
    given = make(5, 2, 1)
    del given["D"]
    names = list(given)
    fixed = make(5, 2, 1)["D"].detach()

    def call(*values: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(names, values, strict=True))
        return ssd(**named, D=fixed, dt_softplus=True, return_final_states=True)  # type: ignore[return-value]

    assert torch.autograd.gradgradcheck(call, list(given.values()), fast_mode=True)


def test_skip_per_head_and_per_channel():
    given = make(9)
    wide = given | {"D": given["D"].detach()[:, None].expand(-1, 3).contiguous().requires_grad_()}
    one, other = answer(given), answer(wide)
    torch.testing.assert_close(one["y"], other["y"])
    torch.testing.assert_close(one["D"], other["D"].sum(1))


def test_step_sizes_are_limited():
    given = make(20)
    limited = answer(given, dt_limit=(0.3, 0.8))["y"]
    dt = F.softplus(given["dt"] + given["dt_bias"]).clamp(0.3, 0.8)
    plain = {name: value for name, value in given.items() if name != "dt_bias"} | {"dt": dt}
    torch.testing.assert_close(limited, ssd(**plain))
    assert not torch.allclose(limited, answer(given)["y"])


def test_discrete_form_takes_log_decays():
    given = make(20)
    dt = F.softplus(given["dt"])
    names = ("x", "B", "C", "initial_states")
    y, last = ssd_discrete(**{n: given[n] for n in names}, log_decay=dt * given["A"], dt=dt)
    multiplied = {n: given[n] for n in names} | {"x": given["x"] * dt[..., None]}
    y_too, last_too = ssd_discrete(**multiplied, log_decay=dt * given["A"])
    torch.testing.assert_close(y, y_too)
    torch.testing.assert_close(last, last_too)
    bare = {n: given[n] for n in (*names, "A")}
    torch.testing.assert_close(ssd(**bare, dt=dt), y)


# Gaps, documents, steps


def test_steps_of_zero_leave_the_state():
    given = make(20)
    y, last = ssd(**given, dt_softplus=True, return_final_states=True)
    longer = dict(given)
    for name in ("x", "z", "B", "C"):
        longer[name] = torch.cat((given[name], 100 * torch.randn_like(given[name])[:, :13]), 1)
    longer["dt"] = F.pad(given["dt"], (0, 0, 0, 13), value=float("-inf"))
    y_longer, last_longer = ssd(**longer, dt_softplus=True, return_final_states=True)
    torch.testing.assert_close(y_longer[:, :20], y)
    torch.testing.assert_close(last_longer, last)

    longer["dt"] = F.pad(given["dt"], (0, 0, 0, 13), value=0.5)  # real steps: the outputs hold, the state does not
    y_longer, last_longer = ssd(**longer, dt_softplus=True, return_final_states=True)
    torch.testing.assert_close(y_longer[:, :20], y)
    assert not torch.allclose(last_longer, last)


@pytest.mark.parametrize("name", ["reference", ""])
def test_documents_are_apart(name: str):
    # Borders inside a chunk, at a chunk's start, and one position after the other.
    borders, given = (0, 5, Q, Q + 1, Q + 2, 3 * Q + 3, 4 * Q), make(4 * Q)
    seq_idx = torch.zeros(2, 4 * Q, dtype=torch.long)
    for index, (start, stop) in enumerate(itertools.pairwise(borders)):
        seq_idx[:, start:stop] = index % 2
    packed, parts = answer(given, name, seq_idx=seq_idx), []
    for start, stop in itertools.pairwise(borders):
        part = {name: value.detach() for name, value in given.items()}
        part |= {name: part[name][:, start:stop] for name in ("x", "dt", "B", "C", "z")}
        if start:
            del part["initial_states"]
        parts.append(ssd(**part, dt_softplus=True, return_final_states=True))
    torch.testing.assert_close(packed["y"], torch.cat([y for y, _ in parts], 1))
    torch.testing.assert_close(packed["last"], parts[-1][1])
    assert all(packed[name].isfinite().all() for name in given)


def test_steps_equal_the_sequence():
    given = make(12)
    y, last = ssd(**given, dt_softplus=True, return_final_states=True)
    state = given["initial_states"]
    wide = {name: given[name][..., None].expand(-1, 3) for name in ("D", "dt_bias")}
    for t in range(12):
        out, state = selective_state_update(
            state,
            given["x"][:, t],
            given["dt"][:, t, :, None].expand(-1, -1, 3),
            given["A"][:, None, None].expand(-1, 3, 5),
            given["B"][:, t],
            given["C"][:, t],
            wide["D"],
            given["z"][:, t],
            wide["dt_bias"],
            dt_softplus=True,
        )
        torch.testing.assert_close(out, y[:, t])
    torch.testing.assert_close(state, last)


# Cost, dtypes, tools


@pytest.mark.parametrize("length", [1, 40, 64, 65, 300])
def test_flops_are_those_counted(length: int):
    def call() -> Tensor:
        maps = torch.empty(3, length, 2, 16)
        x, dt = torch.empty(3, length, 4, 8), torch.empty(3, length, 4)
        return ssd(x, dt, torch.empty(4), maps, maps, chunk_size=64)  # type: ignore[return-value]

    with torch.device("meta"), backend("torch"):
        assert count_flops(call) == ssd_chunks.ssd_flops(3, length, 4, 8, 2, 16, 64)


def test_half_precision_keeps_float32_states():
    given = {name: value.detach() for name, value in make(100, dtype=torch.float32).items()}
    half = {name: value.bfloat16() for name, value in given.items() if name in ("x", "B", "C", "z")}
    full = given | {name: value.float() for name, value in half.items()}
    y, last = ssd(**full, dt_softplus=True, return_final_states=True)
    half_y, half_last = ssd(**(given | half), dt_softplus=True, return_final_states=True)
    assert half_y.dtype == torch.bfloat16
    assert half_last.dtype == torch.float32
    torch.testing.assert_close(half_last, last)
    torch.testing.assert_close(half_y.float(), y, rtol=2e-2, atol=2e-2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ssd(**full, dt_softplus=True), y)


def test_the_compiled_op_is_sound(form: str):
    given = make(20, dtype=torch.float32)
    values = (*(given[n] for n in ("x", "dt", "dt", "B", "C")), None, given["initial_states"], None)
    values = (*values, 10) if form == "native" else (*values, 8, 2)
    opcheck(
        torch.ops.foveate.ssd_native.default if form == "native" else torch.ops.foveate.ssd.default,
        tuple(v.detach().requires_grad_() if isinstance(v, Tensor) else v for v in values),
    )


def test_compiles_as_one_graph():
    given = make(20, dtype=torch.float32)
    torch.compiler.reset()

    def call(**given: Tensor) -> Tensor:
        return ssd(**given, chunk_size=Q, dt_softplus=True)  # type: ignore[return-value]

    loss = torch.compile(call, backend="aot_eager", fullgraph=True)(**given).square().sum()
    expected = call(**given).square().sum()
    for one, other in zip(*(torch.autograd.grad(m, list(given.values())) for m in (loss, expected)), strict=True):
        torch.testing.assert_close(one, other)
    torch.compiler.reset()


# Refusals


@pytest.mark.parametrize(
    ("name", "value", "error", "says"),
    [
        ("x", torch.zeros(2, 8, 4), InvalidValue, r"x has shape \(2, 8, 4\).*\(batch, L, H, P\)"),
        ("x", torch.zeros(2, 0, 4, 3), InvalidValue, r"x has shape \(2, 0, 4, 3\).*L >= 1"),
        ("dt", torch.zeros(2, 8, 3), InvalidValue, r"dt has shape \(2, 8, 3\).*\(2, 8, 4\)"),
        ("A", torch.zeros(3), InvalidValue, r"A has shape \(3,\).*H=4"),
        ("B", torch.zeros(2, 8, 5), InvalidValue, r"B has shape \(2, 8, 5\).*\(batch, L, G, N\)"),
        ("C", torch.zeros(2, 8, 2, 6), InvalidValue, r"C has shape .* that of B"),
        ("D", torch.zeros(3), InvalidValue, r"D has shape \(3,\): it must be \(4,\) or \(4, 3\)"),
        ("initial_states", torch.zeros(2, 4, 3, 6), InvalidValue, r"initial_states has shape .* \(2, 4, 3, 5\)"),
        ("initial_states", torch.zeros(2, 4, 3, 5).half(), InvalidType, r"initial_states must be torch\.float32"),
        ("seq_idx", torch.zeros(2, 9), InvalidValue, r"seq_idx has shape .* \(2, 8\)"),
        ("chunk_size", 0, InvalidValue, "chunk_size=0"),
        ("chunk_size", 8.0, InvalidValue, r"chunk_size=8\.0"),
        ("dt_limit", (1.0, 0.5), InvalidValue, r"dt_limit=\(1\.0, 0\.5\)"),
        ("dt_limit", float("nan"), InvalidValue, "dt_limit=nan"),
    ],
)
def test_refuses_what_does_not_fit(name: str, value: object, error: type[Exception], says: str):
    given: dict[str, object] = {key: tensor.detach().float() for key, tensor in make(8).items()}
    with pytest.raises(error, match=says):
        ssd(**(given | {name: value}))  # type: ignore[arg-type]


def test_groups_must_divide_heads():
    given = {key: tensor.detach() for key, tensor in make(8).items()}
    given |= {"B": torch.zeros(2, 8, 3, 5), "C": torch.zeros(2, 8, 3, 5)}
    with pytest.raises(InvalidValue, match="B has 3 groups: they must divide H=4"):
        ssd(**given)


# The gated norm


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shape", [(2, 6), (2, 45, 6), (2, 3, 5, 6)])
def test_gated_norm_equals_its_definition(shape: tuple[int, ...], groups: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(norm_module, "BLOCK_NUMBERS", 2 * 6 * 16)  # three blocks
    torch.manual_seed(0)
    y, z = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    results = []
    for form in ("reference", "torch"):
        with backend(form):
            out = gated_rms_norm(y, z, weight, groups)
        results.append((out, *torch.autograd.grad(out.pow(3).sum(), (y, z, weight))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    gated = (y * z * torch.sigmoid(z)).unflatten(-1, (groups, -1))
    by_torch = F.rms_norm(gated, gated.shape[-1:], eps=1e-5).flatten(-2) * weight
    torch.testing.assert_close(results[0][0], by_torch)


def test_gated_norm_tools_and_refusals():
    y, z, weight = torch.randn(2, 5, 6), torch.randn(2, 5, 6), torch.randn(6)
    given = tuple(v.requires_grad_() for v in (y, z, weight))
    opcheck(torch.ops.foveate.gated_rms_norm.default, (*given, 2, 1e-5))
    assert gated_rms_norm(y.bfloat16(), z.bfloat16(), weight).dtype == torch.bfloat16
    with pytest.raises(InvalidValue, match=r"groups=4 is not possible: it must divide the 6 channels"):
        gated_rms_norm(y, z, weight, 4)
    with pytest.raises(InvalidValue, match="z has shape"):
        gated_rms_norm(y, z[:, :4], weight)
    with pytest.raises(InvalidValue, match="weight has shape"):
        gated_rms_norm(y, z, weight[:5])
