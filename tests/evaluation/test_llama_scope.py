"""The paper's cases: its numbers as they are printed, and the command that puts ours beside them, on stand-ins."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from depass_sae.errors import UserError
from depass_sae.evaluation.llama_scope import question, run
from depass_sae.evaluation.paper_cases import FAMILIES, PAPER_CASES, OwnCase
from depass_sae.loading import load_subject
from depass_sae.models.prompt import encode
from depass_sae.saes.release import choose_ids

from ..attribution.tiny import TEXT, fitting_sae, handle, model, tokenizer

TABLES = """
climate (6) | 35.2500 | climate (6) | 26.8750
In (1) | 3.0781
exploring (2) | 1.8750
the (3) | 1.4844
relationship (4) | 1.4844
between (5) | 1.4844
change (7) | 15.6875 | climate (6) | 16.5000
relationship (4) | 0.8594
between (5) | 0.3984
change (7) | 0.5586
In (1) | -1.9141
environmental (27) | 7.4688 | climate (6) | 9.4375
exploring (2) | 1.0234
environmental (27) | -0.6562
underscores (22) | -0.1670
urgency (24) | -0.2432
integrating (26) | -0.3516

yet (7) | 7.4062 | simple (6) | 5.8438
toast (3) | 1.9219
yet (7) | 1.1953
, (4) | -0.5312
a (5) | -0.5898
<bos> (0) | -1.3750
,(11) | 3.5312 | simple (6) | 1.7031
toast (3) | 0.8125
yet (7) | 0.7344
<bos> (0) | -1.8906

