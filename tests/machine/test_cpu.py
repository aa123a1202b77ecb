"""OpenMP threads from affinity, topology and cgroups; AMX is asked for where the CPU has it and nobody else decided."""

import os
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machine import cpu
from machine.cpu import ISA, request_amx
from tests.machine.test_runtime import run

ALL_FLAGS = "flags\t\t: fpu amx_tile amx_int8 amx_bf16 avx512_bf16 avx512_vnni\n"


def machine(root, siblings=(), cgroup="", mountinfo="", files=()):
    """Writes a root folder with the CPUs' sibling lists, /proc files and further files."""
    contents = {f"sys/devices/system/cpu/cpu{k}/topology/thread_siblings_list": s for k, s in enumerate(siblings)}
    contents |= {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mountinfo, **dict(files)}
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    return root


def test_hyper_threads_count_as_one_core(tmp_path):
    root = machine(tmp_path, siblings=["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"])
    assert cpu.physical_cores(set(range(8)), root) == 4
    assert cpu.physical_cores({0, 4}, root) == 1
    assert cpu.physical_cores({0, 5}, root) == 2
    assert cpu.physical_cores({0, 99}, root) == 2  # no topology known: a core of its own


def test_without_topology_logical_cpus_count(tmp_path):
    assert cpu.physical_cores({0, 1, 6}, tmp_path) == 3


V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct"
V1_DOCKER = "32 31 0:29 /docker/ab /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu"


@pytest.mark.parametrize(
    ("cgroup", "mountinfo", "files", "quota"),
    [
        ("0::/", V2, {"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ("0::/", V2, {"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ("0::/a/b", V2, {"sys/fs/cgroup/a/cpu.max": "200000 100000", "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 2),
        ("0::/a", V2, {"sys/fs/cgroup/cpu.max": "400000 100000", "sys/fs/cgroup/a/cpu.max": "50000 100000"}, 0.5),
        (
            "4:cpu,cpuacct:/job\n0::/",
            V1,
            {
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        (
            "4:cpu:/docker/ab",
            V1_DOCKER,
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000"},
            5,
        ),
        ("5:memory:/x", V1, {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000"}, None),
        ("0::/../..", V2, {"sys/fs/cgroup/cpu.max": "100000 0"}, None),
        ("", "", {}, None),
    ],
)
def test_the_tightest_quota_of_the_own_cgroups_counts(tmp_path, cgroup, mountinfo, files, quota):
    assert cpu.cpu_quota(machine(tmp_path, cgroup=cgroup, mountinfo=mountinfo, files=files)) == quota


def test_a_machine_without_proc_has_no_quota(tmp_path):
    assert cpu.cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("quota", "contexts", "expected"),
    [("max", 1, 4), ("max", 2, 2), ("max", 3, 1), ("max", 9, 1), ("350000", 1, 3), ("50000", 1, 1), ("900000", 1, 4)],
)
def test_cores_quota_and_contexts_together(tmp_path, monkeypatch, quota, contexts, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    root = machine(tmp_path, cgroup="0::/", mountinfo=V2, files={"sys/fs/cgroup/cpu.max": f"{quota} 100000"})
    assert cpu.usable_threads(contexts, root) == expected


@settings(deadline=None)  # other processes may hold the CPU
@given(st.sets(st.integers(0, 7), min_size=1), st.integers(1, 20))
def test_there_is_at_least_one_thread_and_no_more_than_cpus(cpus, contexts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: cpus)
        assert 1 <= cpu.usable_threads(contexts) <= max(1, len(cpus) // contexts)


def test_configure_keeps_the_users_choice(monkeypatch):
    monkeypatch.delitem(sys.modules, "mxnet", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr(cpu, "_USER_CHOICE", "7")
    cpu.configure_threads(2)
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_configure_may_be_repeated_until_mxnet_is_there(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setattr(cpu, "_USER_CHOICE", None)
    monkeypatch.setattr(cpu, "usable_threads", lambda contexts: 12 // contexts)
    monkeypatch.delitem(sys.modules, "mxnet", raising=False)
    cpu.configure_threads(1)
    cpu.configure_threads(3)
    assert os.environ["OMP_NUM_THREADS"] == "4"
    monkeypatch.setitem(sys.modules, "mxnet", cpu)
    cpu.configure_threads(3)
    with pytest.raises(RuntimeError, match="OMP_NUM_THREADS=4"):
        cpu.configure_threads(2)


@pytest.mark.parametrize(("setting", "expected"), [("3", 3), ("4,2", 4), (" 2 ", 2), ("", 5), ("x", 5), ("0", 5)])
def test_other_libraries_get_as_many_threads(monkeypatch, setting, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    monkeypatch.setattr(cpu, "usable_threads", lambda: 5)
    assert cpu.engine_threads() == expected


def test_the_cpu_has_a_name(tmp_path):
    root = machine(tmp_path, files=[("proc/cpuinfo", "processor : 0\nmodel name\t: A CPU @ 2: fast\nmodel name : B")])
    assert cpu.cpu_model(root) == "A CPU @ 2: fast"
    assert cpu.cpu_model(tmp_path / "none") == "unknown"


@pytest.mark.parametrize("content", ["", "flags\t\t: fpu avx2 avx512_vnni\n", "processor\t: 0\n"])
def test_other_cpus_are_left_alone(tmp_path, monkeypatch, content):
    monkeypatch.delenv(ISA, raising=False)
    (tmp_path / "cpuinfo").write_text(content)
    assert not request_amx(tmp_path / "cpuinfo")
    assert not request_amx(tmp_path / "none")
    assert ISA not in os.environ


def test_the_users_choice_stays(tmp_path, monkeypatch):
    monkeypatch.setenv(ISA, "AVX2")
    (tmp_path / "cpuinfo").write_text(ALL_FLAGS)
    assert not request_amx(tmp_path / "cpuinfo")
    assert os.environ[ISA] == "AVX2"


def test_child_processes_do_not_inherit_it():
    done = run(f"from machine.runtime import mx\nprint(os.environ.get('{ISA}'))")
    assert done.stdout.strip() == "None", done.stderr
