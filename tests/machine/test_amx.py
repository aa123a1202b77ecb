"""AMX is asked for where the CPU has it and nobody else decided."""

import os

import pytest

from machine import amx
from tests.machine.test_runtime import run

ALL_FLAGS = "flags\t\t: fpu amx_tile amx_int8 amx_bf16 avx512_bf16 avx512_vnni\n"


@pytest.mark.parametrize("content", ["", "flags\t\t: fpu avx2 avx512_vnni\n", "processor\t: 0\n"])
def test_other_cpus_are_left_alone(tmp_path, monkeypatch, content):
    monkeypatch.delenv(amx.ISA, raising=False)
    (tmp_path / "cpuinfo").write_text(content)
    assert not amx.request(tmp_path / "cpuinfo")
    assert not amx.request(tmp_path / "none")
    assert amx.ISA not in os.environ


def test_the_users_choice_stays(tmp_path, monkeypatch):
    monkeypatch.setenv(amx.ISA, "AVX2")
    (tmp_path / "cpuinfo").write_text(ALL_FLAGS)
    assert not amx.request(tmp_path / "cpuinfo")
    assert os.environ[amx.ISA] == "AVX2"


def test_child_processes_do_not_inherit_it():
    done = run(f"from machine.runtime import mx\nprint(os.environ.get('{amx.ISA}'))")
    assert done.stdout.strip() == "None", done.stderr
