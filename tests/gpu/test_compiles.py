"""Every Triton kernel compiles to machine code for a GPU, which needs none: the interpreter takes more than GPUs do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")

COMPILE = """
import importlib, json, sys
import triton
from triton.backends.compiler import GPUTarget
module, kernel, pointers, constants = json.loads(sys.argv[1])
function = getattr(importlib.import_module(module), kernel)
names = function.arg_names
signature = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in names}
fixed = {(names.index(n),): value for n, value in constants.items()}
source = triton.compiler.ASTSource(fn=function, signature=signature, constexprs=fixed)
made = triton.compile(source, target=GPUTarget("cuda", 80, 32))
print(len(made.asm["cubin"]), made.metadata.shared)
"""
#: Bytes of shared memory that one program may take on the smallest GPUs of this generation.
SHARED = 99 * 1024
SCAN = "foveate.ops.triton.selective_scan"
FLAGS = {"BLOCK": 64, "CHANNELS": 32, "STATES": 16}
ALL = {"SOFTPLUS": True, "VARIABLE_B": True, "VARIABLE_C": True}
NOTHING = {"SOFTPLUS": False, "VARIABLE_B": False, "VARIABLE_C": False}
NOTHING |= dict.fromkeys(("D", "z", "bias", "reset"))
SINGLE = ("A", "D", "bias", "initial", "last", "starts", "grad_last", "scratch")
SINGLE += ("grad_A", "grad_B", "grad_C", "grad_D", "grad_bias", "grad_initial")
STORED = ["u", "delta", "B", "C", "z", "out", "grad_out", "grad_u", "grad_delta", "grad_z"]


LINEAR = "foveate.ops.triton.linear_attention"
CHUNKS = {"BLOCK": 64, "KEYS": 64, "VALUES": 64, "PRECISION": "ieee"}
WIDE = {"BLOCK": 16, "KEYS": 256, "VALUES": 64, "PRECISION": "tf32"}
DOUBLE = {"BLOCK": 32, "KEYS": 64, "VALUES": 64, "PRECISION": "ieee"}
ALONE = dict.fromkeys(("initial", "run"))
NO_GRADIENTS = dict.fromkeys(("grad_last", "grad_slope", "grad_initial"))


def types(stored: str) -> dict[str, str]:
    return {**dict.fromkeys(SINGLE, "*fp32"), **dict.fromkeys(STORED, stored), "reset": "*u8"}


def linear_types(stored: str, real: str = "*fp32") -> dict[str, str]:
    sums = ("slope", "initial", "last", "grad_last", "scratch", "grad_slope", "grad_initial")
    return {**dict.fromkeys(sums, real), **dict.fromkeys(("q", "k", "v", "out", "grad_out"), stored), "run": "*i64"} | {
        f"grad_{name}": stored for name in "qkv"
    }


@pytest.mark.parametrize(
    ("module", "kernel", "pointers", "constants"),
    [
        (SCAN, "_forward_kernel", types("*bf16"), {**FLAGS, **ALL}),
        (SCAN, "_forward_kernel", types("*fp32"), {**FLAGS, **NOTHING, "initial": None}),
        (SCAN, "_backward_kernel", types("*bf16"), {**FLAGS, **ALL}),
        (SCAN, "_backward_kernel", types("*fp32"), {**FLAGS, **NOTHING, "grad_z": None}),
        (LINEAR, "_forward_kernel", linear_types("*fp32"), CHUNKS),
        (LINEAR, "_forward_kernel", linear_types("*bf16"), {**WIDE, **ALONE, "last": None}),
        (LINEAR, "_forward_kernel", linear_types("*fp64", "*fp64"), DOUBLE),
        (LINEAR, "_backward_kernel", linear_types("*fp32"), CHUNKS),
        (LINEAR, "_backward_kernel", linear_types("*bf16"), WIDE),
        (LINEAR, "_backward_kernel", linear_types("*fp16"), {**CHUNKS, **ALONE, **NO_GRADIENTS, "PRECISION": "tf32"}),
        (LINEAR, "_backward_kernel", linear_types("*fp64", "*fp64"), DOUBLE),
    ],
)
def test_compiles(module: str, kernel: str, pointers: dict[str, str], constants: dict[str, Any]):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    told = json.dumps([module, kernel, pointers, constants])
    done = subprocess.run([sys.executable, "-c", COMPILE, told], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    size, shared = (int(number) for number in done.stdout.split()[-2:])
    assert size > 0
    assert shared <= SHARED
