"""What is said where: documents and tables on stdout in any encoding, everything else on stderr."""

import io
import json
import sys

import pytest

from depass_sae.cli import main
from depass_sae.cli.talk import Status
from depass_sae.texts import is_hidden

from ..attribution.tiny import HOSTILE, TEXT
from .calling import Files
from .test_graphs import graph_options

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_goes_to_a_terminals_stderr_and_the_model_may_have_any_name() -> None:
    terminal = Terminal()
    with Status(terminal) as status:
        status("loading models/[/x]/llama[v2]")
        status.progress("carrying [red] components", 1, 2)


class Encoded(io.TextIOWrapper):
    """A stream of some encoding, strict as stdout is."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict")

    @property
    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "latin-1", "ascii", "cp437"])
def test_tables_and_lines_are_printed_in_any_encoding(
    monkeypatch: pytest.MonkeyPatch, graphs: list[str], encoding: str
) -> None:
    out, err = Encoded(encoding), Encoded(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    for arguments, status in ((graphs, 0), (["→\x1b.json", graphs[1]], 2)):
        monkeypatch.setattr(sys, "argv", ["depass-sae", "diff", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code or 0) == status
    assert "largest changes of weight" in out.text
    assert ("█" if encoding in ("utf-8", "cp437") else "#") in out.text
    assert ("b − a" if encoding == "utf-8" else "b - a") in out.text
    assert err.text.startswith("depass-sae: cannot read ")
    assert err.text.count("\n") == 1
    assert not {char for char in out.text + err.text if is_hidden(char)} - {"\n"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252", "ascii"])
def test_json_is_valid_in_any_encoding_and_readable_in_utf_8(
    monkeypatch: pytest.MonkeyPatch, files: Files, encoding: str
) -> None:
    out, text = Encoded(encoding), "a é東🙂" + "".join(HOSTILE) + "\u202e\x9b\x7f"
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "argv", ["depass-sae", "tokens", "-f", "1/3", "-p", text, *files.options(), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert json.loads(out.text)["prompt"] == text
    assert ("é東🙂" in out.text) == (encoding == "utf-8")
    assert not {char for char in out.text if is_hidden(char)} - {"\n"}


def test_what_was_written_is_said_beside_a_document_that_has_stdout(run, files, tmp_path) -> None:
    path = tmp_path / "g.json"
    done = run("graph", *graph_options(files), "--target", "logit:5", "--json", "--out", str(path))
    assert json.loads(done.out) == json.loads(path.read_text())
    assert done.err.splitlines()[-1] == f"wrote {path}"
    card = tmp_path / "card.json"
    done = run("feature", "1/3", "-p", TEXT, *files.options(), "--json", "--out", str(card))
    assert json.loads(done.out) == json.loads(card.read_text())
    assert done.err == f"wrote {card}\n"
