"""AMX, the matrix units of Intel CPUs since Sapphire Rapids: int8 and bfloat16 convolutions run on them.

Linux grants them to a process that asks (Documentation/arch/x86/xstate.rst of the kernel). The oneDNN 2.4 in mxnet
1.9.1 neither asks nor uses them unless told to. float32 is computed as before.
"""

import ctypes
import os
import platform
from pathlib import Path

ISA = "DNNL_MAX_CPU_ISA"  # what oneDNN may use, read once
_AMX = "AVX512_CORE_AMX"
_FLAGS = frozenset({"amx_tile", "amx_int8", "amx_bf16", "avx512_bf16", "avx512_vnni"})
_SYS_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18


def request(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Asks for AMX and tells oneDNN of it; whether there is AMX now. A DNNL_MAX_CPU_ISA of the user's stays.

    To be called before oneDNN computes anything. The setting is in the environment; a child process that runs oneDNN
    2.4 without asking would be stopped by it, so forget() follows.
    """
    if ISA in os.environ or platform.machine() != "x86_64" or not _cpu_flags(cpuinfo) >= _FLAGS:
        return False
    if ctypes.CDLL(None, use_errno=True).syscall(_SYS_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) != 0:
        return False
    os.environ[ISA] = _AMX
    return True


def forget() -> None:
    """Takes the setting out of the environment, once oneDNN has read it."""
    del os.environ[ISA]


def _cpu_flags(cpuinfo: Path) -> set[str]:
    try:
        lines = cpuinfo.read_text("utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())
