"""What a public host and a contributor find: forms, workflow, hooks, citation, changelog. They parse and agree."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from common.errors import DEBIAN_PACKAGES
from common.version import __version__

ROOT = Path(__file__).resolve().parents[1]
FILES = [ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff", *sorted((ROOT / ".github").rglob("*.yml"))]
FORMS = [file for file in FILES if file.parent.name == "ISSUE_TEMPLATE" and file.name != "config.yml"]
POSSIBLE = [f"3.{minor}" for minor in range(20)]


def load(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def workflow():
    found = load(".github/workflows/test.yml")
    return found, found["jobs"]["test"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_parses(file):
    assert isinstance(load(file), dict)


def test_the_workflow_runs_every_python_that_the_project_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    allowed = [version for version in POSSIBLE if SpecifierSet(project["requires-python"]).contains(version)]
    _, job = workflow()
    assert job["strategy"]["matrix"]["python-version"] == allowed
    assert all(isinstance(version, str) for version in allowed)  # 3.10 as a number would be 3.1


def test_the_workflow_runs_the_script_with_few_rights_and_an_end():
    whole, job = workflow()
    assert whole["permissions"] == {"contents": "read"}
    assert "permissions" not in job
    assert whole["concurrency"]["group"]
    assert 0 < job["timeout-minutes"] <= 180
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands[-1] == "PYTHON=python${{ matrix.python-version }} .ci/run"
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_the_workflow_installs_the_system_libraries_that_the_doctor_knows():
    _, job = workflow()
    words = " ".join(step.get("run", "") for step in job["steps"]).split()
    assert set(DEBIAN_PACKAGES.values()) <= set(words)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_form_has_what_the_host_asks_for(form):
    found = load(form)
    assert found["name"]
    assert found["description"]
    ids = [part.get("id") for part in found["body"] if part["type"] != "markdown"]
    assert len(set(ids)) == len(ids) > 0
    assert None not in ids
    for part in found["body"]:
        assert part["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
        assert part["attributes"].get("value") or part["attributes"]["label"]


def test_a_bug_comes_with_the_report_of_the_doctor():
    labels = [part["attributes"].get("label", "") for part in load(".github/ISSUE_TEMPLATE/bug.yml")["body"]]
    assert any("`python -m tools.doctor --json`" in label for label in labels)


def test_the_hooks_format_and_check():
    hooks = [hook["id"] for repository in load(".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]]
    for wanted in ("ruff-format", "ruff-check", "check-added-large-files", "check-merge-conflict", "check-yaml"):
        assert wanted in hooks
    assert "check-toml" in hooks


def test_one_version_everywhere():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)
    assert changelog.index("## [Unreleased]") < changelog.index(f"## [{releases[0][0]}]")
    assert [date for _, date in releases] == sorted((date for _, date in releases), reverse=True)
    citation = load("CITATION.cff")
    assert (citation["version"], str(citation["date-released"])) == releases[0]
    assert citation["version"] == __version__


def test_a_release_says_what_it_changes_in_the_words_of_keep_a_changelog():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    kinds = set(re.findall(r"^### (.*)$", changelog, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
