"""The benchmark: what is timed and what is not, in which order, and what the record says; with cases made up here."""

from __future__ import annotations

import copy
import itertools
import json
import os
import types
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from foveate.bench import agreement, page, pinning, runner, tables
from foveate.bench.cases import Case, Problem, all_cases, choose_cases
from foveate.bench.numbers import ratio, summary
from foveate.bench.peers import Contender, Peer, Unfit, all_peers
from foveate.bench.pinning import Others, pinned, refuse_if_busy
from foveate.bench.results import sentence, slower_than_a_peer, with_growth
from foveate.bench.settings import BenchSettings
from foveate.cli.main import app
from foveate.errors import FoveateError, InvalidValue, UnknownName
from foveate.measure import latency
from foveate.measure.cost import Cost
from foveate.measure.machine import usable_cores
from foveate.measure.roofline import Peaks
from foveate.ops.backend import current_backend
from foveate.registry import entries

QUICK = BenchSettings(threads=(1,), seconds=0.01, busy=True)


@pytest.fixture(autouse=True, scope="module")
def no_waiting() -> Iterator[None]:
    """Nobody looks long at the load, and the machine's peaks are made up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pinning, "LOOK_SECONDS", 0.01)
        patch.setattr(runner, "measure_peaks", lambda threads, seconds: Peaks(threads, 1e11, 1e10, 1e10))
        yield


def double(x: Tensor) -> Tensor:
    return x * 2


def fake(
    name: str = "doubling",
    ours: Callable[..., Tensor] = double,
    reference: Callable[..., Tensor] | None = double,
    sizes: tuple[int, ...] = (16, 64, 256),
    **more: Any,
) -> Case:
    def make(size: int) -> Problem:
        cost = Cost(elementwise=size, moved_bytes=8 * size)
        return Problem(inputs={"x": torch.randn(1, size)}, ours=ours, reference=reference, cost=cost)

    return Case(name=name, kind="op", make=make, about="a doubling", sizes=sizes, unit="tokens", **more)


def fake_peer(name: str, call: Callable[..., Tensor], same: bool = True, package: str = "", why: str = "") -> Peer:
    return Peer(name, ("doubling*",), package, same, lambda _: Contender(call, no_backward=why))


def run(*cases: Case, settings: BenchSettings = QUICK, peers: tuple[Peer, ...] = (), **more: Any) -> dict[str, Any]:
    return runner.run_benchmark(cases, settings, peers=peers, **more)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    peers = (
        fake_peer("adder", lambda x: x + x),
        fake_peer("tripler", lambda x: x * 3),
        fake_peer("other", lambda x: x.exp(), same=False, why="for a test"),
        fake_peer("ghost", double, package="no_such_package_at_all"),
    )
    return run(fake(), settings=QUICK, peers=peers, command="foveate bench doubling <script>")


def contenders(record: dict[str, Any], which: str = "forward") -> set[str]:
    return {row["contender"] for row in record["rows"] if row["pass"] == which}


# ----- what is timed


def test_a_peer_is_timed_if_it_agrees(record: dict[str, Any]):
    assert contenders(record) == {"foveate", "adder", "other"}
    reasons = {item["contender"]: item["reason"] for item in record["left_out"]}
    assert reasons["tripler"] == "output and gradients differ from the definition by 0.5 of the largest number"
    assert reasons["ghost"] == "no_such_package_at_all is not installed"


def test_a_peer_without_a_backward_pass_is_timed_forward(record: dict[str, Any]):
    assert contenders(record, "forward+backward") == {"foveate", "adder"}
    assert {"case": "doubling", "contender": "other", "reason": "forward only: for a test"} in record["left_out"]


def test_every_size_and_pass_has_its_row(record: dict[str, Any]):
    places = [(r["size"], r["pass"]) for r in record["rows"] if r["contender"] == "foveate"]
    assert places == [(s, p) for s in (16, 64, 256) for p in ("forward", "forward+backward")]
    for row in record["rows"]:
        assert row["calls"] >= runner.FEWEST_CALLS
        assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"]
        assert row["ratio_low"] <= row["ratio_high"]
        assert row["ratio"] == 1 or row["contender"] != "foveate"


@pytest.mark.parametrize(
    ("ours", "why"),
    [
        (lambda x: x * 2.1, "differ from the definition by 0.05"),
        (lambda x: x * torch.nan, "differ from the definition by inf"),
        (lambda x: (x * 2)[:, :1], "differ from the definition by inf"),
        (lambda x: x @ x, "it fails: RuntimeError: "),
    ],
    ids=["wrong", "nan", "shape", "raises"],
)
def test_an_op_that_fails_its_tests_is_not_timed(ours: Callable[..., Tensor], why: str):
    found = run(fake(ours=ours), fake("doubling_right"), peers=(fake_peer("adder", lambda x: x + x),))
    assert {row["case"] for row in found["rows"]} == {"doubling_right"}
    (told,) = [item["reason"] for item in found["left_out"] if item["contender"] == "foveate"]
    assert why in told


def test_a_wrong_gradient_is_found():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0] * 3

    found = run(fake(ours=lambda x: Wrong.apply(x)))
    assert not found["rows"]
    forward_only = run(fake(ours=lambda x: Wrong.apply(x), passes=("forward",)))
    assert contenders(forward_only) == {"foveate"}


def test_agreement_is_tested_where_the_definition_can_run():
    case = fake(sizes=(16, 64, 256), reference_up_to=100)
    assert case.check_size((16, 64, 256)) == 64
    assert case.check_size((128, 256)) == 100
    seen: list[tuple[str, int]] = []

    def reference(x: Tensor) -> Tensor:
        seen.append((current_backend(), x.shape[1]))
        return x * 2

    run(fake(reference=reference, reference_up_to=100, forms=("reference",), passes=("forward",)))
    assert {size for _, size in seen} == {16, 64}


def test_without_a_definition_the_reference_backend_is_it():
    seen: list[str] = []

    def ours(x: Tensor) -> Tensor:
        seen.append(current_backend())
        return x * 2

    found = run(fake(ours=ours, reference=None, forms=("torch",), sizes=(8,), passes=("forward",)))
    assert {"auto", "reference", "torch"} <= set(seen)
    assert contenders(found) == {"foveate", "foveate, torch form"}


def test_a_case_that_cannot_be_built_is_told():
    def make(size: int) -> Problem:
        raise RuntimeError("no such thing\nsecond line")

    broken = Case(name="broken", kind="op", make=make, about="", sizes=(4,))
    found = run(broken, fake())
    assert found["left_out"] == [
        {"case": "broken", "contender": "foveate", "reason": "it cannot be built: RuntimeError: no such thing"}
    ]
    assert contenders(found) == {"foveate"}


def test_a_peer_that_cannot_do_a_size_is_told():
    def make(problem: Problem) -> Contender:
        if problem.inputs["x"].shape[1] > 100:
            raise Unfit("too large")
        return Contender(double)

    found = run(fake(sizes=(16, 256), passes=("forward",)), peers=(Peer("small", ("doubling",), "", True, make),))
    assert [r["size"] for r in found["rows"] if r["contender"] == "small"] == [16]
    assert {item["reason"] for item in found["left_out"]} == {"too large", "too large (256 tokens)"}


def test_what_takes_too_long_is_left_out():
    import time

    def slow(x: Tensor) -> Tensor:
        time.sleep(0.02)
        return x * 2

    settings = BenchSettings(threads=(1,), seconds=0.01, busy=True, limit=0.01, passes=("forward",))
    found = run(fake(sizes=(8,)), settings=settings, peers=(fake_peer("slow", slow),))
    assert contenders(found) == {"foveate"}
    assert found["left_out"][0]["reason"] == "one call takes 0 s (8 tokens, forward)"


def test_contenders_take_turns(monkeypatch: pytest.MonkeyPatch):
    ticks = itertools.count()  # a clock of its own: a busy machine would cut slices short
    monkeypatch.setattr(latency, "time", types.SimpleNamespace(perf_counter=lambda: 1e-3 * next(ticks)))
    order: list[str] = []

    def call(name: str) -> Callable[..., Tensor]:
        def run(x: Tensor) -> Tensor:
            order.append(name)
            return x * 2

        return run

    run(
        fake(ours=call("o"), sizes=(8,), passes=("forward",)),
        settings=BenchSettings(threads=(1,), seconds=0.05, busy=True),
        peers=(fake_peer("p", call("p")), fake_peer("q", call("q"))),
    )
    changes = sum(one != other for one, other in itertools.pairwise(order))
    assert changes > 3 * latency.ROUNDS  # three contenders; one after the other there would be a dozen


def test_parameters_are_differentiated_and_the_roof_is_told():
    layer = nn.Linear(8, 8)

    def make(size: int) -> Problem:
        cost = Cost(flops=2 * size * 64, moved_bytes=4 * (64 + 16 * size))
        inputs = {"input": torch.randn(size, 8)}
        return Problem(inputs=inputs, ours=layer, reference=layer, module=layer, cost=cost)

    found = run(Case(name="layer", kind="op", make=make, about="", sizes=(4,)))
    assert layer.weight.grad is None  # nothing is accumulated
    forward, backward = found["rows"]
    assert forward["bound"] in ("gemm", "memory")
    assert 0 < forward["roof_share"] < 10
    assert forward["flops"] == 512
    assert "bound" not in backward
    problem = make(4)
    _, leaves = agreement.trainable(problem, agreement.our_contenders(problem, ())["foveate"])
    assert len(leaves) == 3


def test_threads_run_one_after_the_other_on_pinned_cores():
    seen: list[tuple[int, int]] = []

    def ours(x: Tensor) -> Tensor:
        if torch.is_inference_mode_enabled():
            seen.append((torch.get_num_threads(), len(os.sched_getaffinity(0))))
        return x * 2

    cores = min(2, usable_cores())
    counts = (1, cores) if cores > 1 else (1,)
    before = os.sched_getaffinity(0)
    found = run(
        fake(ours=ours, sizes=(8,), passes=("forward",)),
        settings=BenchSettings(threads=counts, seconds=0.01, busy=True),
    )
    assert [r["threads"] for r in found["rows"]] == list(counts)
    assert list(dict.fromkeys(seen)) == [(n, n) for n in counts]
    assert os.sched_getaffinity(0) == before
    assert set(found["peaks"]) == {str(n) for n in counts}


# ----- refusals


def test_a_busy_machine_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Others, "percent", lambda self: 57.0)
    with pytest.raises(InvalidValue, match=r"the machine is 57 % busy with other work, .* with --busy"):
        refuse_if_busy()
    timed: list[int] = []
    with pytest.raises(InvalidValue, match="57 % busy"):
        run(fake(ours=lambda x: timed.append(1) or x), settings=BenchSettings(threads=(1,), seconds=0.01))  # type: ignore[func-returns-value]
    assert not timed
    found = run(fake(sizes=(8,)))
    assert found["busy"] == {"before": 57.0, "during": 57.0, "allowed": pinning.BUSY, "measured_anyway": True}
    assert tables.first_words(found)[:2] == [
        "The machine was 57 % busy with other work: these times are not to be trusted.",
        "Others used 57 % of the machine meanwhile: ratios hold better than times.",
    ]
    monkeypatch.setattr(Others, "percent", lambda self: 3.0)
    assert refuse_if_busy() == 3.0
    assert not run(fake(sizes=(8,)))["busy"]["measured_anyway"]


def test_own_work_is_not_others_work():
    others = Others()
    x = torch.randn(256, 256)
    for _ in range(50):
        x = torch.mm(x, x).clamp(-1, 1)
    assert 0 <= others.percent() <= 100


def test_pinning_is_refused_where_there_are_too_few_cores():
    with pytest.raises(InvalidValue, match="threads=0 is not possible"), pinned(0):
        pass
    with (
        pytest.raises(InvalidValue, match=r"threads=4096 is not possible: this process may use \d+ cores"),
        pinned(4096),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": (4096,)}, r"threads=4096 is not possible: this process may use \d+ cores"),
        ({"threads": ()}, "at least one is needed"),
        ({"seconds": 0}, "seconds=0 is not possible: a positive number of seconds"),
        ({"limit": -1}, "limit=-1 is not possible"),
        ({"sizes": (4, 0)}, "sizes=0 is not possible: a size is a positive whole number"),
        ({"passes": ("backward",)}, "unknown pass 'backward'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(FoveateError, match=message):
        BenchSettings(**options)


# ----- figures


def test_summary_and_ratio():
    assert summary([0.001, 0.002, 0.003, 0.004, 0.005]) == pytest.approx(
        {"median_ms": 3, "low_ms": 2, "high_ms": 4, "calls": 5}
    )
    middle, low, high = ratio([2.0, 2.1, 1.9] * 5, [1.0, 1.05, 0.95] * 5)
    assert middle == pytest.approx(2)
    assert low < 2 < high
    assert ratio([2.0] * 5000, [1.0] * 5000) == (2.0, 2.0, 2.0)
    assert ratio([1.0, 2.0, 4.0], [1.0, 3.0]) == ratio([1.0, 2.0, 4.0], [1.0, 3.0])  # seeded


def row(contender: str, size: int, ms: float, ours: bool = False, same: bool = True, **more: Any) -> dict[str, Any]:
    return {
        "case": "a", "contender": contender, "size": size, "unit": "tokens", "pass": "forward", "threads": 1,
        "ours": ours, "same_function": same, "median_ms": ms, "ratio_high": 0.5, "peak_bytes": 8 * size, **more,
    }  # fmt: skip


def test_growth_is_fitted_to_the_largest_sizes_in_tokens():
    rows = [row("foveate", n, 5.0 if n < 30 else n**2 / 1000, ours=True) for n in (10, 20, 40, 80, 160, 320)]
    (found,) = with_growth(rows, {"a": 1})
    assert found["time"] == pytest.approx(2)
    assert found["memory"] == pytest.approx(1)
    assert found["sizes"] == [40, 80, 160, 320]
    (image,) = with_growth(rows, {"a": 2})  # sizes are edges
    assert image["time"] == pytest.approx(1)
    assert with_growth(rows[:1], {}) == []
    (unknown,) = with_growth([{**r, "peak_bytes": None} for r in rows], {})
    assert unknown["memory"] is None


def test_faster_peers_are_found_where_they_take_a_millisecond():
    rows = [
        row("foveate", 1, 4.0, ours=True),
        row("fast", 1, 2.0),
        row("noise", 1, 3.9),
        row("foveate, torch form", 1, 1.5, ours=True),
        row("another", 1, 1.0, same=False, ratio_high=1.2),
        row("foveate", 2, 0.9, ours=True),
        row("tiny", 2, 0.5),
    ]
    found = slower_than_a_peer(rows)
    assert [f["contender"] for f in found] == ["another", "fast"]
    assert sentence(found[0]) == (
        "a at 1 tokens, forward, 1 thread: another, which computes something else, is 4.00 times as fast, within the "
        "noise of this run."
    )
    assert sentence(found[1]) == "a at 1 tokens, forward, 1 thread: fast is 2.00 times as fast."


# ----- the record, its tables and its page


def test_the_record_survives_json(record: dict[str, Any]):
    again = json.loads(json.dumps(record, allow_nan=False))
    assert page.render(again) == page.render(record)
    assert tables.markdown(again) == tables.markdown(record)


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.rows = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.rows += tag == "tr"
        assert tag not in ("img", "link", "iframe"), "the page asks no network"

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def test_the_page_holds_every_number_and_its_charts(record: dict[str, Any]):
    html = page.render(record)
    seen = Page(html)
    assert seen.rows >= len(record["rows"]) + len(record["growth"])
    assert seen.tags.count("svg") >= 2 + 1  # a chart for each pass, and the brand
    assert "doubling <script>" in seen.text  # the command, escaped
    assert "doubling <script>" not in html
    for contender in ("adder", "other *", "tripler in doubling: output and gradients differ"):
        assert contender in seen.text
    assert "http" not in html.replace("http-equiv", "")


def test_slower_stands_first(record: dict[str, Any]):
    slow = copy.deepcopy(record)
    slow["slower"] = slower_than_a_peer([row("foveate", 1, 4.0, ours=True), row("fast", 1, 2.0)])
    words, html = "fast is 2.00 times as fast.", page.render(slow)
    assert html.index(words) < html.index('id="charts"') < html.index('id="table"')
    told = tables.markdown(slow)
    assert told.index(words) < told.index("## doubling")
    assert "A peer is faster in 1 of" in page.render(slow)


def test_markdown_has_the_command_the_machine_and_the_tables(record: dict[str, Any]):
    told = tables.markdown(record)
    assert "Made by `foveate bench doubling <script>`" in told
    assert record["machine"]["cpu"] in told
    assert "| forward | adder | 1 | 256 |" in told
    assert "## Growth" in told
    assert "tripler in doubling: output and gradients differ" in told


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_terminal_is_not_overrun(record: dict[str, Any], width: int):
    from rich.console import Console

    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(tables.terminal(record, width))
    lines = console.export_text().splitlines()
    assert max(len(line) for line in lines) <= width
    assert any("times ours" in line for line in lines)
    assert any("quartiles" in line for line in lines) == (width == 200)


# ----- what is registered, and the command


def test_every_case_is_whole():
    cases = all_cases()
    names = [c.name for c in cases]
    assert len(set(names)) == len(names)
    assert {e.name for e in entries("mixer")} <= set(names)
    for case in cases:
        assert case.about
        assert case.sizes == tuple(sorted(case.sizes))
    assert {p.name for p in all_peers()} >= {"SDPA", "flex attention", "mambapy MambaBlock", "natten"}
    served = [c.name for c in cases if any(p.serves(c) for p in all_peers())]
    assert {"selective_scan", "causal_conv1d", "linear_attention", "mamba", "mamba2", "softmax_core"} <= set(served)


@pytest.mark.parametrize("name", ["selective_scan", "causal_conv1d", "linear_attention", "softmax_core", "gated_conv"])
def test_real_cases_agree_and_are_timed(name: str):
    settings = BenchSettings(sizes=(32,), threads=(1,), seconds=0.01, busy=True)
    found = run(*choose_cases([name]), settings=settings, peers=tuple(p for p in all_peers() if "flex" not in p.name))
    assert {"foveate"} <= contenders(found, "forward+backward")
    assert not [x for x in found["left_out"] if "differ" in x["reason"] or "fails" in x["reason"]]


def test_models_are_timed():
    settings = BenchSettings(sizes=(96,), threads=(1,), seconds=0.01, busy=True, passes=("forward",))
    found = run(*choose_cases(["dlinear"]), settings=settings)
    assert [r["contender"] for r in found["rows"]] == ["foveate"]
    assert found["rows"][0]["flops"] > 0


def test_unknown_names_are_told():
    with pytest.raises(UnknownName, match="unknown benchmark 'selective_scam': did you mean 'selective_scan'"):
        choose_cases(["selective_scam"])
    with pytest.raises(UnknownName, match="unknown kind 'layer'"):
        choose_cases(kind="layer")
    assert {c.kind for c in choose_cases(kind="op")} == {"op"}


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


def test_the_command_writes_record_page_and_markdown(tmp_path: Path):
    file = tmp_path / "results.md"
    options = ["--sizes", "16,32", "--threads", "1", "--seconds", "0.01", "--busy", "--no-peers", "--json"]
    made = invoke("causal_conv1d", *options, "--out", str(tmp_path / "out"), "--markdown", str(file))
    assert made.exit_code == 0, made.output
    found = json.loads(made.stdout)
    assert found == json.loads((tmp_path / "out" / "bench.json").read_text())
    assert {r["size"] for r in found["rows"]} == {16, 32}
    assert "<svg" in (tmp_path / "out" / "bench.html").read_text()
    assert "## causal_conv1d" in file.read_text()


def test_the_command_lists_and_refuses(tmp_path: Path):
    listed = json.loads(invoke("--list", "--json").stdout)
    assert "selective_scan" in [b["name"] for b in listed["benchmarks"]]
    assert "selective_scan" in invoke("--list").stdout
    for arguments, message in (
        (["selective_scam"], "unknown benchmark"),
        (["--kind", "layer"], "unknown kind"),
        (["--sizes", "a,b"], "sizes='a,b' is not a list of whole numbers"),
        (["--threads", "0"], "threads=0 is not possible"),
        (["--passes", "sideways"], "unknown pass 'sideways'"),
        (["--markdown", str(tmp_path)], "it is a folder"),
    ):
        failed = invoke(*arguments)
        assert isinstance(failed.exception, FoveateError), arguments
        assert message in str(failed.exception)
