"""The page of evaluations on SmolLM2: a command above the tables that it makes."""

from __future__ import annotations

import pytest

import depass_sae as ds
from depass_sae.cli import app
from depass_sae.evaluation.on_smollm2 import RUNS, Run, page


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.of)
def test_a_command_asks_for_what_the_run_does(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def evaluate(lm: ds.LM, data: str, of: str, **settings: object) -> None:
        asked.update(data=data, of=of, **settings)
        raise ds.UserError("that is all")

    monkeypatch.setattr(ds.LM, "evaluate", evaluate)
    monkeypatch.setattr(ds, "load", lambda *given, **settings: object.__new__(ds.LM))
    monkeypatch.setattr("depass_sae.cli.options.Loading.load", lambda *given: object.__new__(ds.LM))
    with pytest.raises(ds.UserError, match="that is all"):
        app(run.command.split()[1:], standalone_mode=False)
    assert (asked["data"], asked["of"], asked["limit"]) == (run.data, run.of, run.limit)
    assert asked["protocols"] == list(run.protocols)
    assert all(asked[name] == value for name, value in run.more.items())


@pytest.mark.smollm2
def test_every_run_has_its_command_and_a_table_for_every_protocol() -> None:
    run = Run("heads", "ioi", 1, ("cmd", "mask-top"), "Some words.", {"removal": "contrast"})
    found = ds.load("smollm2", saes=[]).evaluate(
        run.data, "heads", methods=["effect", "norm"], protocols=list(run.protocols), limit=1, removal="contrast"
    )
    text = page([(run, found)])
    assert "## Heads\n\n`depass-sae evaluate --of heads --data ioi --removal contrast --limit 1" in text
    assert text.index("Some words.") < text.index("**cmd**") < text.index("**mask-top**")
    assert "| effect |" in text
