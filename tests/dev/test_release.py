"""What a release is made of: one version, workflows and forms that GitHub takes, tasks by one name."""

import json
import re
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import depass_sae as ds
from depass_sae.dev.__main__ import TASKS
from depass_sae.dev.lowest import EXTRAS, TESTS

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def published(name: str) -> dict[str, Any]:
    """A schema as schemastore.org has it, which check-jsonschema brings along."""
    pytest.importorskip("check_jsonschema")
    text = resources.files("check_jsonschema.builtin_schemas.vendor").joinpath(f"{name}.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def read(path: Path) -> dict[str, Any]:
    content: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in content.items()}  # YAML 1.1 takes `on` for true


def check(document: Any, schema: dict[str, Any]) -> None:
    jsonschema.validators.validator_for(schema)(schema).validate(document)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_one_by_the_published_schema(path: Path) -> None:
    check(read(path), published("github-workflows"))


def test_a_broken_workflow_is_none() -> None:
    broken = read(WORKFLOWS[0])
    next(iter(broken["jobs"].values()))["runs-onn"] = "ubuntu-latest"
    with pytest.raises(jsonschema.ValidationError):
        check(broken, published("github-workflows"))


def test_workflows_do_what_there_is_to_do_and_no_more() -> None:
    steps = [
        step["run"]
        for path in WORKFLOWS
        for job in read(path)["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    asked = {found[1] for step in steps if (found := re.match(r"python -m depass_sae\.dev (\w+)$", step))}
    assert asked == set(TASKS)
    assert all(step.startswith(("python -m depass_sae.dev ", "python -m pip install ")) for step in steps)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_an_issue_form_is_one_by_the_published_schema(path: Path) -> None:
    check(read(path), published("github-issue-forms"))


def test_the_citation_is_one_and_of_this_version() -> None:
    citation = read(ROOT / "CITATION.cff")
    check(citation, published("citation-file-format"))
    assert citation["version"] == ds.__version__


def test_the_version_is_written_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "depass_sae._version.__version__"}
    assert f"\n## {ds.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_extra_says_what_it_is_for() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    assert {"demo", "notebook", "index", "paper", "ray", "docs", "test", "dev"} == set(extras)
    for name in extras:
        assert re.search(rf"^# .+\n{name} = \[", text, re.MULTILINE), name


def test_the_makefile_calls_every_task() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"-m depass_sae.dev {task}" in text for task in TASKS)


def test_a_task_that_there_is_not_is_named_with_those_there_are() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "depass_sae.dev", "publish"], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "'publish'" in ended.stderr
    assert all(task in ended.stderr for task in TASKS)


def test_lower_bounds_are_tried_with_tests_that_there_are_and_extras_that_there_are() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(EXTRAS) <= extras.keys()
    assert all((ROOT / path).exists() for path in TESTS)


def test_every_dependency_has_a_lower_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(one for extra in EXTRAS for one in project["optional-dependencies"][extra])]
    assert all(re.search(r">=\d", one) for one in asked)
