"""`from machine.runtime import mx` and `from machine.opencv import cv2` in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from machine.cpu import physical_cores

ROOT = Path(__file__).parents[2]
THREADS = "ctypes.CDLL('libgomp.so.1').omp_get_max_threads()"
CPUS = sorted(os.sched_getaffinity(0))


def run(code: str, path: Path | None = None, **variables: str) -> subprocess.CompletedProcess:
    """Runs code from the project's folder, without the variables that decide about threads unless given."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "MXNET_", "OPENCV_", "PYTHON"))}
    folders = {"PYTHONPATH": str(path)} if path else {}
    command = [sys.executable, "-c", "import ctypes, json, os, sys\n" + code]
    return subprocess.run(command, cwd=ROOT, env={**kept, **folders, **variables}, capture_output=True, text=True)


def values(code: str, **variables: str):
    """What the code's last line, an expression, is as JSON."""
    *lines, last = code.splitlines()
    done = run("\n".join([*lines, f"print(json.dumps({last}))"]), **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("count", sorted({1, len(CPUS)}))
def test_an_affinity_of_k_cpus_gives_k_openmp_threads(count):
    """Asked of OpenMP itself, and seen as the threads that a convolution starts in a process that ran none before."""
    code = f"""
os.sched_setaffinity(0, {CPUS[:count]})
from machine.runtime import mx
image, kernel = mx.nd.ones((8, 64, 64, 64)), mx.nd.ones((64, 64, 3, 3))
mx.nd.waitall()
before = len(os.listdir('/proc/self/task'))
mx.nd.Convolution(image, kernel, no_bias=True, num_filter=64, kernel=(3, 3)).wait_to_read()
[{THREADS}, len(os.listdir('/proc/self/task')) - before + 1]"""
    asked, started = values(code)
    assert asked == physical_cores(set(CPUS[:count]))
    assert started <= asked


def test_what_the_user_has_set_stays():
    code = f"""
import numpy as np
np.int = 'kept'
from machine.runtime import load_mxnet
load_mxnet()
[{THREADS}, os.environ['MXNET_UPDATE_ON_KVSTORE'], np.int, np.bool is bool, np.float is float, np.object is object]"""
    assert values(code, OMP_NUM_THREADS="5", MXNET_UPDATE_ON_KVSTORE="1") == [5, "1", "kept", True, True, True]


def test_cpu_contexts_share_the_threads_and_cannot_be_configured_late():
    code = f"""
from machine import cpu
cpu.configure_threads(1000)
from machine.runtime import load_mxnet
load_mxnet()
cpu.usable_threads = lambda contexts: 999
try:
    cpu.configure_threads(1)
except RuntimeError as error:
    message = str(error)
[{THREADS}, message, os.environ['MXNET_UPDATE_ON_KVSTORE']]"""
    asked, message, kvstore = values(code)
    assert (asked, kvstore) == (1, "0")
    assert "OMP_NUM_THREADS=1; configure_threads(1) came after its import" in message


def test_reading_options_and_the_table_of_networks_loads_no_mxnet():
    code = """
import symbol.registry, symbol.symbol_factory, train.options, train.checks, train.main
from config.options import fields_of
options = train.options.train_options_class()
assert {'nms', 'iou_t', 'focal_gamma', 'targets'} <= set(fields_of(options))
"""
    assert values(code + "['mxnet' in sys.modules, 'vgg16_reduced' in symbol.registry.list_networks()]") == [
        False,
        True,
    ]


def test_the_rest_of_config_needs_neither_mxnet_nor_opencv():
    code = "import config.options, machine.cpu, machine.gpus, common.errors, common.version\n"
    assert values(code + "[name for name in ('mxnet', 'cv2', 'numpy') if name in sys.modules]") == []


def test_opencv_runs_without_threads_of_its_own_and_without_warnings(tmp_path):
    done = run(f"from machine.opencv import cv2\nprint(cv2.getNumThreads(), cv2.imread('{tmp_path}/none.jpg'))")
    assert (done.stdout, done.stderr) == ("1 None\n", "")


COMMAND = "from machine.command import run_command\ndef main(argv):\n    from machine.{}\nrun_command(main)"
MXNET, OPENCV = COMMAND.format("runtime import mx\n    mx.nd"), COMMAND.format("opencv import cv2")
NOT_FOUND = "cannot open shared object file: No such file or directory"


@pytest.mark.parametrize(
    ("command", "module", "error", "words"),
    [
        (
            OPENCV,
            "cv2",
            f"ImportError('libGL.so.1: {NOT_FOUND}')",
            ["libGL.so.1", "apt-get install libgl1 libglib2.0-0"],
        ),
        (OPENCV, "cv2", f"ImportError('libgthread-2.0.so.0: {NOT_FOUND}')", ["opencv-python-headless==4.11.0.86"]),
        (OPENCV, "cv2", "ModuleNotFoundError('No module', name='cv2')", ["OpenCV is not installed"]),
        (OPENCV, "cv2", "ImportError('numpy.core.multiarray failed')", ["cannot be loaded", "multiarray"]),
        (MXNET, "mxnet", "ModuleNotFoundError('No module', name='mxnet')", ["not installed", "'.[cpu]'", "'.[cu112]'"]),
        (MXNET, "mxnet", "ModuleNotFoundError('No module', name='distutils')", ["setuptools>=68"]),
        (MXNET, "mxnet", f"OSError('libgomp.so.1: {NOT_FOUND}')", ["apt-get install libgomp1"]),
        (MXNET, "mxnet", f"OSError('libcuda.so.1: {NOT_FOUND}')", ["NVIDIA driver"]),
        (MXNET, "mxnet", f"OSError('libcudnn.so.8: {NOT_FOUND}')", ["libcudnn.so.8", "requirements-cu112.lock"]),
        (MXNET, "mxnet", f"OSError('libfoo.so.9: {NOT_FOUND}')", ["the package that contains libfoo.so.9"]),
        (MXNET, "mxnet", "AttributeError('np.PZERO was removed')", ["PZERO", "tools/doctor.py"]),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence_with_the_remedy(tmp_path, command, module, error, words):
    (tmp_path / f"{module}.py").write_text(f"raise {error}\n", encoding="utf-8")
    done = run(command, path=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr


def test_cuda_libraries_of_wheels_are_loaded_in_order(tmp_path):
    """The folders of the nvidia wheels are searched once mxnet-cu112 is installed; what is not there is skipped."""
    (tmp_path / "mxnet_cu112-1.9.1.dist-info").mkdir()
    (tmp_path / "mxnet_cu112-1.9.1.dist-info" / "METADATA").write_text("Name: mxnet-cu112\nVersion: 1.9.1\n")
    (tmp_path / "mxnet.py").touch()
    for folder, name in (("cublas", "libcublas.so.11"), ("cudnn", "libcudnn.so.8"), ("cublas", "libcublasLt.so.11")):
        (tmp_path / "nvidia" / folder / "lib").mkdir(parents=True, exist_ok=True)
        (tmp_path / "nvidia" / folder / "lib" / name).touch()
    code = "loaded = []\nctypes.CDLL = lambda path, mode=0: loaded.append((path.split('/')[-1], mode))\n"
    runtime = code + "from machine.runtime import load_mxnet\nload_mxnet()\nprint(json.dumps(loaded))"
    done = run(runtime, path=tmp_path, DNNL_MAX_CPU_ISA="ALL")
    expected = ["libcublasLt.so.11", "libcublas.so.11", "libcudnn.so.8"]
    assert json.loads(done.stdout) == [[name, os.RTLD_GLOBAL] for name in expected], done.stderr


def test_an_earlier_import_of_mxnet_is_warned_of(tmp_path):
    (tmp_path / "mxnet.py").touch()
    done = run("import mxnet\nfrom machine.runtime import load_mxnet\nload_mxnet()", path=tmp_path)
    assert (done.returncode, "imported before machine.runtime" in done.stderr) == (0, True)


def test_a_module_trains():
    code = """
from machine.runtime import mx
data, label = mx.nd.array([[0, 1], [1, 0]] * 8), mx.nd.array([0, 1] * 8)
symbol = mx.sym.SoftmaxOutput(mx.sym.FullyConnected(mx.sym.var('data'), num_hidden=2), name='softmax')
module = mx.mod.Module(symbol)
batches = mx.io.NDArrayIter(data, label, batch_size=4)
module.fit(batches, num_epoch=20, optimizer_params={'learning_rate': 1.0}, initializer=mx.init.Xavier())
dict(module.score(batches, 'acc'))['accuracy']"""
    assert values(code) == 1.0
