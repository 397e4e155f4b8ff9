"""Latency, memory, FLOPs and machine facts: measured, not assumed."""

from __future__ import annotations

import gc
import itertools
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from foveate.errors import InvalidValue
from foveate.measure.allocated import peak_allocated_bytes
from foveate.measure.flops import count_flops, training_flops
from foveate.measure.isolated import allocated_bytes_of, peak_bytes_of
from foveate.measure.latency import MINIMUM_CALLS, measure_latency, quantile
from foveate.measure.machine import machine_facts, usable_cores, versions
from foveate.measure.memory import peak_resident_bytes, resident_bytes, saved_bytes
from foveate.pages.figures import format_bytes


class Clock:
    """A clock that only the timed calls move, so that nothing here depends on how busy the machine is."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def call(self, name: str, seconds: float, cold: float = 0.0) -> Callable[[], None]:
        """A call that takes ``seconds``, and ``cold`` more right after another system's."""

        def run() -> None:
            self.now += seconds + (cold if self.order[-1:] != [name] else 0.0)
            self.order.append(name)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("foveate.measure.latency.time", clock)
    return clock


def test_latency_of_known_durations(clock: Clock):
    made = measure_latency({"short": clock.call("short", 1e-3), "long": clock.call("long", 4e-3)}, seconds=0.3)
    assert made["short"].median == pytest.approx(1.0)
    assert made["long"].as_json() == pytest.approx({"median": 4.0, "low": 4.0, "high": 4.0})
    assert 200 <= made["short"].calls <= 300
    assert 50 <= made["long"].calls <= 75


def test_low_and_high_are_a_tenth_from_the_ends(clock: Clock):
    ticks = itertools.count()

    def call() -> None:
        clock.now += 1e-3 * (next(ticks) % 100 + 1)

    made = measure_latency({"a": call}, seconds=60.0, warmup=0)["a"]
    assert (made.low, made.median, made.high) == pytest.approx((11, 50.5, 90), abs=1.5)


def test_systems_take_turns_so_that_a_drift_hits_all(clock: Clock):
    measure_latency({name: clock.call(name, 1e-3) for name in "abc"}, seconds=0.12, warmup=0)
    order = "".join(clock.order)
    assert max(order.index(name) for name in "abc") < len(order) / 10
    assert min(order.rindex(name) for name in "abc") > 9 * len(order) / 10


def test_the_first_call_after_another_system_is_not_counted(clock: Clock):
    made = measure_latency({name: clock.call(name, 1e-3, cold=5e-3) for name in "ab"}, seconds=0.12)
    assert all(latency.high == pytest.approx(1.0) for latency in made.values())


def test_slow_systems_are_called_a_few_times_only(clock: Clock):
    made = measure_latency({"slow": clock.call("slow", 2.0), "fast": clock.call("fast", 1e-3)}, seconds=0.1, warmup=1)
    assert made["slow"].calls == MINIMUM_CALLS
    assert clock.order.count("slow") == MINIMUM_CALLS + 1


def test_warm_up_is_not_counted(clock: Clock):
    durations = iter([5.0, 5.0] + [1e-3] * 10_000)

    def call() -> None:
        clock.now += next(durations)

    assert measure_latency({"a": call}, seconds=0.1, warmup=2)["a"].high == pytest.approx(1.0)


def test_latency_restores_threads_collector_and_gradients():
    threads, seen = torch.get_num_threads(), []

    def call() -> None:
        seen.append((torch.get_num_threads(), gc.isenabled(), torch.is_inference_mode_enabled()))

    measure_latency({"a": call}, seconds=0.001, threads=1)
    assert set(seen) == {(1, False, True)}
    assert (torch.get_num_threads(), gc.isenabled(), torch.is_inference_mode_enabled()) == (threads, True, False)

    def broken() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        measure_latency({"a": broken})
    assert gc.isenabled()


def test_latency_refuses_what_is_impossible():
    with pytest.raises(InvalidValue, match="seconds=0 is not possible: the time for each system must be positive"):
        measure_latency({}, seconds=0)
    with pytest.raises(InvalidValue, match="threads=0 is not possible: at least one thread"):
        measure_latency({}, threads=0)
    with pytest.raises(InvalidValue, match="warmup=-1 is not possible"):
        measure_latency({}, warmup=-1)


