"""What memory is left: of the machine, of the cgroups of both versions, of a limit of the shell's."""

import resource
import subprocess
import sys

import pytest

from machine.memory import available_memory, shown_bytes
from tests.machine.test_cpu import machine

MEMINFO = {"proc/meminfo": "MemTotal:  9000 kB\nMemAvailable:   5000 kB"}
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "32 31 0:29 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
FOLDER = "sys/fs/cgroup/memory/job"


@pytest.mark.parametrize(
    ("cgroup", "mountinfo", "files", "left"),
    [
        ("0::/", V2, {}, 5000 * 1024),
        ("0::/", V2, {"sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.current": "7"}, 5000 * 1024),
        ("0::/a", V2, {"sys/fs/cgroup/a/memory.max": "900", "sys/fs/cgroup/a/memory.current": "500"}, 400),
        (
            "0::/a",
            V2,
            {
                "sys/fs/cgroup/memory.max": "900",
                "sys/fs/cgroup/memory.current": "800",
                "sys/fs/cgroup/memory.stat": "anon 3\ninactive_file 70\nactive_file 20",
            },
            190,
        ),
        (
            "4:memory:/job",
            V1,
            {
                f"{FOLDER}/memory.limit_in_bytes": "1000",
                f"{FOLDER}/memory.usage_in_bytes": "900",
                f"{FOLDER}/memory.stat": "inactive_file 1\ntotal_inactive_file 50",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000",
            },
            150,
        ),
        ("0::/", V2, {"sys/fs/cgroup/memory.max": "9", "sys/fs/cgroup/memory.current": "12"}, 0),
    ],
)
def test_the_tightest_limit_counts(tmp_path, cgroup, mountinfo, files, left):
    assert available_memory(machine(tmp_path, cgroup=cgroup, mountinfo=mountinfo, files={**MEMINFO, **files})) == left


def test_a_machine_may_tell_nothing(tmp_path):
    assert available_memory(tmp_path) is None


def test_a_limit_of_the_shell_counts():
    limit = 1 << 30
    left = subprocess.run(
        [sys.executable, "-c", "from machine.memory import available_memory; print(available_memory())"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert 0 < int(left) < limit


def test_bytes_are_shown_for_people():
    assert [shown_bytes(5 << 20), shown_bytes(3 << 30)] == ["5 MB", "3.0 GB"]
