"""The documents: every command line is parsed by its own command, Python compiles, names and links exist.

Blocks of shell are run by bash in an empty folder where python, make, pip and the rest only note what they are given;
then each command parses its words with its own options. Nothing is trained, downloaded or installed.
"""

import ast
import importlib
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from config import command_line
from config.options import fields_of

ROOT = Path(__file__).resolve().parents[1]
MAX_COLUMNS = 120
MAX_SECTION = 20  # lines of text between two headings; tables and commands are not counted
OTHERS = {"data", "output", "build", "node_modules"}  # folders of the root that are not the project's
DOCUMENTS = sorted(
    file
    for file in ROOT.glob("**/*.md")
    if not any(part.startswith(".") and part != ".github" for part in file.relative_to(ROOT).parts)
    and file.relative_to(ROOT).parts[0] not in OTHERS
)
# Those whose running text names commands and flags as they are; tests/test_coverage.py has more to say of coverage.md.
SPEAKING = [file for file in DOCUMENTS if "tests" not in file.parts and file.name != "coverage.md"]
PYTHONS = ("python", "python3", ".venv/bin/python")
SHELL_WORDS = ("curl", "git", "pip", "make", "pre-commit", *PYTHONS)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Notes a call in a file: each word ends with a NUL, the call with a line break and a NUL.
STUB = "#!/bin/bash\nprintf '%s\\0' {name} \"$@\" $'\\n' >> {calls}\n"  # at once, as others may write beside it


class Block(NamedTuple):
    """A fenced block."""

    place: str  # FILE:LINE of its first line
    language: str
    text: str


class Call(NamedTuple):
    """A command line."""

    place: str
    words: tuple[str, ...]


def name_of(file):
    return file.relative_to(ROOT).as_posix()


def text_of(file):
    return file.read_text(encoding="utf-8")


def split(file):
    """(text outside of fences with their lines left blank, blocks) of a Markdown file."""
    prose, blocks, opened = [], [], None
    for number, line in enumerate(text_of(file).splitlines(), 1):
        fence = line.startswith("```")
        if opened is None and not fence:
            prose.append(line)
            continue
        prose.append("")
        if opened is None:
            opened = (number + 1, line[3:], [])
        elif fence:
            first, language, lines = opened
            blocks.append(Block(f"{name_of(file)}:{first}", language, "\n".join(lines) + "\n"))
            opened = None
        else:
            opened[2].append(line)
    assert opened is None, f"{name_of(file)}: a block is not closed"
    return "\n".join(prose), blocks


def blocks_of(*languages):
    found = [block for file in DOCUMENTS for block in split(file)[1] if block.language in languages]
    return [pytest.param(block, id=block.place) for block in found]


def spans(file):
    """(place, text) of each `inline code`; a line break within is a blank."""
    prose = split(file)[0]
    for found in re.finditer(r"(?<!`)`([^`]+)`(?!`)", prose):
        number = prose.count("\n", 0, found.start()) + 1
        yield f"{name_of(file)}:{number}", " ".join(found[1].split())


# Lines, sections, links


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_lines_are_short(file):
    long = [n for n, line in enumerate(text_of(file).splitlines(), 1) if len(line) > MAX_COLUMNS]
    assert not long, f"{name_of(file)}: lines {long} have more than {MAX_COLUMNS} columns"


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_code_stands_in_fences_of_a_known_language(file):
    prose, blocks = split(file)
    indented = [n for n, line in enumerate(prose.splitlines(), 1) if line.startswith("    ")]
    assert not indented, f"{name_of(file)}: lines {indented} are code without a fence"
    assert {block.language for block in blocks} <= {"sh", "python", "json", "yaml", "text"}


