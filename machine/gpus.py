"""Which NVIDIA GPUs the driver offers, and why MXNet cannot use one; asks libcuda.so.1, so that no tool is needed."""

import ctypes
from dataclasses import dataclass
from typing import Any

from common.version import installed_version

CUDA_WHEEL = "mxnet-cu112"
INSTALL_CUDA = "`make venv LOCK=requirements-cu112.lock` or `pip install -e '.[cu112]'`"
# mxnet-cu112 1.9.1 holds machine code for sm_50, 60, 70, 80 and 86, which later minor versions of the same major run,
# and no PTX that a newer GPU could translate.
LOWEST_CAPABILITY, HIGHEST_CAPABILITY = (5, 0), (8, 9)
OLDEST_CUDA = (11, 0)  # CUDA 11.x libraries run on any driver of CUDA 11.0 or later

# From cuda.h
_NO_DEVICE = 100
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, compute capability (major, minor) and memory in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int


@dataclass(frozen=True)
class Driver:
    """What the NVIDIA driver reports: the CUDA version that it serves, its GPUs, and cuInit's error code (0: none)."""

    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]
    error: int = 0


def read_driver() -> Driver | None:
    """The NVIDIA driver and its GPUs (those that CUDA_VISIBLE_DEVICES leaves visible); None without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return query_driver(library)


def query_driver(library: Any) -> Driver:
    """Asks a loaded libcuda for its version and devices."""
    error = library.cuInit(0)
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    cuda = (version.value // 1000, version.value % 1000 // 10)
    if error:
        return Driver(cuda, (), 0 if error == _NO_DEVICE else error)
    library.cuDeviceGetCount(ctypes.byref(count))
    return Driver(cuda, tuple(_query_gpu(library, ordinal) for ordinal in range(count.value)))


def gpu_problem(driver: Driver | None, cuda_wheel: bool) -> str | None:
    """Why MXNet cannot use a GPU, as one sentence without a full stop; None if at least one GPU can be used."""
    if driver is None:
        return "no NVIDIA driver is installed (libcuda.so.1 is missing)"
    if driver.error:
        return f"the NVIDIA driver does not start (cuInit gives error {driver.error})"
    if not driver.gpus:
        return "the NVIDIA driver finds no GPU (does CUDA_VISIBLE_DEVICES hide it?)"
    if not any(is_supported(gpu) for gpu in driver.gpus):
        found = ", ".join(f"{gpu.name} has {_dotted(gpu.capability)}" for gpu in driver.gpus)
        return (
            f"mxnet-cu112 1.9.1 runs on compute capability {_dotted(LOWEST_CAPABILITY)} to "
            f"{_dotted(HIGHEST_CAPABILITY)} only (it holds no PTX), but {found}"
        )
    if driver.cuda < OLDEST_CUDA:
        return f"the NVIDIA driver serves CUDA {_dotted(driver.cuda)}, but {_dotted(OLDEST_CUDA)} or newer is needed"
    if not cuda_wheel:
        return f"the CPU wheel of mxnet is installed; for the GPU: {INSTALL_CUDA}"
    return None


def usable_gpus() -> tuple[list[int], str | None]:
    """(ordinals of the GPUs that this MXNet can run on, why there is none)."""
    driver = read_driver()
    problem = gpu_problem(driver, installed_version(CUDA_WHEEL) is not None)
    if problem or driver is None:
        return [], problem
    return [k for k, gpu in enumerate(driver.gpus) if is_supported(gpu)], None


def is_supported(gpu: Gpu) -> bool:
    """Whether mxnet-cu112 1.9.1 holds machine code that this GPU can run."""
    return LOWEST_CAPABILITY <= gpu.capability <= HIGHEST_CAPABILITY


def _query_gpu(library: Any, ordinal: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    memory = ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    library.cuDeviceGet(ctypes.byref(device), ordinal)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
    library.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return Gpu(name.value.decode(errors="replace"), (major.value, minor.value), memory.value)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
