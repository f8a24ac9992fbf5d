"""The documented examples run: every Python block and every ``depass-sae`` line of the README and of docs/.

They run on SmolLM2 as they stand, but for the stand-ins below; what the quickstart's first block defines is all that
Python blocks have. Lines that only list what there is (``heads | modules``, ``[--by word]`` in a comment) are checked
against the commands and options that exist. A block whose language is ``text`` is what was printed. What cannot run
here says why, in a comment before a block or behind a span: ``<!-- not run: network -->``. Those are counted.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

import depass_sae as ds
from depass_sae.cli import app, main
from depass_sae.demo.cases import CASES
from depass_sae.index.browse.server import Browsing
from depass_sae.saes.shipped import shipped_saes

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "docs/quickstart.md"
TABLES = [ROOT / "docs/index.md", *sorted((ROOT / "docs/coming-from").glob("*.md"))]
FIRST = [QUICKSTART, ROOT / "README.md"]
"""What everyone tries; other pages take five minutes of a core, and are long."""
PAGES = [*FIRST, *sorted({*(ROOT / "docs").rglob("*.md")} - {QUICKSTART, *TABLES}), *TABLES]
NOT_RUN = r"<!-- not run: (network|gated weights|GPU) -->"
PROMPT = CASES[0].prompt

IN_TEXT = {
    '"..."': f'"{PROMPT}"',
    "ablate=8": "ablate=1",  # eight times as fast
    "--ablate 8": "--ablate 1",
    "--measure shapley": "--measure shapley --measure-seconds 3",
    "--measure replace": "--measure replace --measure-seconds 3",
    "meta-llama/Llama-3.1-8B": "smollm2",
    "llama_scope_lxr_8x": str(next(iter(shipped_saes().values())).parent),
    "layers=[25, 31]": "layers=[17, 23]",
    "31/5226": "23/5",
    "verify g.json": "verify g.json --max-nodes 3",
    "seconds=30": "seconds=8.0",
    '--logit " Paris" --out': '--logit " Paris" --seconds 8 --out',
    "diff a.json b.json": "diff g.json g.json",
    "depass-sae evaluate": "depass-sae evaluate --limit 1 --samples 2 --method half --method random",
    " --limit 10": "",
    " --limit 6": "",
    'lm.evaluate("facts", "tokens")': 'lm.evaluate("facts", "tokens", limit=1, methods=["half"], samples=2)',
    'title="Climate change")': 'title="Climate change", ablate=1, verify=3)',
    "--out case-study": "--out case-study --ablate 1 --verify 3",
    "--out index": "--out made --layer 17",
    'lm.scan("corpus.jsonl", "index")': 'ds.load("smollm2", layers=17).scan("corpus.jsonl", "made")',
}
"""What an example says, and what is said instead of it here."""


@dataclass(frozen=True)
class Example:
    """A piece of a page, in its words."""

    page: Path
    line: int
    text: str
    not_run: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def filled_in(self) -> str:
        text = self.text
        for said, instead in IN_TEXT.items():
            text = text.replace(said, instead)
        return text


def blocks() -> Iterator[tuple[str, Example]]:
    """Fenced blocks with their language."""
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(rf"^(?:{NOT_RUN}\n+)?( *)```(\w*)\n(.*?)^\2```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start(4)) + 1
            yield match[3], Example(page, line, textwrap.dedent(match[4]), match[1] or "")


def spans() -> Iterator[Example]:
    """What stands between backticks in running text, line breaks as spaces."""
    for page in PAGES:
        text = re.sub(r"^( *)```.*?^\1```$", lambda m: "\n" * m[0].count("\n"), page.read_text(), flags=re.M | re.S)
        for match in re.finditer(rf"`([^`]+)`(?: *{NOT_RUN})?", text):
            line = text.count("\n", 0, match.start()) + 1
            yield Example(page, line, " ".join(match[1].split()).replace("\\|", "|"), match[2] or "")


def shell_lines() -> Iterator[Example]:
    for language, block in blocks():
        for offset, line in enumerate(block.text.splitlines()):
            if language != "python" and line.startswith("depass-sae "):
                yield Example(block.page, block.line + offset, line, block.not_run)
    yield from (span for span in spans() if span.text.startswith("depass-sae "))


def is_list(line: Example) -> bool:
    """Whether a line names several commands at once, and so is none itself."""
    return " | " in line.text.partition("#")[0]


def run_once(examples: Iterable[Example]) -> list[Example]:
    """What several pages say is run where it is said first."""
    return list({example.text: example for example in reversed(list(examples))}.values())[::-1]


ALL_PYTHON = [
    *(block for language, block in blocks() if language == "python"),
    *(span for span in spans() if re.match(r"(ds|lm)\.\w+\(", span.text)),
]
ALL_SHELL = list(shell_lines())
PYTHON = run_once(example for example in ALL_PYTHON if not example.not_run)
SHELL = run_once(example for example in ALL_SHELL if not example.not_run)


def cases(examples: Iterable[Example]) -> list[Any]:
    """Tests of examples."""
    return [pytest.param(one, id=str(one), marks=[pytest.mark.long] * (one.page not in FIRST)) for one in examples]


@pytest.fixture(scope="session")
def defined() -> dict[str, Any]:
    """What the quickstart defines first, for the examples that follow."""
    names: dict[str, Any] = {}
    try:
        run(PYTHON[0], names)
    except ds.UserError as missing:
        pytest.skip(str(missing))
    return names


@pytest.fixture(scope="session")
def lm(defined: dict[str, Any]) -> ds.LM:
    return defined["lm"]


def run(example: Example, names: dict[str, Any]) -> None:
    code = "\n" * (example.line - 1) + example.filled_in()  # so that a traceback shows the page's line
    exec(compile(code, str(example.page), "exec"), names)


@pytest.fixture(scope="session")
def graph(lm: ds.LM) -> Any:
    return lm.graph(PROMPT, "17/2601@7", max_nodes=30)


@pytest.fixture(scope="session")
def index(lm: ds.LM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one SAE, over texts about a few things."""
    one = ds.load(lm.model, lm.tokenizer, saes=lm.saes[17])
    return one.scan([PROMPT, *(case.prompt for case in CASES)], tmp_path_factory.mktemp("made") / "index").folder