@pytest.mark.parametrize("file", [f for f in DOCUMENTS if f.parent.name in ("docs", ROOT.name)], ids=name_of)
def test_sections_are_short(file):
    if file.name == "CHANGELOG.md":
        return
    for section in re.split(r"^#+ ", split(file)[0], flags=re.MULTILINE):
        title, *lines = section.splitlines() or [""]
        text = [line for line in lines if line and not line.startswith("|")]
        assert len(text) <= MAX_SECTION, f"{name_of(file)}: section {title!r} has {len(text)} lines of text"


def anchors_of(file):
    """The anchors that the headings of a document get."""
    found = re.findall(r"^#+ (.*)$", split(file)[0], flags=re.MULTILINE)
    plain = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", title).lower() for title in found]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(file):
    prose = re.sub(r"`[^`]*`", "", split(file)[0])
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"(https?|mailto):", target):
            continue
        path, _, anchor = target.partition("#")
        aim = (file.parent / path) if path else file
        assert aim.exists(), f"{name_of(file)}: no {target}"
        assert not anchor or anchor in anchors_of(aim), f"{name_of(file)}: {path or 'here'} has no heading #{anchor}"


# Shell


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """The folder where blocks are run: stubs in bin/, an environment in .venv."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("bin", ".venv/bin"):
        (folder / name).mkdir(parents=True)
    for name in SHELL_WORDS:
        path = folder / (name if "/" in name else f"bin/{name}")
        path.write_text(STUB.format(name=name, calls=shlex.quote(str(folder / "calls"))))
        path.chmod(0o755)
    (folder / ".venv/bin/activate").write_text("")
    return folder


def calls_of(block, bench):
    """What a block of shell calls, in order; a `...` stands for further options."""
    calls = bench / "calls"
    calls.write_text("")
    bash = [shutil.which("bash"), "--norc", "-euc", f"{block.text}\nwait"]  # for what runs in the background
    done = subprocess.run(bash, cwd=bench, env={"PATH": str(bench / "bin")}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{block.place}: {done.stderr}"
    found = [call.split("\0")[:-1] for call in calls.read_text().split("\n\0")[:-1]]
    assert found, f"{block.place}: no command"
    return [Call(block.place, tuple(word for word in words if word != "...")) for words in found]


class Parsed(BaseException):
    """The words of a command were accepted."""


def main_of(module, script):
    """The function that a script hands to run_command: its own main, or the one that it imports."""
    for node in ast.walk(ast.parse(text_of(script))):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "main" for alias in node.names):
            return importlib.import_module(node.module).main
    return importlib.import_module(module).main


def stopped_main(script, monkeypatch, seen=None):
    """The main of a script, which raises Parsed as soon as its options are read. seen gets the option class unread."""
    main = main_of(name_of(script).removesuffix(".py").replace("/", "."), script)
    real = command_line.parse_options

    def parse_and_stop(cls, *args, **kwargs):
        if seen is None:
            real(cls, *args, **kwargs)
        else:
            seen.append(cls)
        raise Parsed

    for loaded in list(sys.modules.values()):
        if getattr(loaded, "parse_options", None) is real:
            monkeypatch.setattr(loaded, "parse_options", parse_and_stop)
    return main


def parse_by_its_command(call, script, words, folder, monkeypatch):
    """Runs the command's main until its options are read. Files that options are read from are made up in `folder`."""
    with monkeypatch.context() as patch:
        main = stopped_main(script, patch)
        patch.chdir(folder)
        for flag, value in zip(words, words[1:], strict=False):
            if flag in ("--config", "--hyp") and value.endswith((".yaml", "FILE")):
                (folder / value).write_text("{}\n")
        try:
            main(list(words))
        except Parsed:
            return
        except Exception as error:
            pytest.fail(f"{call.place}: {shlex.join(call.words)}: {error}")
    pytest.fail(f"{call.place}: {shlex.join(call.words)}: the command read no options")


def check(call, folder, monkeypatch):
    """That a call would be understood by what it names."""
    program, *words = call.words
    if program in PYTHONS:
        check_python(call, words, folder, monkeypatch)
    elif program == "make":
        check_make(call, words)
    elif program == "pip":
        check_pip(call, words)
    elif program == "pre-commit":
        assert words[0] in ("install", "run"), call


