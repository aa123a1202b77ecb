"""The lock files fit pyproject.toml, and pip can check every byte that it installs from them."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = {"requirements.lock": "cpu", "requirements-cu112.lock": "cu112"}


def entries(lock: str) -> list[str]:
    """One logical line for each package of a lock file."""
    text = (ROOT / lock).read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip()]


def pins(lock: str) -> dict[str, str]:
    """{distribution: version} of a lock file."""
    found = [re.match(r"([\w.-]+)==(\S+)", entry) for entry in entries(lock)]
    return {canonicalize_name(match[1]): match[2] for match in found}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_is_pinned_and_hashed_and_no_index_is_named(lock):
    for entry in entries(lock):
        assert re.fullmatch(r"[\w.-]+==\S+( ; [^-]+?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*", entry), entry[:100]


@pytest.mark.parametrize(("lock", "extra"), LOCKS.items())
def test_the_lock_satisfies_the_declared_requirements(lock, extra):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    locked = pins(lock)
    for text in [*project["dependencies"], *extras[extra], *extras["dev"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), text


def test_both_locks_agree_on_what_they_share():
    cpu, gpu = (pins(lock) for lock in LOCKS)
    shared = cpu.keys() & gpu.keys()
    assert {name: cpu[name] for name in shared} == {name: gpu[name] for name in shared}
    assert {"mxnet"} == cpu.keys() - gpu.keys()
