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
print(len(triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["cubin"]))
"""
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
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    told = json.dumps([module, kernel, pointers, constants])
    done = subprocess.run([sys.executable, "-c", COMPILE, told], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 0