def check_python(call, words, folder, monkeypatch):
    if words[:1] == ["-m"]:
        if words[1] == "pytest":
            assert all((ROOT / word).exists() for word in words[2:] if "/" in word), call
            return
        script, rest = ROOT / f"{words[1].replace('.', '/')}.py", words[2:]
    else:
        script, rest = ROOT / words[0], words[1:]
        if not script.is_file() and (ROOT / "examples" / words[0]).is_file():
            script = ROOT / "examples" / words[0]
    assert script.is_file(), f"{call.place}: no {words}"
    if script.parent.name == "examples":
        assert 2 <= len(rest) <= 3, f"{call.place}: FOLDER IMAGE [LOWEST_SCORE]"
    elif rest != ["--help"] and "run_command(main)" in text_of(script):
        parse_by_its_command(call, script, rest, folder, monkeypatch)


def check_make(call, words):
    rules = text_of(ROOT / "Makefile")
    targets = [word for word in words if "=" not in word and not word.startswith("-")]
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", rules, re.MULTILINE), f"{call.place}: no target {target}"
    for name, _, value in (word.partition("=") for word in words if "=" in word):
        assert f"{name} ?=" in rules, f"{call.place}: no variable {name}"
        assert name != "LOCK" or (ROOT / value).is_file(), f"{call.place}: no file {value}"


def check_pip(call, words):
    assert words[0] == "install", call
    extras = PROJECT["optional-dependencies"]
    for word in words[1:]:
        if word.startswith("."):
            assert set(word.removeprefix(".").strip("[]").split(",")) <= extras.keys(), f"{call.place}: {word}"
        elif not word.startswith("-"):
            known_or_pinned_alike(call.place, Requirement(word))


def known_or_pinned_alike(place, requirement):
    """A version that a document names is the one of pyproject.toml."""
    declared = [
        *PROJECT["dependencies"],
        *(one for group in PROJECT["optional-dependencies"].values() for one in group),
    ]
    ours = {canonicalize_name(one.name): one for one in map(Requirement, declared)}
    name = canonicalize_name(requirement.name).removesuffix("-headless")
    assert name in ours or name == "pre-commit", f"{place}: {requirement}"
    if str(requirement.specifier).startswith("=="):
        assert requirement.specifier == ours[name].specifier, f"{place}: {requirement}, not {ours[name]}"


@pytest.mark.parametrize("block", blocks_of("sh"))
def test_commands_are_understood(block, bench, tmp_path, monkeypatch):
    for call in calls_of(block, bench):
        check(call, tmp_path, monkeypatch)


SCRIPTS = {file.name: file for folder in ("", "tools") for file in (ROOT / folder).glob("*.py")}


def inline_calls():
    """Command lines in running text: `make test`, `python train.py ...`, `deploy.py --onnx`, `tools/im2rec.py`."""
    for place, text in (span for file in SPEAKING for span in spans(file)):
        if " " in text or "/" in text:
            first = re.sub(r"^(\w+=\S+ )+", "", text).partition(" ")[0]
            if text in PYTHONS:
                continue
            if first in (*PYTHONS, "make", "pip") or re.fullmatch(r"[\w/]+\.py", first):
                yield Call(place, tuple(shlex.split(text)))


@pytest.mark.parametrize("call", [pytest.param(c, id=f"{c.place} {' '.join(c.words)}"[:80]) for c in inline_calls()])
def test_commands_in_running_text_are_understood(call, tmp_path, monkeypatch):
    words = [word for word in call.words if word != "..." and not re.fullmatch(r"\w+=\S*", word)]
    if not words[0].endswith(".py"):
        check(Call(call.place, tuple(words)), tmp_path, monkeypatch)
    elif len(words) == 1:
        assert (ROOT / words[0]).is_file(), f"{call.place}: no file {words[0]}"
    else:
        script = SCRIPTS[words[0].rpartition("/")[2]]
        check(Call(call.place, ("python", name_of(script), *words[1:])), tmp_path, monkeypatch)


