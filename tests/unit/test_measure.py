"""Latency, memory, FLOPs and machine facts: measured, not assumed."""

from __future__ import annotations

import gc
import re
import time

import pytest
import torch
from torch import nn

from foveate.errors import InvalidValue
from foveate.measure.flops import count_flops
from foveate.measure.latency import MINIMUM_CALLS, measure_latency, quantile
from foveate.measure.machine import machine_facts, usable_cores, versions
from foveate.measure.memory import format_bytes, peak_resident_bytes, resident_bytes, saved_bytes


def test_latency_of_known_durations():
    made = measure_latency({"short": lambda: time.sleep(0.001), "long": lambda: time.sleep(0.004)}, seconds=0.1)
    assert 1.0 <= made["short"].median < 3.0
    assert 4.0 <= made["long"].median < 7.0
    for latency in made.values():
        assert latency.low <= latency.median <= latency.high
        assert latency.as_json() == {"median": latency.median, "low": latency.low, "high": latency.high}


def test_systems_take_turns_so_that_a_drift_hits_all():
    order: list[str] = []

    def call(name: str) -> None:
        order.append(name)
        time.sleep(0.001)

    measure_latency({name: lambda name=name: call(name) for name in "abc"}, seconds=0.06, warmup=0)
    first, last = {n: order.index(n) for n in "abc"}, {n: len(order) - order[::-1].index(n) for n in "abc"}
    assert max(first.values()) < len(order) / 4
    assert min(last.values()) > 3 * len(order) / 4


def test_slow_systems_are_called_a_few_times_only_and_a_first_slow_call_is_warm_up():
    calls: list[float] = []

    def slow() -> None:
        calls.append(time.perf_counter())
        time.sleep(0.2 if len(calls) == 1 else 0.02)

    made = measure_latency({"slow": slow}, seconds=0.01, warmup=1)
    assert made["slow"].calls == MINIMUM_CALLS
    assert made["slow"].high < 60


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
