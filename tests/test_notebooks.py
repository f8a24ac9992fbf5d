"""The committed notebooks run from top to bottom, and show what they showed when they were committed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from depass_sae.demo.notebooks import ELSEWHERE, METADATA, run, text, tidied

from . import llama_stand_in

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = Path(__file__).parent.parent / "notebooks"
ALL = sorted(FOLDER.glob("*.ipynb"))
HERE = [path for path in ALL if path.name not in ELSEWHERE]
LLAMA_SCOPE = FOLDER / "05_llama_scope.ipynb"

LEAKS = {
    "a path of a machine": re.compile(r"(?<![\w/.:<])(/(home|root|tmp|usr|Users|var|opt|work)/|[A-Z]:\\)"),
    "a warning": re.compile(r"\bwarn(ing)?\b|Warning", re.IGNORECASE),
    "an address in memory": re.compile(r"\bat 0x[0-9a-f]{6,}"),
    "a time": re.compile(r"\b20\d\d-\d\d-\d\d|\b\d\d:\d\d:\d\d\b"),
    "a progress bar": re.compile(r"\d+%\|"),
}


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: Any) -> Iterator[tuple[str, Any]]:
    for cell in code(notebook):
        yield from ((cell.id, output) for output in cell.outputs)


def shown(output: Any) -> Iterator[str]:
    """Everything in an output that is text; not the style of what is shown, which has names of its own."""
    if output.output_type == "stream":
        yield output.text
    for kind, content in output.get("data", {}).items():
        if not kind.startswith("image/"):
            yield re.sub(r"<style>.*?</style>", "", str(content), flags=re.DOTALL)  # what is seen, not how it looks


def check_clean(notebook: Any) -> None:
    for cell, output in outputs(notebook):
        assert output.output_type != "error", f"{cell}: {output.get('evalue')}"
        assert output.get("name") != "stderr", f"{cell}: {output.text}"
        for content in shown(output):
            for what, leak in LEAKS.items():
                assert not leak.search(content), f"{cell} shows {what}: {content[:300]}"


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


# ------------------------------------------------------------------------------------------------ as they are committed


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_notebook_is_in_the_form_that_running_it_writes(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata == METADATA
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert all(re.fullmatch(r"[a-z][a-z-]*", cell.id) for cell in notebook.cells)
    assert path.read_text(encoding="utf-8") == text(tidied(notebook))


@pytest.mark.parametrize("path", HERE, ids=lambda path: path.stem)
def test_a_committed_notebook_was_run_from_top_to_bottom_and_its_outputs_are_clean(path: Path) -> None:
    notebook = read(path)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert sum(bool(cell.outputs) for cell in code(notebook)) >= len(code(notebook)) - 1  # one may only import and load
    kinds = {kind for _, output in outputs(notebook) for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= kinds
    check_clean(notebook)


def test_the_one_that_was_not_run_says_so_and_shows_nothing() -> None:
    notebook = read(LLAMA_SCOPE)
    assert "without outputs" in notebook.cells[0].source
    assert not list(outputs(notebook))
    assert {cell.execution_count for cell in code(notebook)} == {None}
    assert [cell.id for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])] == ["parameters"]


def test_links_between_the_pages_lead_somewhere() -> None:
    pages = {path: "\n".join(cell.source for cell in read(path).cells) for path in ALL}
    pages[FOLDER / "README.md"] = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path, page in pages.items():
        for link in re.findall(r"\]\(([^)#:]+)\)", page):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_every_notebook_is_in_the_folders_readme() -> None:
    listed = re.findall(r"\]\((\w+\.ipynb)\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert listed == [path.name for path in ALL]


# ---------------------------------------------------------------------------------------------------------- run again


@pytest.mark.smollm2
@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=[pytest.mark.long] * (path != HERE[0])) for path in HERE]
)
def test_a_notebook_runs_from_top_to_bottom(path: Path) -> None:
    from depass_sae.errors import UserError
    from depass_sae.models.smollm2 import prepare

    try:
        prepare()
    except UserError as missing:
        pytest.skip(str(missing))
    before = path.read_bytes()
    made = run(path, timeout=120)
    check_clean(made)
    committed = read(path)
    assert [cell.source for cell in made.cells] == [cell.source for cell in committed.cells]
    for ours, theirs in zip(code(made), code(committed), strict=True):
        kinds = [[sorted(output.get("data", ())) for output in cell.outputs] for cell in (ours, theirs)]
        assert kinds[0] == kinds[1], ours.id
    assert path.read_bytes() == before


def test_the_llama_scope_notebook_runs_as_it_stands_on_a_small_model_under_the_real_names(tmp_path: Path) -> None:
    with llama_stand_in.hub(tmp_path / "model") as address:
        away = {name: "" for name in os.environ if name.startswith(("HF_", "HUGGING"))}
        here = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        direct = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        made = run(LLAMA_SCOPE, {**away, **here, **direct}, timeout=120)
    check_clean(made)
    by_id = {cell.id: cell for cell in code(made)}
    assert all(by_id[name].outputs for name in by_id if name != "parameters")
    tables = by_id["compare-table"].outputs[0].data["text/plain"]
    assert all(published in tables for published in ("35.250", "+26.8750", "+4.7500"))
