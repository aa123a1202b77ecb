"""The CUDA wheel on a machine without a GPU: with a stub of the driver's library it loads and computes on the CPU.

Slow: it installs requirements-cu112.lock (some GB) into an environment of its own, or uses that of CU112_PYTHON.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
INSTALL_SECONDS = 3000
PROGRAM = """
from machine.runtime import mx
weight = mx.nd.ones((2, 3, 3, 3))
weight.attach_grad()
with mx.autograd.record():
    total = mx.nd.Convolution(mx.nd.ones((1, 3, 8, 8)), weight, kernel=(3, 3), num_filter=2, no_bias=True).sum()
total.backward()
has_cuda = "CUDA" in [feature.name for feature in mx.runtime.feature_list() if feature.enabled]
print(has_cuda, total.asscalar(), weight.grad.sum().asscalar())
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with mxnet-cu112 and the CUDA libraries of its lock file."""
    given = os.environ.get("CU112_PYTHON")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("cu112")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    lock = ["--require-hashes", "-r", ROOT / "requirements-cu112.lock"]
    subprocess.run(
        [folder / "bin/python", "-m", "pip", "install", "--quiet", *lock], check=True, timeout=INSTALL_SECONDS
    )
    return folder / "bin/python"


@pytest.fixture(scope="module")
def stub(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libcuda.so.1 that has the driver functions libmxnet.so wants, each returning an error."""
    for tool in ("gcc", "nm"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    packages = python.parent.parent.glob("lib/python*/site-packages/mxnet/libmxnet.so")
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", next(packages)], check=True, capture_output=True, text=True
    ).stdout
    names = {word.split("@")[0] for word in listing.split() if word.startswith("cu") and word[2:3].isupper()}
    assert names, "libmxnet.so asks nothing of the driver: this is not the CUDA wheel"
    folder = tmp_path_factory.mktemp("stub")
    no_device = 100  # CUDA_ERROR_NO_DEVICE
    (folder / "stub.c").write_text("".join(f"int {name}() {{ return {no_device}; }}\n" for name in sorted(names)))
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1", folder / "stub.c"],
        check=True,
    )
    return folder


@pytest.mark.slow
@pytest.mark.timeout(INSTALL_SECONDS + 300)
def test_the_cuda_wheel_loads_and_computes_on_the_cpu(python: Path, stub: Path) -> None:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(stub), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [python, "-c", PROGRAM], check=False, capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["True", "1944.0", "1944.0"]  # 2 * 6 * 6 * 27 products of ones, both ways
