"""Every Triton kernel compiles to machine code for a GPU, which needs none: the interpreter takes more than GPUs do."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

COMPILE = """
import importlib, json, sys
import triton
from triton.backends.compiler import GPUTarget
module, kernel, pointers, constants, options = json.loads(sys.argv[1])
function = getattr(importlib.import_module(module), kernel)
names = function.arg_names
signature = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in names}
fixed = {(names.index(n),): value for n, value in constants.items()}
source = triton.compiler.ASTSource(fn=function, signature=signature, constexprs=fixed)
made = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
print(len(made.asm["cubin"]), made.metadata.shared)
"""
#: Bytes of shared memory that a program may have on every GPU from sm_80 on.
SHARED = 99 * 1024
SCAN = "foveate.ops.triton.selective_scan"
FLAGS = {"BLOCK": 64, "CHANNELS": 32, "STATES": 16}
ALL = {"SOFTPLUS": True, "VARIABLE_B": True, "VARIABLE_C": True}
NOTHING = {"SOFTPLUS": False, "VARIABLE_B": False, "VARIABLE_C": False}
NOTHING |= dict.fromkeys(("D", "z", "bias", "reset"))
SINGLE = ("A", "D", "bias", "initial", "last", "starts", "grad_last", "scratch")
SINGLE += ("grad_A", "grad_B", "grad_C", "grad_D", "grad_bias", "grad_initial")
STORED = ["u", "delta", "B", "C", "z", "out", "grad_out", "grad_u", "grad_delta", "grad_z"]


def types(stored: str) -> dict[str, str]:
    return {**dict.fromkeys(SINGLE, "*fp32"), **dict.fromkeys(STORED, stored), "reset": "*u8"}


@pytest.mark.parametrize(
    ("module", "kernel", "pointers", "constants"),
    [
        (SCAN, "_forward_kernel", types("*bf16"), {**FLAGS, **ALL}),
        (SCAN, "_forward_kernel", types("*fp32"), {**FLAGS, **NOTHING, "initial": None}),
        (SCAN, "_backward_kernel", types("*bf16"), {**FLAGS, **ALL}),
        (SCAN, "_backward_kernel", types("*fp32"), {**FLAGS, **NOTHING, "grad_z": None}),
    ],
)
def test_compiles(module: str, kernel: str, pointers: dict[str, str], constants: dict[str, Any]):
    compile_for_a_gpu(module, kernel, pointers, constants, {})


def compile_for_a_gpu(
    module: str, kernel: str, pointers: dict[str, str], constants: dict[str, Any], options: dict[str, int]
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    told = json.dumps([module, kernel, pointers, constants, options])
    done = subprocess.run([sys.executable, "-c", COMPILE, told], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    size, shared = (int(number) for number in done.stdout.split()[-2:])
    assert size > 0
    assert shared <= SHARED


#: Arrays of the kernels below that are neither inputs nor in the precision of sums.
OUTPUTS = ("out", "grad_out", "grad_q", "grad_k", "grad_v")
SUMS = ("last", "lse", "delta", "grad_last", "scratch", "grad_slope", "grad_initial", "grad_bias")
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float64: "*fp64"}
POINTERS[torch.int64] = "*i64"


#: Gradients that nobody has to give or wants.
UNASKED = ("grad_last", "grad_slope", "grad_initial")


def as_launched(module: str, kernel: str, inputs: tuple[Any, ...], absent: tuple[str, ...]) -> None:
    """Compile a kernel with the sizes and options that it is launched with for these inputs, the first one ``q``."""
    tensors, sizes = importlib.import_module(module)._inputs(*inputs)
    real = POINTERS[torch.float64 if inputs[0].dtype == torch.float64 else torch.float32]
    pointers = {**dict.fromkeys(SUMS, real), **dict.fromkeys(OUTPUTS, POINTERS[inputs[0].dtype])}
    pointers |= {name: POINTERS[m.dtype] for name, m in tensors.items() if m is not None}
    options = {"num_stages": sizes.pop("num_stages")}
    # Triton itself makes constants of numbers that are 1.
    constants = {name: value for name, value in sizes.items() if name.isupper() or value == 1}
    constants |= dict.fromkeys([*absent, *(name for name, m in tensors.items() if m is None)])
    compile_for_a_gpu(module, kernel, pointers, constants, options)


@pytest.mark.parametrize(
    ("kernel", "dtype", "shape", "width", "absent"),
    [
        ("_forward_kernel", torch.float32, (2, 3, 100), 64, ()),
        ("_forward_kernel", torch.bfloat16, (2, 3, 100), 256, ("initial", "run", "last")),
        ("_forward_kernel", torch.float64, (1, 1, 1), 128, ("run",)),
        ("_backward_kernel", torch.float32, (2, 3, 100), 64, ()),
        ("_backward_kernel", torch.float32, (2, 3, 100), 128, ("run",)),
        ("_backward_kernel", torch.bfloat16, (2, 3, 100), 256, ()),
        (
            "_backward_kernel",
            torch.float16,
            (2, 3, 100),
            5,
            ("initial", "run", "grad_last", "grad_slope", "grad_initial"),
        ),
        ("_backward_kernel", torch.float64, (1, 1, 1), 128, ("run",)),
    ],
)
def test_linear_attention_compiles(
    kernel: str, dtype: torch.dtype, shape: tuple[int, ...], width: int, absent: tuple[str, ...]
):
    real = torch.float64 if dtype == torch.float64 else torch.float32
    q = torch.empty(*shape, width, dtype=dtype, device="meta")
    given = {
        "slope": torch.empty(shape[1], dtype=real, device="meta"),
        "initial": torch.empty(*shape[:2], width, width, dtype=real, device="meta"),
        "run": torch.empty(shape[0], shape[2], dtype=torch.int64, device="meta"),
    }
    others = (None if name in absent else m for name, m in given.items())
    as_launched("foveate.ops.triton.linear_attention", kernel, (q, q, q, *others), absent)


NEIGHBORHOODS = [
    (torch.float32, (56, 56), 64, True),
    (torch.bfloat16, (16, 28, 28), 128, True),
    (torch.float16, (90,), 5, False),
    (torch.float64, (28, 28), 128, True),
    (torch.float32, (8, 8, 8), 256, True),
]
KERNELS = [
    (kernel, *case) for case in NEIGHBORHOODS for kernel in ("_forward_kernel", "_queries_kernel", "_keys_kernel")
]
KERNELS += [("_bias_kernel", *case) for case in NEIGHBORHOODS if case[-1]]


@pytest.mark.parametrize(("kernel", "dtype", "grid", "width", "biased"), KERNELS)
def test_neighborhood_attention_compiles(
    kernel: str, dtype: torch.dtype, grid: tuple[int, ...], width: int, biased: bool
):
    real, rank = torch.float64 if dtype == torch.float64 else torch.float32, len(grid)
    q = torch.empty(2, 4, *grid, width, dtype=dtype, device="meta")
    bias = torch.empty(4, *[9] * rank, dtype=real, device="meta") if biased else None
    axes = [5] * rank, [1] * rank, [2] * rank, [not biased] * rank
    inputs = (q, q[:, :2], q[:, :2], bias, *axes, 0.1)
    as_launched("foveate.ops.triton.neighborhood_attention", kernel, inputs, ())
