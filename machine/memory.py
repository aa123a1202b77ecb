"""How much memory this process may still take before the kernel kills it or another program."""

import resource
from collections.abc import Iterator
from pathlib import Path

from machine.cpu import cgroup_folders

MEGABYTE = 1 << 20
_CACHED = ("inactive_file", "active_file")  # of memory.stat; version 1 has those of the groups below as total_...


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes: the least of what /proc/meminfo, the cgroups (v1 and v2) and RLIMIT_AS leave; None where nothing tells.

    /dev/shm does not matter: batches lie in memory without a file (memfd). `root` holds proc/ and sys/.
    """
    left = [bytes for bytes in (_of_machine(root), _of_address_space(root), *_of_cgroups(root)) if bytes is not None]
    return max(0, min(left)) if left else None


def shown_bytes(count: float) -> str:
    """A number of bytes for people: "12 MB", "3.4 GB"."""
    megabytes = count / MEGABYTE
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1024:,.1f} GB"


def _of_machine(root: Path) -> int | None:
    words = _numbers(root / "proc/meminfo", ":")
    return words["MemAvailable"] * 1024 if "MemAvailable" in words else None


def _of_address_space(root: Path) -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _numbers(root / "proc/self/status", ":").get("VmSize")
    return None if limit == resource.RLIM_INFINITY or used is None else limit - used * 1024


def _of_cgroups(root: Path) -> Iterator[int]:
    """What each cgroup with a limit leaves. Cached pages of files do not count: the kernel drops them first."""
    for folder in cgroup_folders(root, "memory"):
        limit = _number(folder, "memory.max", "memory.limit_in_bytes")
        used = _number(folder, "memory.current", "memory.usage_in_bytes")
        if limit is not None and used is not None:
            stat = _numbers(folder / "memory.stat", " ")
            yield limit - used + sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in _CACHED)


def _number(folder: Path, *names: str) -> int | None:
    """The number in the first of these files that has one; None: no limit ("max"), no such file."""
    texts = (_text(folder / name).strip() for name in names)
    return next((int(text) for text in texts if text.isdecimal()), None)


def _numbers(path: Path, separator: str) -> dict[str, int]:
    """{name: the first number after it} of the lines of a file of the kernel's."""
    pairs = (line.partition(separator) for line in _text(path).splitlines())
    words = {name: rest.split()[:1] for name, _, rest in pairs}
    return {name: int(first[0]) for name, first in words.items() if first and first[0].isdecimal()}


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""
