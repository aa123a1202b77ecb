"""Prints what this machine offers for training, and in one sentence what is missing.

Usage: python -m tools.doctor [--json] [--missing-packages]

Exit status 0 when training on the CPU works, 2 when mxnet or OpenCV cannot be loaded or mxnet cannot compute.
"""

import ctypes
import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:
    importlib.import_module("as_module")

from common.errors import UserError, missing_packages
from common.version import installed_version, versions
from config.command_line import parse_options
from config.options import option
from machine.command import run_command
from machine.cpu import configure_threads, cpu_quota, physical_cores
from machine.gpus import (
    CUDA_WHEEL,
    HIGHEST_CAPABILITY,
    LOWEST_CAPABILITY,
    Driver,
    gpu_problem,
    is_supported,
    read_driver,
)
from machine.runtime import load_mxnet, mx

# Instruction sets that decide the speed of float32, bfloat16 and int8 networks.
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - batches travel through it


@dataclass(frozen=True)
class DoctorOptions:
    """The command line of tools.doctor."""

    json: bool = option(False, "print the report as JSON")
    missing_packages: bool = option(False, "print the Debian packages to install, one a line, and nothing else")


def main(argv: list[str]) -> int:
    """Prints the report; returns the exit status."""
    options = parse_options(
        DoctorOptions,
        argv,
        "Shows what this machine offers for training and what is missing.",
        example="python tools/doctor.py --json",
    )
    if options.missing_packages:
        sys.stdout.writelines(f"{package}\n" for package in missing_packages())
        return 0
    report = collect()
    lines = [json.dumps(report, indent=2)] if options.json else describe(report)
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 2 if report["problems"] else 0


def collect() -> dict[str, Any]:
    """The whole report as plain values: versions, features, cpu, memory (bytes), gpu, problems (sentences)."""
    configure_threads()
    problems = [problem for problem in (_problem(_load_opencv), _mxnet_problem()) if problem]
    if installed_version("mxnet") and installed_version(CUDA_WHEEL):
        problems.append(f"both mxnet and {CUDA_WHEEL} are installed and overwrite each other: uninstall both, then one")
    return {
        "versions": versions(),
        "executable": sys.executable,
        "features": [] if "mxnet" not in sys.modules else _features(),
        "cpu": _cpu(),
        "memory": _memory(),
        "shm": _shared_memory(),
        "gpu": _gpu(read_driver()),
        "problems": problems,
    }


def describe(report: dict[str, Any]) -> list[str]:
    """The report as aligned lines for people."""
    cpu, memory, shm, gpu = (report[key] for key in ("cpu", "memory", "shm", "gpu"))
    quota = "none" if cpu["quota"] is None else f"{cpu['quota']:g} CPUs"
    rows = [*report["versions"].items(), ("executable", report["executable"])]
    rows.append(("features", ", ".join(report["features"]) or "unknown"))
    rows.append(("cpu", f"{cpu['model']} ({', '.join(cpu['instructions']) or 'no AVX2'})"))
    rows.append(
        ("cores", f"{cpu['cores']} cores, {cpu['affinity']} of {cpu['logical']} logical CPUs granted, quota {quota}")
    )
    rows.append(("threads", f"OMP_NUM_THREADS={cpu['omp_num_threads']}, in use: {cpu['threads'] or 'unknown'}"))
    rows.append(("memory", f"{_gib(memory['available'])} of {_gib(memory['total'])} available"))
    rows.append((str(SHARED_MEMORY), f"{_gib(shm['free'])} of {_gib(shm['total'])} free" if shm else "missing"))
    rows += [(f"gpu {k}", _gpu_line(card)) for k, card in enumerate(gpu["gpus"])]
    rows.append(
        (f"gpus for {CUDA_WHEEL}", "compute capability {}.{} to {}.{}".format(*LOWEST_CAPABILITY, *HIGHEST_CAPABILITY))
    )
    rows.append(("gpu", f"not usable: {gpu['problem']}" if gpu["problem"] else "usable"))
    verdict = [f"problem: {problem}" for problem in report["problems"]] or ["Training on the CPU works."]
    return [f"{name:<24}{text}" for name, text in rows] + verdict


def _load_opencv() -> None:
    importlib.import_module("machine.opencv")


def _problem(load: Callable[[], object]) -> str | None:
    """Why a library cannot be loaded, or None."""
    try:
        load()
    except UserError as error:
        return str(error)
    return None


def _mxnet_problem() -> str | None:
    """Why mxnet cannot be loaded, or cannot differentiate a small convolution; None if it can."""
    problem = _problem(load_mxnet)
    if problem:
        return problem

    image, kernel = mx.nd.ones((1, 3, 8, 8)), mx.nd.ones((4, 3, 3, 3))
    kernel.attach_grad()
    try:
        with mx.autograd.record():
            output = mx.nd.Convolution(image, kernel, no_bias=True, num_filter=4, kernel=(3, 3))
        output.backward()
        slope = kernel.grad.asnumpy()
    except mx.MXNetError as error:
        return f"mxnet cannot run a convolution ({str(error).splitlines()[-1]})"
    return None if (slope == 36).all() else "mxnet computes a wrong gradient of a convolution of ones"  # 6x6 positions


def _features() -> list[str]:
    return [name for name, feature in mx.runtime.Features().items() if feature.enabled]


def _cpu() -> dict[str, Any]:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.*)$", text, re.MULTILINE)
    words = set(flags.group(1).split()) if flags else set()
    affinity = os.sched_getaffinity(0)
    return {
        "model": model.group(1) if model else "unknown",
        "instructions": [name for name in INSTRUCTION_SETS if name in words],
        "logical": os.cpu_count(),
        "affinity": len(affinity),
        "cores": physical_cores(affinity),
        "quota": cpu_quota(),
        "omp_num_threads": os.environ["OMP_NUM_THREADS"],
        "threads": openmp_threads(),
    }


def openmp_threads() -> int | None:
    """Threads that the OpenMP library of this process starts now; None without libgomp."""
    try:
        return ctypes.CDLL("libgomp.so.1").omp_get_max_threads()
    except OSError:
        return None


def _memory() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return {"total": kilobytes["MemTotal"] * 1024, "available": kilobytes["MemAvailable"] * 1024}


def _shared_memory() -> dict[str, int] | None:
    if not SHARED_MEMORY.is_dir():
        return None
    usage = shutil.disk_usage(SHARED_MEMORY)
    return {"total": usage.total, "free": usage.free}


def _gpu(driver: Driver | None) -> dict[str, Any]:
    """The driver's CUDA version and its GPUs, and why none can be used (None: one can)."""
    cards = [{**asdict(gpu), "supported": is_supported(gpu)} for gpu in driver.gpus] if driver else []
    problem = gpu_problem(driver, cuda_wheel=installed_version(CUDA_WHEEL) is not None)
    return {"cuda": driver.cuda if driver else None, "gpus": cards, "problem": problem}


def _gpu_line(card: dict[str, Any]) -> str:
    major, minor = card["capability"]
    support = "" if card["supported"] else ", not supported"
    return f"{card['name']}, compute capability {major}.{minor}, {_gib(card['memory'])}{support}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


if __name__ == "__main__":
    run_command(main)
