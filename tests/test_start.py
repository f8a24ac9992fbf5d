"""How a command starts: garbage is not looked for while everything is loaded, and is afterwards."""

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import depass_sae as ds
from depass_sae.__main__ import main
from depass_sae.cli.options import Loading

from .attribution.tiny import TEXT, fitting_sae, model, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("start")
    model().save_pretrained(root / "model")
    tokenizer().save_pretrained(root / "model")
    fitting_sae().save_model(root / "sae")
    return root


@pytest.fixture
def not_collecting() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_garbage_is_looked_for_from_the_question_on_and_not_among_what_was_loaded(saved: Path) -> None:
    code = (
        "import gc, json, sys\n"
        "from depass_sae import api\n"
        "from depass_sae.__main__ import main\n"
        "def say(*of): print(json.dumps([*of, gc.isenabled(), gc.get_freeze_count() > 100_000]), file=sys.__stderr__)\n"
        "def told(name, ask): return lambda *given, **more: (say(name), ask(*given, **more))[1]\n"
        "api.load = told('load', api.load)\n"
        "api.LM.attribute_tokens = told('ask', api.LM.attribute_tokens)\n"
        "main()\n"
    )
    question = ("tokens", "-f", "1/3", "-p", TEXT, "--model", str(saved / "model"), "--sae", str(saved / "sae"))
    done = subprocess.run([sys.executable, "-c", code, *question], capture_output=True, text=True, check=True)
    said = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]
    assert said == [["load", False, False], ["ask", True, True]]


def test_in_a_process_that_goes_on_nothing_is_set_aside(saved: Path) -> None:
    before = gc.get_freeze_count()
    Loading(model=str(saved / "model")).load(lambda _: None, [])
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, before)


@pytest.mark.usefixtures("not_collecting")
def test_what_loading_throws_away_holds_no_weights(saved: Path) -> None:
    lm = ds.load(saved / "model", saes=saved / "sae")
    try:
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert not [thing for thing in gc.garbage if isinstance(thing, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert lm.saes


def test_a_command_that_ends_leaves_collection_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["depass-sae", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert gc.isenabled()


def test_the_python_interface_imports_no_library_of_a_single_question_and_no_published_schema() -> None:
    code = (
        "import depass_sae.api, sys\n"
        "late = {'transformers', 'sae_lens', 'networkx', 'scipy', 'pandas', 'matplotlib', 'jinja2'}\n"
        "print(late & set(sys.modules))\n"
        "import depass_sae.cli, depass_sae.index.scan, depass_sae.report.case.making\n"
        "print({name for name in sys.modules if name.startswith('depass_sae.') and name.endswith('.schema')})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()", "set()"]
