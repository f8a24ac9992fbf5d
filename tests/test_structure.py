"""The house's shape: who knows the kinds of sublayers, and who does not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import depass_sae
from depass_sae.passes.mixers import KINDS

PACKAGE = Path(depass_sae.__file__).parent
AT_HOME = ("passes/mixers/", "passes/sources.py", "models/families/", "models/sublayer.py")
"""Where kinds are told apart: their own files, what splits a stream into their units, and the families' tables."""
WORDS = {"attn", "mlp", "head", "neuron", "heads", "neurons", "hook_z", "attn_out", "mlp_out", "mlp_in"}
"""What a kind of sublayer, its units and its places are called."""
CLASSES = {kind.__name__ for kind in (*KINDS, *KINDS.values())}
FILES = [path for path in PACKAGE.rglob("*.py") if not str(path.relative_to(PACKAGE)).startswith(AT_HOME)]


def branches(tree: ast.AST) -> list[ast.AST]:
    """What decides: tests of if, while, ternaries, comprehensions and asserts, and the cases of a match."""
    found: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            found.append(node.test)
        elif isinstance(node, ast.comprehension):
            found += node.ifs
        elif isinstance(node, ast.match_case):
            found.append(node.pattern)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
            found.append(node)
    return found


def asks_for_a_kind(test: ast.AST) -> bool:
    """Whether a condition compares a sublayer's kind, or looks at the class of a mixer or part."""
    for node in ast.walk(test):
        if isinstance(node, ast.Call):
            names = {getattr(n, "id", getattr(n, "attr", "")) for arg in node.args[1:] for n in ast.walk(arg)}
            if getattr(node.func, "id", "") == "isinstance" and names & CLASSES:
                return True
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            asked = {n.attr for side in sides for n in ast.walk(side) if isinstance(n, ast.Attribute)}
            words = {n.value for side in sides for n in ast.walk(side) if isinstance(n, ast.Constant)}
            if words & WORDS and asked & {"sublayer", "mixer", "place", "hook", "unit", "name", "point"}:
                return True
    return False


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_but_the_kinds_own_branches_on_a_kind_of_sublayer(path: Path) -> None:
    wrong = [ast.unparse(test) for test in branches(ast.parse(path.read_text())) if asks_for_a_kind(test)]
    assert not wrong


@pytest.mark.parametrize("path", sorted((PACKAGE / "models/families").glob("*.py")), ids=lambda path: path.name)
def test_a_family_is_a_table_of_under_sixty_lines(path: Path) -> None:
    if path.name != "rows.py":
        assert len(path.read_text().splitlines()) < 60


def test_what_branches_is_found() -> None:
    for text in (
        "if level.sublayer == 'attn': pass",
        "x = 1 if place.hook in ('hook_z',) else 2",
        "[a for a in b if a.unit != 'head']",
        "isinstance(x, Experts)",
    ):
        assert any(map(asks_for_a_kind, branches(ast.parse(text)))), text


# ------------------------------------------------------------------------------------------------------------- imports

FLOORS = (
    ("errors", "texts", "files", "arguments", "_version", "plain_yaml", "view"),
    ("models", "labels"),
    ("passes",),
    ("saes",),
    ("subject", "loading"),
    ("attribution",),
    ("graph", "index"),
    ("report", "evaluation"),
    ("estimating",),
    ("api",),
    ("cli", "demo", "dev", "__main__"),
)
"""The house from the ground up: a room imports from its own floor and from those below, wherever in a file it does."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imported() -> set[tuple[str, str]]:
    """Which module imports which, function bodies included; what only a type checker reads is left out."""
    paths = {_module(path): path for path in PACKAGE.rglob("*.py")}
    found = set()
    for module, path in paths.items():
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        for node in _run(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else [])]
                for alias in node.names:
                    inner, outer = ".".join([*base, alias.name]), ".".join(base)
                    name = inner if inner in paths else outer
                    found |= {(module, name)} if name in paths and name not in ("", module) else set()
    return found


def _module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """What is run: all but the bodies of ``if TYPE_CHECKING``."""
    yield tree
    typing = isinstance(tree, ast.If) and getattr(tree.test, "id", "") == "TYPE_CHECKING"
    for child in tree.orelse if typing else ast.iter_child_nodes(tree):  # type: ignore[attr-defined]
        yield from _run(child)


def test_no_room_imports_from_a_floor_above() -> None:
    rooms = {(a, b, FLOOR[a.split(".")[0]], FLOOR[b.split(".")[0]]) for a, b in imported() if a}
    assert len(rooms) > 300
    assert not [(a, b) for a, b, above, below in rooms if below > above]


def test_imports_run_in_no_circle() -> None:
    edges = imported()
    modules = {module for edge in edges for module in edge}
    while leaves := {module for module in modules if not any(a == module for a, _ in edges)}:
        modules -= leaves
        edges = {(a, b) for a, b in edges if b not in leaves}
    assert not modules


def test_passes_know_no_sae_and_view_knows_nothing_of_models() -> None:
    for a, b in imported():
        assert not (a.startswith("passes") and b.startswith("saes"))
        assert not a.startswith("view") or FLOOR[b.split(".")[0]] == 0