economic (28) | 15.0625 | economics (2) | 5.9375
economic (28) | 4.9062
<bos> (0) | 0.9805
. (22) | 0.1348
and (30) | 7.3438 | economics (2) | 4.7500
economic (28) | 1.9844
<bos> (0) | 1.1719
concept (24) | -0.1025
In (1) | -0.6680
"""
"""Tables 8 to 10 as the paper prints them: token analysed, its activation, source token, contribution."""


def printed_table(text: str) -> list[tuple[str, int, float, list[tuple[str, int, float]]]]:
    found: list[tuple[str, int, float, list[tuple[str, int, float]]]] = []
    for line in text.strip().splitlines():
        *target, source, contribution = line.split(" | ")
        if target:
            found.append((*place(target[0]), float(target[1]), []))
        found[-1][3].append((*place(source), float(contribution)))
    return found


def place(text: str) -> tuple[str, int]:
    token, pos = re.fullmatch(r"(.+?) ?\((\d+)\)", text).groups()  # type: ignore[union-attr]
    return token, int(pos)


@pytest.mark.parametrize(("case", "text"), zip(PAPER_CASES, TABLES.strip().split("\n\n"), strict=True))
def test_the_paper_s_numbers_are_as_it_prints_them(case: Any, text: str) -> None:
    ours = [
        (at.token, at.pos, at.activation, [(source.token, source.pos, source.contribution) for source in at.sources])
        for at in case.targets
    ]
    assert ours == printed_table(text)


def test_the_features_are_the_paper_s() -> None:
    assert [(case.layer, case.index) for case in PAPER_CASES] == [(31, 5226), (31, 26874), (25, 9618)]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_a_family_s_saes_are_in_the_registry_for_its_model_at_its_cases_layers(family: Any) -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    release = get_pretrained_saes_directory()[family.saes]
    assert release.model.split("/")[-1].lower() == family.model.split("/")[-1].lower()
    assert choose_ids(family.saes, list(release.saes_map), list(family.sae_ids.values()), None)
    assert {case.layer for case in family.cases} <= set(family.sae_ids)


# ------------------------------------------------------------------------------------------------------ a case of ours


def test_a_case_of_ours_is_about_the_most_specific_feature_at_the_word_s_last_token() -> None:
    saes = {"1.resid_post": fitting_sae()}
    subject = load_subject(model(), tokenizer(), saes=saes)
    prompt = encode(subject.loaded, subject.adapter, TEXT)
    last = next(i for i in range(len(prompt)) if "".join(prompt.tokens[: i + 1]).endswith(" apple"))
    assert prompt.tokens[last] != " apple"  # it is several tokens
    index, positions = question(subject, OwnCase("fruit", TEXT, 1, "apple"), prompt)
    assert positions == [last]
    specific = handle(saes).features(TEXT, layer=1, sort="specific").layers[0].positions[last]
    assert index == specific.indices[0]


def test_a_word_that_the_prompt_does_not_have_is_told() -> None:
    subject = load_subject(model(), tokenizer(), saes={"1.resid_post": fitting_sae()})
    prompt = encode(subject.loaded, subject.adapter, TEXT)
    with pytest.raises(UserError, match=r"finds no word 'pear' in the fruit prompt"):
        question(subject, OwnCase("fruit", TEXT, 1, "pear"), prompt)


def test_a_family_that_there_is_not_is_told() -> None:
    with pytest.raises(UserError, match=r"no family 'mamba'; there are llama, gemma, qwen"):
        run("mamba")


# ---------------------------------------------------------------------------------------------- the command, stand-ins


def session(family: str, folder: Path) -> dict[str, Any]:
    """What scope_session.py saw."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    kept |= {"HF_HOME": str(folder / "hub"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    kept |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONIOENCODING": "utf-8"}
    kept["PYTHONPATH"] = os.pathsep.join(path for path in [str(Path(__file__).parents[2]), *sys.path] if path)
    script = Path(__file__).with_name("scope_session.py")
    done = subprocess.run(
        [sys.executable, script, folder, family], env=kept, capture_output=True, text=True, encoding="utf-8",
        timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def llama(folder: Path) -> dict[str, Any]:
    return session("llama", folder)


def assert_adds_up(target: dict[str, Any]) -> None:
    for found in target["rules"].values():
        parts = [entry["value"] for entry in (*found["contributions"], *found["other"])] + [target["constant"]]
        whole = target["pre_activation"]
        size = max(map(abs, (*parts, whole)))
        assert abs(sum(parts) - whole) / size == pytest.approx(found["completeness_error"], abs=1e-6)


def assert_resumed(seen: dict[str, Any]) -> None:
    """Every file whose transfer broke off was asked for from there on, not anew."""
    assert set(seen["ranges"]) == set(seen["broken"])
    assert all(re.fullmatch(r"bytes=[1-9]\d+-", part) for parts in seen["ranges"].values() for part in parts)


def test_the_paper_s_tables_stand_beside_ours_in_every_format(llama: dict[str, Any], folder: Path) -> None:
    done = llama["calls"]["all"]
    assert (done["status"], done["err"]) == (0, "")
    document = json.loads((folder / "all.json").read_text(encoding="utf-8"))
    assert next(iter(document)) == "schema_version"
    assert [rule["rule"] for rule in document["rules"]] == ["softmax", "half"]
    for case, found in zip(PAPER_CASES, document["cases"], strict=True):
        assert found["feature"] == {"layer": case.layer, "index": case.index, "hook": "resid_post"}
        assert found["source"].endswith(case.table)
        assert (found["fit"]["l0"] > 0, found["fit"]["explained_variance"] > 0.99) == (True, True)
        for at, target in zip(case.targets, found["targets"], strict=True):
            assert (target["pos"], target["token"].strip()) == (at.pos, at.token)
            assert target["paper"]["activation"] == at.activation
            assert [entry["value"] for entry in target["paper"]["contributions"]] == [
                s.contribution for s in at.sources
            ]
            assert_adds_up(target)
    assert all(spent["seconds"] > 0 and spent["peak_memory"] > 2**27 for spent in document["spent"].values())
    for text in (done["out"], (folder / "all.md").read_text(encoding="utf-8")):
        for words in ("+26.8750", "35.250", "−0.3516", "completeness error, softmax", "explains 100 %", "GiB"):
            assert words in text
    page = (folder / "all.html").read_text(encoding="utf-8")
    assert "Table 10" in page
    assert "+26.8750" in page
    rows = (folder / "all.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "case,feature,target_pos,target_token,pos,token,paper,softmax,half"
    assert sum(",26.875," in row for row in rows) == 1


def test_a_cell_is_empty_where_the_paper_prints_no_number(llama: dict[str, Any]) -> None:
    rows = llama["calls"]["all"]["out"].splitlines()
    start = next(i for i, row in enumerate(rows) if row.startswith("change (7)") and "15.688" not in row)
    (row,) = [row for row in rows[start : start + 8] if row.startswith("exploring (2)")]
    assert len(re.findall(r"[+−]\d", row)) == 2
    (row,) = [row for row in rows[start : start + 8] if row.startswith("relationship (4)")]
    assert len(re.findall(r"[+−]\d", row)) == 3


def test_ours_is_what_the_package_answers_by_itself(llama: dict[str, Any], folder: Path) -> None:
    document = json.loads((folder / "all.json").read_text(encoding="utf-8"))
    found, (alone,) = document["cases"][0]["targets"][1], llama["alone"]["targets"]
    assert found["pre_activation"] == alone["pre_activation"]
    ours = [entry["value"] for entry in found["rules"]["softmax"]["contributions"]]
    assert ours == pytest.approx([entry["value"] for entry in alone["contributions"]], abs=1e-5)
    half = [entry["value"] for entry in found["rules"]["half"]["contributions"]]
    assert half != pytest.approx(ours, abs=1e-3)


def test_some_cases_need_only_their_layer_and_a_higher_trace_dtype_takes_rounding_away(
    llama: dict[str, Any], folder: Path
) -> None:
    assert llama["calls"]["one"]["status"] == 0
    document = json.loads((folder / "one.json").read_text(encoding="utf-8"))
    (case,) = document["cases"]
    assert (case["name"], case["sae"]["id"], document["dtype"]) == ("economics", "l25r_8x", "float32")
    assert "l31r_8x" not in llama["calls"]["one"]["out"]
    assert all(r["completeness_error"] < 1e-6 for t in case["targets"] for r in t["rules"].values())
    assert document["agreement"]["half"]["contributions"] == 9


def test_a_transfer_that_breaks_off_goes_on_where_it_was(llama: dict[str, Any]) -> None:
    assert len(llama["broken"]) == 3
    assert_resumed(llama)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no such case", r"no case 'weather' of meta-llama/Llama-3.1-8B; there are climate, simplicity, economics"),
        ("no such option", r"unrecognized arguments: --prompt x; see --help"),
        ("no such format", r"all\.docx does not say what to write: let it end with \.html, \.md, \.json, "),
        ("gated", r"owner/gated is gated: accept its licence on its page, then log in with `hf auth login`"),
        ("no start token", r"position 28 .* is 'theory' to .*, and 'economic' in the paper's Table 10: .*start token"),
        ("another width", r"the SAE at 25\.resid_post reads 16 dimensions, but resid_post of .* has 32"),
        ("SAEs missing", r"l25r_32x of llama_scope_lxr_32x: fnlp/Llama3_1-8B-Base-LXR-32x does not hold the file"),
        ("no network", r"owner/elsewhere is not on this machine and the hub cannot be reached; check the network"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(llama: dict[str, Any], name: str, says: str) -> None:
    done = llama["calls"][name]
    assert (done["status"], done["out"]) == (2, "")
    assert re.fullmatch(rf"llama_scope: [^\n]*{says}[^\n]*\n", done["err"])


@pytest.mark.long
@pytest.mark.parametrize(("family", "tokens"), [("gemma", 27), ("qwen", 26)])
def test_the_other_families_are_asked_in_their_own_formats(family: str, tokens: int, tmp_path: Path) -> None:
    seen = session(family, tmp_path)
    done = seen["calls"]["all"]
    assert (done["status"], done["err"]) == (0, "")
    assert "paper has no case on this model" in done["out"]
    document = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert document["model"] == FAMILIES[family].model
    assert document["agreement"] == {"softmax": None, "half": None}
    (case,) = document["cases"]
    assert len(case["tokens"]) == tokens
    assert case["special"] == ([0] if family == "gemma" else [])  # Qwen has no start token
    (target,) = case["targets"]
    assert (target["token"], target["paper"]) == (" flood", None)
    assert target["activation"] > 0
    assert_adds_up(target)
    assert len(seen["broken"]) == 2
    assert_resumed(seen)