@pytest.fixture
def elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: Any, request: pytest.FixtureRequest, example: Example
) -> None:
    """A folder in which an example may leave files; a graph, texts, a task and an index of some texts lie there."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text(f"{PROMPT}\n\n{PROMPT}\n")
    Path("prompts.jsonl").write_text(json.dumps({"prompt": "The capital of France is", "answer": " Paris"}) + "\n")
    Path("corpus.jsonl").write_text(json.dumps({"text": PROMPT}) + "\n")
    Path("meanings.csv").write_text("feature,label\n17/2601,climate\n")
    task = [{"text": f"The capital of {country} is"} for country in ("France", "Italy", "Germany", "Japan")]
    Path("task.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in task))
    ds.write_graph(graph, "g.json")
    ds.write_graph(graph, "theirs.json", format="neuronpedia")
    if "index" in example.text:
        Path("index").symlink_to(request.getfixturevalue("index"))


def test_there_are_examples_of_both_kinds() -> None:
    assert len(PYTHON) >= 60
    assert len(SHELL) >= 40


def test_at_most_a_tenth_of_the_examples_needs_what_is_not_here() -> None:
    examples = [*ALL_PYTHON, *ALL_SHELL]
    left = [str(example) for example in examples if example.not_run]
    assert left  # or nothing is counted
    assert len(left) <= len(examples) / 10, left


def test_every_block_is_code_that_is_run_or_what_was_printed() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for language, block in blocks():
        assert language in {"", "python", "text", "sql", "json"}, str(block)  # SQL: tests/index/test_format.py
        for line in block.text.splitlines() if language == "json" else ():
            assert json.loads(line), f"{block}: {line}"
        for line in block.text.splitlines() if not language else ():
            first, _, rest = line.strip().partition(" ")
            assert first in {"", "depass-sae", "make", "#"} or line.startswith(" "), f"{block}: {line}"
            assert first != "make" or rest.split()[0] in targets, f"{block}: {line}"


@pytest.mark.smollm2
@pytest.mark.usefixtures("elsewhere")
@pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
@pytest.mark.parametrize("example", cases(PYTHON))
def test_a_python_example_runs(example: Example, defined: dict[str, Any]) -> None:
    lm = defined["lm"]  # beside it what "the notebook already has"
    run(example, {**defined, "model": lm.model, "tokenizer": lm.tokenizer, "sae": lm.saes[17]})


@pytest.mark.smollm2
def test_the_prompt_of_the_pages_is_that_of_the_demo(defined: dict[str, Any]) -> None:
    assert defined["prompt"] == PROMPT
    assert len(defined["lm"].encode(PROMPT)) == len(defined["lm"].encode(defined["other_prompt"])) == 33


@pytest.mark.smollm2
@pytest.mark.usefixtures("elsewhere", "lm")
@pytest.mark.parametrize("example", cases(line for line in SHELL if not is_list(line)))
def test_a_shell_example_ends_well(
    example: Example, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = re.sub(r"\[(--[^\]]*)\]", r"\1", example.filled_in().partition("  #")[0])  # with its options
    monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
    monkeypatch.setattr(Browsing, "open", lambda self: None)
    monkeypatch.setattr(Browsing, "wait", Browsing.close)  # or it would last until Ctrl-C
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capfd.readouterr()
    assert ended.value.code == 0, err
    assert out


@pytest.mark.smollm2
def test_the_quickstart_shows_what_is_printed(lm: ds.LM) -> None:
    (shown,) = (block.text for language, block in blocks() if language == "text" and block.page == QUICKSTART)
    rows = re.findall(r"^(.+?) +([+−]\d+\.\d+)", shown, re.MULTILINE)
    printed = re.findall(r"^(.+?) +([+−]\d+\.\d+)", lm.attribute_tokens(PROMPT, "17/2601@7").table(), re.MULTILINE)
    assert len(rows) == 10
    assert [name for name, _ in rows] == [name for name, _ in printed]
    values = [[float(value.replace("−", "-")) for _, value in found] for found in (rows, printed)]
    assert values[0] == pytest.approx(values[1], abs=0.002)


def commands() -> dict[str, set[str]]:
    """Every command's options."""
    group = typer.main.get_command(app)
    found = group.commands.items()  # type: ignore[attr-defined]
    return {name: {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)} for name, command in found}


@pytest.mark.parametrize("example", SHELL, ids=str)
def test_the_commands_and_options_that_a_line_names_exist(example: Example) -> None:
    line, _, comment = example.text.partition("#")
    words = re.split(r" --| \.\.\.|\[", line.removeprefix("depass-sae "))[0]
    named = re.findall(r"[a-z][a-z-]*", words if is_list(example) else words.partition(" ")[0])
    assert named or "--help" in line
    assert set(named) <= set(commands())
    known = {"--help"}.union(*(commands()[name] for name in named or commands()))
    assert set(options(line + comment)) <= known


def test_the_options_that_the_text_names_exist() -> None:
    known = {"--help"}.union(*commands().values())
    unknown = [span for span in spans() if span.text.startswith("--") and not set(options(span.text)) <= known]
    assert not unknown


def options(text: str) -> list[str]:
    return re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)
