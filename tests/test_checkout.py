"""An application in a checkout: nothing goes into site-packages, and every command runs by its path from anywhere."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
MAX_HELP = 100  # lines, of 80 columns
PATIENCE = 120.0  # seconds; a loaded machine must not fail a test
COMMANDS = ("train.py", "evaluate.py", "demo.py", "deploy.py")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def tools():
    """The files in tools/ that are commands, relative to the root."""
    files = (ROOT / "tools").glob("*.py")
    return sorted(f"tools/{file.name}" for file in files if "run_command(main)" in file.read_text(encoding="utf-8"))


def run(*words, cwd, **more):
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=os.environ | more, capture_output=True, text=True, timeout=PATIENCE
    )


def assert_remedy(done):
    """Status 2 and one sentence that says what to do."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "`make venv`" in done.stderr
    assert f"{ROOT}/.venv/bin/python" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize("command", [*COMMANDS, *tools()])
def test_a_command_runs_by_its_path_from_any_folder(tmp_path, command):
    (tmp_path / "config.py").write_text("raise SystemExit('the module of another project was imported')\n")
    done = run(str(ROOT / command), "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(command).name in done.stdout.splitlines()[0]  # usage: NAME.py


@pytest.mark.parametrize("command", [*COMMANDS, *tools()])
def test_help_fits_a_few_screens_and_has_an_example(command):
    done = run(str(ROOT / command), "--help", cwd=ROOT, COLUMNS="80")
    lines = done.stdout.splitlines()
    assert len(lines) <= MAX_HELP
    assert any(line.startswith(f"Example: python {command}") for line in lines)


@pytest.mark.parametrize("command", [*COMMANDS, *tools()])
def test_missing_packages_are_one_sentence(tmp_path, command):
    """-S: Python's own library without site-packages, as the python3 of a fresh machine has it."""
    done = run("-S", str(ROOT / command), "--help", cwd=tmp_path)
    assert_remedy(done)
    assert "is missing for " in done.stderr


def test_missing_packages_are_one_sentence_with_dash_m_too():
    assert_remedy(run("-S", "-m", "tools.doctor", cwd=ROOT))


def test_what_the_command_itself_imports_later_is_one_sentence_too(tmp_path):
    """A package that is found to be missing only within main."""
    (tmp_path / "tensorboardX.py").write_text("import no_such_library\n")
    code = "import common.first\nfrom machine.command import run_command\nrun_command(lambda argv: __import__('%s'))"
    done = run("-c", code % "tensorboardX", cwd=ROOT, PYTHONPATH=str(tmp_path))
    assert_remedy(done)
    assert "the Python module no_such_library is missing" in done.stderr


def test_a_missing_module_of_the_project_is_a_bug_with_its_traceback():
    done = run("-c", "import common.first\nimport train.no_such_module", cwd=ROOT)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_mistake_that_an_import_finds_is_one_sentence():
    code = "import common.first\nfrom common.errors import InstallError\nraise InstallError('libGL is\\nmissing')"
    done = run("-c", code, cwd=ROOT)
    assert (done.returncode, done.stderr) == (2, "error: libGL is missing\n")
    assert "Traceback" in run("-c", code, cwd=ROOT, DETECTOR_TRACEBACK="1").stderr


def test_ctrl_c_while_modules_are_imported_is_no_traceback():
    done = run("-c", "import common.first\nraise KeyboardInterrupt", cwd=ROOT)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_an_old_python_is_told():
    code = "import sys\nsys.version_info = (3, 10, 1)\nimport common.first"
    done = run("-c", code, cwd=ROOT)
    assert_remedy(done)
    assert "Python 3.10 is too old" in done.stderr


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """{"wheel" or "editable": names in the wheel that setuptools builds of a copy of the sources}."""
    copy = tmp_path_factory.mktemp("build") / "checkout"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "data", "output", "golden", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=ignored)
    found = {}
    for kind in ("wheel", "editable"):
        code = f"from setuptools import build_meta; build_meta.build_{kind}({str(copy.parent)!r})"
        done = run("-c", code, cwd=copy)
        assert done.returncode == 0, done.stderr
        (file,) = copy.parent.glob("*.whl")
        with zipfile.ZipFile(file) as archive:
            found[kind] = {name: archive.read(name).decode() for name in archive.namelist()}
        file.unlink()
    return found


def test_the_wheel_holds_metadata_alone(wheels):
    folders = {name.partition("/")[0] for name in wheels["wheel"]}
    assert len(folders) == 1
    assert folders.pop().endswith(".dist-info")


def test_an_editable_install_makes_nothing_importable(wheels):
    """setuptools' own hook for editable installs is there, and it knows no name and no folder."""
    own = {name: text for name, text in wheels["editable"].items() if ".dist-info/" not in name}
    assert all(name.startswith("__editable__") for name in own)
    (finder,) = (text for name, text in own.items() if name.endswith("_finder.py"))
    assert re.search(r"^MAPPING: .* = \{\}$", finder, re.MULTILINE)
    assert re.search(r"^NAMESPACES: .* = \{\}$", finder, re.MULTILINE)
    assert not any(str(ROOT) in text or "checkout" in text for text in own.values())


# What is advised beside pyproject.toml's own; each is a project on PyPI.
OTHERS_ON_PYPI = {"opencv-python-headless", "pip-audit", "pre-commit"}


def advice():
    """(file, words after `pip install`) wherever the sources or the documents tell somebody to install something."""
    files = [file for kind in ("*.py", "*.md", "Makefile") for file in ROOT.rglob(kind)]
    for file in sorted(files):
        path = file.relative_to(ROOT)
        if path.parts[0] == "tests" or any(part.startswith(".") and part != ".github" for part in path.parts):
            continue
        for found in re.finditer(r"pip install ([^`\n]*)", file.read_text(encoding="utf-8")):
            yield str(path), list(requirement_words(found[1]))


def requirement_words(text):
    """The words of a pip command that name what to install, without quotes; what follows the command is left out."""
    for word in text.split():
        bare = word.strip("'\"").rstrip(".,:;)'\"")
        if not word.startswith("-"):
            if not re.fullmatch(r"\.\[.+\]|[A-Za-z][\w.-]*([<>=]=?[\w.,<>=]+)?", bare):
                return
            yield bare
        if bare != word.strip("'\"") or not bare:
            return


def test_only_packages_that_exist_are_advised():
    declared = [
        *PROJECT["dependencies"],
        *(one for group in PROJECT["optional-dependencies"].values() for one in group),
    ]
    known = {canonicalize_name(Requirement(one).name) for one in declared} | OTHERS_ON_PYPI
    found = list(advice())
    assert found
    for file, words in found:
        assert words, file
        for word in words:
            if word.startswith("."):
                extras = set(word[2:-1].split(","))
                assert extras <= PROJECT["optional-dependencies"].keys() or "{" in word, f"{file}: {word}"
            else:
                assert canonicalize_name(Requirement(word).name) in known, f"{file}: {word}"


def test_the_extras_of_the_engines_exist():
    from engines import engine as engines

    assert set(engines._EXTRAS.values()) <= PROJECT["optional-dependencies"].keys()
