"""The facts of a machine and of the software on it that belong beside every measured number."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from .. import __version__

_CPUINFO = Path("/proc/cpuinfo")
_OS_RELEASE = Path("/etc/os-release")


def cpu_name() -> str:
    """The processor's marketing name, or the architecture where the system does not tell."""
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    if sys.platform == "darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        if asked.stdout.strip():
            return asked.stdout.strip()
    return platform.processor() or platform.machine()


def os_name() -> str:
    """The operating system with its version, such as "Debian GNU/Linux 12" or "macOS 15.1"."""
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    if _OS_RELEASE.exists():
        for line in _OS_RELEASE.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition("=")
            if key == "PRETTY_NAME":
                return value.strip().strip('"')
    return f"{platform.system()} {platform.release()}"


def usable_cores() -> int:
    """Cores that this process may run on (a container or a mask may leave fewer than the machine has)."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def machine_facts() -> dict[str, Any]:
    """Hardware and system on record.

    Returns:
        "cpu" (name), "architecture", "cores" (usable), "memory_bytes", "os", "gpus" (names of CUDA devices) and
        "threads" (torch's intra-op threads now).
    """
    return {
        "cpu": cpu_name(),
        "architecture": platform.machine(),
        "cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "os": os_name(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers: foveate, torch and numpy."""
    return {
        "foveate": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,  # with its build, such as 2.13.0+cpu, which the metadata may lack
        "numpy": metadata.version("numpy"),
    }