COMMANDS = [
    file
    for folder in ("", "tools", "benchmarks")
    for file in sorted((ROOT / folder).glob("*.py"))
    if "run_command(main)" in text_of(file)
]


def flags_of(cls):
    """All flags that an option class makes."""
    names = {name for field in fields_of(cls).values() for name in (field.name, *field.metadata["aliases"])}
    flags = {name.rstrip("_").replace("_", "-") for name in names}
    return {f"--{flag}" for flag in flags} | {f"--no-{flag}" for flag in flags}


def test_flags_in_running_text_exist(monkeypatch):
    """`--batch-size`, `--freeze body`: a flag of some command."""
    seen = []
    for script in COMMANDS:
        with monkeypatch.context() as patch, pytest.raises(Parsed):
            stopped_main(script, patch, seen)([])
    known = {"--help", "--help-all", "--config", "--hyp"} | {flag for cls in seen for flag in flags_of(cls)}
    for place, text in (span for file in SPEAKING for span in spans(file)):
        for flag in re.findall(r"(?:^| )(--[a-z][\w-]*)", text):
            assert flag.replace("_", "-") in known, f"{place}: no command has {flag}"


# Python, JSON, YAML


OURS = {file.parent.name for file in ROOT.glob("*/__init__.py")}


def check_code(place, code):
    """Compiles Python, imports what it takes from this project, and binds the arguments of calls to that."""
    nodes = list(ast.walk(ast.parse(code, place)))
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                assert alias.name.partition(".")[0] not in OURS or importlib.import_module(alias.name)
    names = imported(place, nodes)
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            check_arguments(place, node, names[node.func.id])


def imported(place, nodes):
    """{name: object} of what `from MODULE import NAME` takes from this project."""
    found = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in OURS:
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{place}: {node.module} has no {alias.name}"
                found[alias.asname or alias.name] = getattr(module, alias.name)
    return found


def check_arguments(place, call, function):
    """A call without stars has arguments that the function takes."""
    names = [keyword.arg for keyword in call.keywords]
    if None in names or any(isinstance(one, ast.Starred) for one in call.args):
        return
    try:
        inspect.signature(function).bind(*call.args, **dict.fromkeys(names))
    except TypeError as error:
        pytest.fail(f"{place}: {call.func.id}: {error}")


@pytest.mark.parametrize("block", blocks_of("python"))
def test_python_compiles_and_its_names_exist(block):
    check_code(block.place, block.text)


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_imports_in_running_text_exist(file):
    for place, text in spans(file):
        if re.match(r"(from \S+ )?import \S", text):
            check_code(place, text)


@pytest.mark.parametrize("block", blocks_of("json", "yaml"))
def test_data_can_be_read(block):
    yaml.safe_load(block.text) if block.language == "yaml" else json.loads(block.text)


# What the sources say in their own first lines


def usages():
    """The command lines in the docstrings of modules, a word of their own at the beginning of a line."""
    for file in sorted(
        file for folder in ("", "examples", "tools", "benchmarks") for file in (ROOT / folder).glob("*.py")
    ):
        text = (ast.get_docstring(ast.parse(text_of(file))) or "").replace("\\\n", " ")
        for line in text.splitlines():
            found = re.search(r"(?:^|: )(python (?:-m )?[\w./]+(?: .*)?)$", line)
            if found:
                bare = re.sub(r"\s{2,}\(.*\)$|\.$", "", re.sub(r"[\[\]]", "", found[1]))
                yield Call(name_of(file), tuple(shlex.split(bare)))


@pytest.mark.parametrize("call", [pytest.param(call, id=shlex.join(call.words)[:80]) for call in usages()])
def test_usage_in_a_docstring_is_understood(call, tmp_path, monkeypatch):
    check(call, tmp_path, monkeypatch)
