"""The report on the machine: as text, as JSON, and when something is missing."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from common.version import __version__
from tools import doctor

ROOT = Path(__file__).parents[2]


def run(*words: str, path: Path | None = None, module: bool = True) -> subprocess.CompletedProcess:
    """Runs the doctor as a module, or as a script."""
    place = ["-m", "tools.doctor"] if module else ["tools/doctor.py"]
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "PYTHONPATH")}
    folders = {"PYTHONPATH": str(path)} if path else {}
    command = [sys.executable, *place, *words]
    return subprocess.run(command, cwd=ROOT, env={**kept, **folders}, capture_output=True, text=True)


def test_a_working_machine_is_reported_in_json():
    done = run("--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["versions"]["detector"] == __version__
    assert report["versions"]["numpy"] == metadata.version("numpy")
    assert "OPENCV" in report["features"]
    assert str(report["cpu"]["threads"]) == report["cpu"]["omp_num_threads"]
    assert 1 <= report["cpu"]["threads"] <= report["cpu"]["affinity"]
    assert 0 < report["memory"]["available"] <= report["memory"]["total"]
    assert report["problems"] == []
    assert doctor.describe(report)[-1] == "Training on the CPU works."


def test_the_script_runs_from_its_path():
    done = run("--missing-packages", module=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_machine_without_mxnet_gets_the_rest_of_the_report_and_the_remedy(tmp_path):
    (tmp_path / "mxnet.py").write_text("raise ModuleNotFoundError('No module', name='mxnet')")
    done = run(path=tmp_path)
    assert done.returncode == 2
    assert "problem: mxnet is not installed" in done.stdout.splitlines()[-1]
    assert "/dev/shm" in done.stdout
    assert done.stderr == ""


def test_a_machine_without_libgl_is_told_the_package(tmp_path):
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file: No such file')")
    (tmp_path / "mxnet.py").write_text("raise ModuleNotFoundError('No module', name='mxnet')")
    done = run(path=tmp_path)
    assert done.returncode == 2
    assert "apt-get install libgl1" in done.stdout


def test_missing_packages_are_listed_one_a_line(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "missing_packages", lambda: ["libgl1", "libgomp1"])
    assert doctor.main(["--missing-packages"]) == 0
    assert capsys.readouterr().out == "libgl1\nlibgomp1\n"


def test_the_report_names_the_quota_the_gpus_and_every_problem():
    card = {"name": "H100", "capability": (9, 0), "memory": 80 << 30, "supported": False}
    report = {
        "versions": {"detector": "1"},
        "executable": "python",
        "features": [],
        "cpu": {"model": "x", "instructions": [], "logical": 8, "affinity": 4, "cores": 2, "quota": 1.5}
        | {"omp_num_threads": "1", "threads": None},
        "memory": {"total": 8 << 30, "available": 3 << 29},
        "shm": None,
        "gpu": {"cuda": (12, 4), "gpus": [card], "problem": "too new"},
        "problems": ["a", "b"],
    }
    text = "\n".join(doctor.describe(report))
    for words in ("4 of 8 logical CPUs granted, quota 1.5 CPUs", "1.5 GiB of 8.0 GiB", "missing", "capability 9.0"):
        assert words in text
    for words in ("80.0 GiB, not supported", "not usable: too new", "problem: a\nproblem: b"):
        assert words in text
