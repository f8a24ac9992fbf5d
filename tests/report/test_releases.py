"""What is said of sae-lens's registry, and on the command line."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from depass_sae.cli import main
from depass_sae.report.releases import Tally, document, groups, hook_kinds, layers
from depass_sae.saes.registry import ListedSAE, Release, registry, why_not

SAE = ListedSAE("mine", "blocks.0.hook_resid_pre", "gpt2-small", "gpt2", "standard", "blocks.0.hook_resid_pre")


def at(layer: int, **changes: Any) -> ListedSAE:
    hook = f"blocks.{layer}.hook_resid_pre"
    return replace(SAE, **{"sae_id": hook, "hook_name": hook} | changes)


MINE = Release("mine", "gpt2-small", "gpt2", "some/one", (
    at(0), at(1), at(3), at(2, architecture="matching_pursuit"), at(2, hook_name="hook_embed"), at(4, hook_name=None),
))  # fmt: skip


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def asked(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["depass-sae", "models", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return asked


def test_saes_are_together_that_read_alike_and_work_alike() -> None:
    found = [(group.hook, group.architecture, group.reason is None, len(group.saes)) for group in groups(MINE)]
    assert found == [
        ("resid_pre", "standard", True, 3),
        ("resid_pre", "matching_pursuit", False, 1),
        ("hook_embed", "standard", False, 1),
        ("?", "standard", False, 1),
    ]
    assert hook_kinds(MINE) == ["resid_pre", "hook_embed", "?"]
    assert sum(Tally.of(MINE.saes).reasons.values()) == 3


def test_a_release_works_does_not_or_says_how_many_of_its_saes_do() -> None:
    reason = str(why_not(MINE.saes[3]))
    assert Tally.of(MINE.saes[:3]).said == "yes"
    assert Tally.of(MINE.saes[3:4]).said == f"no: {reason}"
    assert Tally.of(MINE.saes[:4]).said == f"3 of 4; the others not: {reason}"


def test_layers_that_follow_each_other_are_a_range() -> None:
    assert layers([at(number) for number in (3, 0, 1, 7, 9, 10)]) == "0-1, 3, 7, 9-10"
    assert layers([at(0, sae_id="embedding/width_4k/average_l0_6")]) == "0"


def test_the_documents_numbers_are_those_of_the_registry(run: Any) -> None:
    status, out, err = run("--json")
    found = json.loads(out)
    assert (status, err, next(iter(found))) == (0, "", "schema_version")
    assert [(entry["release"], entry["total"]) for entry in found["releases"]] == [
        (release.name, len(release.saes)) for release in registry().values()
    ]
    counted = json.loads(run("--count", "--json")[1])
    assert counted["total"] == counted["works"] + sum(counted["reasons"].values()) == 13_857
    assert counted["works"] == sum(entry["works"] for entry in found["releases"])


def test_a_release_has_every_sae_in_one_group(run: Any) -> None:
    found = json.loads(run("gemma-scope-2b-pt-res", "--json")[1])
    assert found == document(registry()["gemma-scope-2b-pt-res"], count=False)
    ids = [sae_id for group in found["groups"] for sae_id in group["sae_ids"]]
    assert sorted(ids) == sorted(sae.sae_id for sae in registry()["gemma-scope-2b-pt-res"].saes)
    assert [(group["hook"], group["architecture"], len(group["sae_ids"])) for group in found["groups"]] == [
        ("resid_pre", "jumprelu", 4),
        ("resid_post", "jumprelu", 312),
    ]


def test_the_tables_have_a_row_for_each_release_group_or_reason(run: Any) -> None:
    status, out, err = run()
    assert (status, err) == (0, "")
    assert all(f"\n{name} " in out for name in registry())
    assert "of 13,857 SAEs of 170 releases can be used" in out
    row = next(line for line in run("gpt2-small-res-jb")[1].splitlines() if "resid_pre " in line)
    assert row.split() == ["resid_pre", "standard", "12", "0-11", "blocks.0.hook_resid_pre", "yes", "yes"]
    counted = run("gpt2-small-res-jb", "--count")[1].replace("─", "").split()
    assert counted == ["SAEs", "works", "13", "graph", "layer", "13", "total", "13"]


def test_nearly_every_sae_can_be_a_layer_of_a_graph_and_of_the_others_it_is_said_why(run: Any) -> None:
    counted = json.loads(run("--count", "--json")[1])["graph"]
    assert counted["works"] >= 13_700
    assert counted["works"] + sum(counted["reasons"].values()) == 13_857
    (group,) = json.loads(run("mntss-gemma-2-2b-2.5m-clt-as-per-layer", "--json")[1])["groups"]
    assert (group["works"], group["graph"]) == (True, False)
    assert "all its decoders summed" in group["graph_reason"]
    assert "decoders summed" in run("mntss-gemma-2-2b-2.5m-clt-as-per-layer")[1]
    transcoders = json.loads(run("gemma-scope-2b-pt-transcoders", "--json")[1])["groups"]
    assert all(group["graph"] and group["graph_reason"] is None for group in transcoders)


def test_a_release_that_is_not_there_is_one_line_with_what_may_be_meant(run: Any) -> None:
    status, out, err = run("gpt2-small-res")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "no release 'gpt2-small-res'" in err
    assert "gpt2-small-res-jb" in err


def test_neither_sae_lens_nor_transformers_is_imported_nor_the_network_asked() -> None:
    code = (
        "import sys, socket; socket.socket.connect = None; sys.argv = ['depass-sae', 'models', '--count']\n"
        "from depass_sae.cli import main\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert not {'transformers', 'sae_lens'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "13,857" in done.stdout
