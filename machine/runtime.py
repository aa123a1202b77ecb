"""Process set-up and the only import of mxnet: threads, numpy aliases, CUDA libraries, then `import mxnet`; devices.

Everything else obtains it by `from machine.runtime import mx`. That alone loads nothing: mxnet is imported when one of
its names is first asked for, so that options are read, and a table of networks is looked up, without it. A command that
knows how many CPU contexts it will use calls machine.cpu.configure_threads() before.
"""

import builtins
import ctypes
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from common.errors import InstallError, OptionError, named_library, remedy
from common.version import installed_version
from machine.cpu import configure_threads, forget_amx, request_amx
from machine.gpus import CUDA_WHEEL, INSTALL_CUDA, usable_gpus

__all__ = ["load_mxnet", "mx"]

# Names that numpy 1.24 removed and that mxnet 1.9.1 or gluoncv 0.10.5 still use.
_NUMPY_ALIASES = ("bool", "int", "float", "complex", "object", "str")

# Folder in the nvidia-*-cu11 wheels and library that libmxnet.so links, each after the ones that it needs itself.
_CUDA_LIBRARIES = (
    ("cuda_runtime", "libcudart.so.11.0"),
    ("cuda_nvrtc", "libnvrtc.so.11.2"),
    ("nvtx", "libnvToolsExt.so.1"),
    ("cublas", "libcublasLt.so.11"),
    ("cublas", "libcublas.so.11"),
    ("cufft", "libcufft.so.10"),
    ("curand", "libcurand.so.10"),
    ("cusparse", "libcusparse.so.11"),
    ("cusolver", "libcusolver.so.11"),
    ("cudnn", "libcudnn.so.8"),
    ("nccl", "libnccl.so.2"),
)
logger = logging.getLogger(__name__)


def _set_environment() -> None:
    if "mxnet" in sys.modules:
        logger.warning("mxnet was imported before machine.runtime: it may use too few threads")
    elif "OMP_NUM_THREADS" not in os.environ:
        configure_threads()
    # Idle OpenMP threads give their core to the data workers after a fraction of a millisecond instead of several.
    # Figures of benchmarks/train_step.py with this and other settings are in docs/results.md.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    # Optimizer state stays in the Module's own updater, where checkpoints can name it and resuming restores it.
    os.environ.setdefault("MXNET_UPDATE_ON_KVSTORE", "0")
    # Without it each new inference executor writes "Subgraph backend MKLDNN is activated" into the log.
    os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")


def _add_numpy_aliases() -> None:
    for name in _NUMPY_ALIASES:
        if name not in np.__dict__:
            setattr(np, name, getattr(builtins, name))


def _load_cuda_libraries() -> None:
    """Loads the libraries of the nvidia-*-cu11 wheels: the loader then finds them by name when it loads libmxnet.so.

    Libraries that are not in wheels are left to the loader (a CUDA toolkit of the system).
    """
    spec = importlib.util.find_spec("nvidia") if installed_version(CUDA_WHEEL) else None
    for place in (spec and spec.submodule_search_locations) or ():
        for folder, name in _CUDA_LIBRARIES:
            path = Path(place, folder, "lib", name)
            if path.is_file():
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def _import_mxnet() -> ModuleType:
    try:
        import mxnet
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        raise InstallError(_reason(error)) from error
    return mxnet


def _reason(error: Exception) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing == "mxnet":
        return f"mxnet is not installed: `pip install -e '.[cpu]'`, or {INSTALL_CUDA} for an NVIDIA GPU"
    if missing == "distutils":
        return "mxnet needs distutils, which Python 3.12 no longer has: pip install 'setuptools>=68,<81'"
    library = named_library(error)
    if library is None:
        return f"mxnet cannot be loaded ({type(error).__name__}: {error}): `python tools/doctor.py` lists the versions"
    if library == "libcuda.so.1":
        return "mxnet-cu112 needs the NVIDIA driver (libcuda.so.1): install it, or mxnet==1.9.1 in place of mxnet-cu112"
    if library in {name for _, name in _CUDA_LIBRARIES}:
        return f"mxnet-cu112 does not find {library}: {INSTALL_CUDA}"
    return f"mxnet needs the system library {library}: {remedy(library)}"


def _import_with_amx() -> ModuleType:
    """mxnet, whose oneDNN uses AMX where there is any: it reads the setting in its first operator."""
    granted = request_amx() if "mxnet" not in sys.modules else False
    try:
        mxnet = _import_mxnet()
        if granted:
            mxnet.nd.Activation(mxnet.nd.zeros((1, 1, 1, 1)), act_type="relu").wait_to_read()
    finally:
        if granted:
            forget_amx()
    return mxnet


@cache
def load_mxnet() -> ModuleType:
    """mxnet, set up and imported once; InstallError says what is missing."""
    _set_environment()
    _add_numpy_aliases()
    _load_cuda_libraries()
    return _import_with_amx()


class _MXNet(ModuleType):
    """mxnet, loaded at the first look at one of its names."""

    def __getattr__(self, name: str) -> Any:
        """Called for names that are not here yet."""
        module = load_mxnet()
        value = getattr(module, name)
        self.__dict__.update(module.__dict__)
        return value


mx: Any = _MXNet("mxnet")
SYMBOL_ATTRIBUTES = {"mxnet_version": ["int", 10901]}  # of a symbol's JSON; load_json converts older ones


def contexts(gpus: str | None = None, cpu: bool = False, cpus: int = 1) -> "list[mx.Context]":
    """Contexts of --gpus, --cpu and --cpus: the GPUs named, else all usable GPUs, else N CPU contexts (said in one
    line)."""
    if cpu:
        return [mx.cpu(k) for k in range(cpus)]
    usable, problem = usable_gpus()
    if gpus is None:
        if not usable:
            logger.info("running on the CPU: %s", problem)
        return [mx.gpu(k) for k in usable] or [mx.cpu(k) for k in range(cpus)]
    try:
        wanted = [int(part) for part in gpus.split(",") if part.strip()]
    except ValueError:
        raise OptionError(f"--gpus {gpus!r}: expected numbers like 0,1") from None
    missing = [k for k in wanted if k not in usable]
    if missing:
        reason = problem or f"usable are {', '.join(map(str, usable))}"
        raise OptionError(
            f"--gpus {gpus}: GPU {missing[0]} cannot be used ({reason}); leave --gpus out to use what there is"
        )
    return [mx.gpu(k) for k in wanted] or [mx.cpu(k) for k in range(cpus)]


def check_batch_size(batch_size: int, devices: "Sequence[mx.Context]") -> None:
    """OptionError where a batch has less than one image for each device."""
    if batch_size < len(devices):
        raise OptionError(
            f"--batch-size {batch_size} is too small for {len(devices)} devices: each needs an image; raise it or use "
            "fewer devices"
        )