def test_quantiles():
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.5
    assert quantile([1.0, 2.0, 3.0], 1.0) == 3.0
    assert quantile([7.0], 0.1) == 7.0


def test_peak_memory_keeps_what_was_freed():
    before = peak_resident_bytes()
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    held = resident_bytes()
    del block
    assert peak_resident_bytes() >= held - 2**20
    assert peak_resident_bytes() >= before


def test_bytes_in_words():
    told = [format_bytes(n) for n in (0, 512, 1536, 23.4 * 2**20, 1023 * 2**20, 66.5e9, 3 * 2**40, 5000 * 2**40)]
    assert told == ["0 B", "512 B", "1.50 KiB", "23.4 MiB", "1.00 GiB", "61.9 GiB", "3.00 TiB", "5000 TiB"]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_saved_bytes_count_every_storage_once_and_no_parameter(device: str):
    x = torch.zeros(10, 16, device=device, requires_grad=True)
    # Of x @ W.T + b the backward pass keeps x; of the ReLU its output, which the second layer keeps as well.
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).to(device)
    assert saved_bytes(net, x) == 4 * (10 * 16 + 10 * 32)


def test_saved_bytes_see_what_a_view_holds_on_to():
    class Slice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * 2)[:, :1].square()

    x = torch.zeros(10, 16, requires_grad=True)
    assert saved_bytes(Slice(), x) == 4 * 10 * 16
    with torch.no_grad():  # measured with gradients, whatever the caller's mode
        assert saved_bytes(Slice(), x) == 4 * 10 * 16


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_flops_of_matmuls_convolutions_and_attention(device: str):
    linear = nn.Linear(16, 32, device=device)
    assert count_flops(lambda: linear(torch.zeros(10, 16, device=device))) == 2 * 10 * 16 * 32
    convolution = nn.Conv1d(3, 5, 7, padding=3, device=device)
    assert count_flops(lambda: convolution(torch.zeros(2, 3, 20, device=device))) == 2 * 2 * 20 * 3 * 5 * 7
    q = torch.zeros(1, 2, 8, 4, device=device)
    attention = count_flops(lambda: q @ q.transpose(-1, -2) @ q)
    assert attention == 2 * 2 * 2 * 8 * 8 * 4
    assert count_flops(lambda: torch.zeros(3, device=device).exp()) == 0


def test_flops_of_training_are_three_times_those_of_a_linear_layer():
    linear = nn.Linear(16, 32, device="meta")
    x = torch.zeros(10, 16, device="meta")
    with torch.no_grad():  # measured with gradients, whatever the caller's mode
        assert training_flops(linear, x) == 3 * count_flops(lambda: linear(x))


def test_allocated_bytes_are_exact_and_those_at_once():
    def call() -> None:
        a = torch.ones(1 << 20)
        b = a + 1
        del a
        torch.empty(1 << 18).add_(b[: 1 << 18])

    assert peak_allocated_bytes(call) == pytest.approx(2 * 4 << 20, abs=64)  # the 1 is a tensor as well


def test_memory_of_work_in_a_process_of_its_own():
    setup = "a = torch.ones(1 << 20)"
    works = ["b = a + 1\nc = a + 2", "torch.zeros(3 << 20)"]
    assert allocated_bytes_of(works, setup) == pytest.approx([2 * 4 << 20, 3 * 4 << 20], abs=64)
    assert peak_bytes_of("b = torch.ones(16 << 20)") >= 4 * 16 << 20
    with pytest.raises(RuntimeError, match=r"the measured process failed: [\s\S]*no_such_name"):
        allocated_bytes_of(["no_such_name"])


def test_machine_facts_name_this_machine():
    facts = machine_facts()
    assert facts["cpu"]
    assert 1 <= facts["cores"] == usable_cores()
    assert facts["memory_bytes"] > 2**28
    assert facts["threads"] == torch.get_num_threads()
    assert set(facts) == {"cpu", "architecture", "cores", "memory_bytes", "os", "gpus", "threads"}


def test_versions():
    found = versions()
    assert found["torch"] == torch.__version__
    assert re.fullmatch(r"3\.\d+\.\d+.*", found["python"])
    assert set(found) == {"foveate", "python", "torch", "numpy"}
