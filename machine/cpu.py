"""What the CPU grants this process: OpenMP threads and AMX, read from /proc and /sys.

MXNet takes half of the logical CPUs unless OMP_NUM_THREADS is set before it is imported, which halves its speed where
CPUs are not hyper-threads and oversubscribes a container with a CPU quota.

AMX are the matrix units of Intel CPUs since Sapphire Rapids: int8 and bfloat16 convolutions run on them. Linux grants
them to a process that asks (Documentation/arch/x86/xstate.rst of the kernel). The oneDNN 2.4 in mxnet 1.9.1 neither
asks nor uses them unless told to. float32 is computed as before.
"""

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_USER_CHOICE = os.environ.get("OMP_NUM_THREADS")
ISA = "DNNL_MAX_CPU_ISA"  # what oneDNN may use, read once
_AMX = "AVX512_CORE_AMX"
_FLAGS = frozenset({"amx_tile", "amx_int8", "amx_bf16", "avx512_bf16", "avx512_vnni"})
_SYS_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18


def configure_threads(cpu_contexts: int = 1) -> None:
    """Sets OMP_NUM_THREADS to usable_threads(cpu_contexts), unless the user has set it.

    It only has an effect before mxnet is imported; RuntimeError if mxnet is there already with another number.
    """
    wanted = _USER_CHOICE or str(usable_threads(cpu_contexts))
    present = os.environ.get("OMP_NUM_THREADS")
    if "mxnet" in sys.modules and present != wanted:
        raise RuntimeError(
            f"mxnet runs with OMP_NUM_THREADS={present}; configure_threads({cpu_contexts}) came after its import"
        )
    os.environ["OMP_NUM_THREADS"] = wanted


def engine_threads() -> int:
    """Threads for a library other than mxnet: the first number in OMP_NUM_THREADS, else usable_threads()."""
    chosen = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(chosen) if chosen.isdecimal() and int(chosen) > 0 else usable_threads()


def usable_threads(cpu_contexts: int = 1, root: Path = Path("/")) -> int:
    """Threads for each of cpu_contexts parallel users: physical cores of the affinity within the quota, at least 1.

    A fraction of a core in the quota is left to the data workers: threads that wait for one another at full speed
    would be stopped until the next period. `root` holds proc/ and sys/.
    """
    threads = physical_cores(os.sched_getaffinity(0), root)
    quota = cpu_quota(root)
    if quota is not None:
        threads = min(threads, int(quota))
    return max(1, threads // cpu_contexts)


def physical_cores(cpus: set[int], root: Path = Path("/")) -> int:
    """Number of distinct cores behind logical CPUs; a CPU without readable topology counts as a core."""
    folder = root / "sys/devices/system/cpu"
    return len({_read(folder / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus})


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that the cgroups (v1 and v2) of this process may use: the tightest one's; None: no limit."""
    limits = [limit for folder in cgroup_folders(root, "cpu") if (limit := _folder_quota(folder)) is not None]
    return min(limits, default=None)


def cgroup_folders(root: Path, wanted: str) -> Iterator[Path]:
    """The folders with this process's settings of a controller (`cpu`, `memory`), from its own group up to the mount
    point (see man 7 cgroups)."""
    groups: dict[str, str] = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), path))  # version 2 has the controller ""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        place, _, description = line.partition(" - ")
        kind, *_, settings = description.split()
        controller = {"cgroup2": "", "cgroup": wanted}.get(kind)
        if controller in groups and (kind == "cgroup2" or wanted in settings.split(",")):
            mount_root, mount = place.split()[3:5]
            yield from _folder_and_parents(root / mount.lstrip("/"), mount_root, groups[controller])


def _folder_and_parents(mount: Path, mount_root: str, group: str) -> Iterator[Path]:
    """A container may see its group's path as the host writes it, but mounted from that very group."""
    path = PurePosixPath(group)
    inner = path.relative_to(mount_root) if path.is_relative_to(mount_root) else PurePosixPath()
    for part in (inner, *inner.parents):
        yield mount / part


def cpu_model(root: Path = Path("/")) -> str:
    """The name of the CPU, or "unknown"."""
    lines = (line.partition(":") for line in _read(root / "proc/cpuinfo").splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == "model name"), "unknown")


def _folder_quota(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    limited = quota.isdecimal() and period.isdecimal() and int(period) > 0  # "max" and "-1" mean no limit
    return int(quota) / int(period) if limited else None


def _read(path: Path) -> str:
    """The text of a file of the kernel's, or "" where this kernel or container has no such file."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def request_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Asks for AMX and tells oneDNN of it; whether there is AMX now. A DNNL_MAX_CPU_ISA of the user's stays.

    To be called before oneDNN computes anything. The setting is in the environment; a child process that runs oneDNN
    2.4 without asking would be stopped by it, so forget_amx() follows.
    """
    if ISA in os.environ or platform.machine() != "x86_64" or not has_amx(cpuinfo):
        return False
    if ctypes.CDLL(None, use_errno=True).syscall(_SYS_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) != 0:
        return False
    os.environ[ISA] = _AMX
    return True


def forget_amx() -> None:
    """Takes the setting out of the environment, once oneDNN has read it."""
    del os.environ[ISA]


def has_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU has matrix units for bfloat16."""
    return _cpu_flags(cpuinfo) >= _FLAGS


def _cpu_flags(cpuinfo: Path) -> set[str]:
    try:
        lines = cpuinfo.read_text("utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())
