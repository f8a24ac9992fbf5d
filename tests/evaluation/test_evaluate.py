"""An evaluation ranks methods as the live model does, goes on where it was stopped, and tells what it left out."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.evaluation.evaluate import RECORDS, Asked
from depass_sae.evaluation.found import Evaluation
from depass_sae.evaluation.games import token_game, token_players
from depass_sae.evaluation.protocols import CEILING
from depass_sae.evaluation.question import Question

from ..attribution.tiny import fitting_sae
from .asking import BOS, firing, handle, random_sae

PROMPTS = [[BOS, *range(start, start + 8)] for start in (60, 70, 90, 100)]
FEW: dict[str, Any] = {"methods": ["half", "random"], "samples": 4}


@cache
def lm() -> ds.LM:
    return handle(fitting_sae())


def evaluated(data: Any = PROMPTS, of: Any = "tokens", **settings: Any) -> Evaluation:
    return lm().evaluate(data, of, **FEW | settings)


def truth(question: Question) -> torch.Tensor:
    """By the measurement itself, of each token alone deleted."""
    game = token_game(question, "delete")
    scores = torch.zeros(question.pos + 1, dtype=torch.float64)
    scores[token_players(question)] = question.value - game.play(
        ~torch.eye(game.players, dtype=torch.bool), torch.zeros(game.players, dtype=torch.long)
    )
    return scores


def figure(found: Evaluation, method: str, protocol: str, name: str) -> Any:
    return next(one for one in found.told if (one.method, one.protocol, one.figure.name) == (method, protocol, name))


def test_a_method_that_says_what_is_measured_has_rank_one_and_is_ahead_of_the_others() -> None:
    found = evaluated(own={"planted": truth}, protocols=["replace"], removal="delete", against="random")
    planted, half, random = (
        figure(found, name, "replace", "rank correlation") for name in ("planted", "half", "random")
    )
    assert planted.found.value == pytest.approx(1)
    assert planted.found.n == 4
    assert random.ahead is None
    assert planted.wins
    assert planted.ahead.value == pytest.approx(1 - random.found.value)
    assert half.ahead.value == pytest.approx(half.found.value - random.found.value)


def test_figures_are_the_means_of_what_each_prompt_gave() -> None:
    found = evaluated(protocols=["delete", "shapley"])
    for one in found.told:
        key = one.figure.keys[0]
        each = [r.numbers[key] for r in found.records if (r.method, r.protocol) == (one.method, one.protocol)]
        each = [value for value in each if value is not None]
        assert one.found.n == len(each)
        assert one.found.value == pytest.approx(sum(each) / len(each), rel=1e-5)
    assert figure(found, CEILING, "shapley", "rank correlation").found.value <= 1


def test_every_protocol_of_every_source_gives_figures_of_every_method() -> None:
    for of in ("tokens", "heads", "neurons", "features"):
        found = evaluated(PROMPTS[:2], of)
        told = {(one.protocol, one.method) for one in found.told}
        for protocol in found.protocols:
            assert {(protocol.name, method) for method in ("half", "random")} <= told, (of, protocol.name)
        document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert document["of"] == of
        assert len(document["records"]) == len(found.records)


def test_it_goes_on_where_it_was_stopped_and_is_the_same_as_in_one_go(tmp_path: Path) -> None:
    whole = evaluated(out=tmp_path / "whole")
    evaluated(PROMPTS[:2], methods=["half"], protocols=["shapley"], out=tmp_path / "parts")
    lines = (tmp_path / "parts" / RECORDS).read_text().splitlines()
    torn = lines[-1][: len(lines[-1]) // 2]
    (tmp_path / "parts" / RECORDS).write_text("\n".join([*lines[:-1], torn]))
    parts = evaluated(out=tmp_path / "parts")
    assert parts.to_dict() == whole.to_dict()
    first, second = (sorted((tmp_path / name / RECORDS).read_text().splitlines()) for name in ("whole", "parts"))
    assert first == second


def test_what_is_known_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluated(out=tmp_path)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was measured again")

    monkeypatch.setattr("depass_sae.attribution.measure.read_batch", never)
    assert evaluated(out=tmp_path).to_dict() == first.to_dict()


def test_a_function_of_ones_own_is_asked_again_and_not_kept(tmp_path: Path) -> None:
    first = evaluated(own={"mine": lambda q: torch.arange(q.pos + 1.0)}, out=tmp_path)
    second = evaluated(own={"mine": lambda q: -torch.arange(q.pos + 1.0)}, out=tmp_path)
    for protocol in ("replace", "shapley"):
        one, other = (figure(found, "mine", protocol, "rank correlation").found.value for found in (first, second))
        assert one == pytest.approx(-other)
    assert "mine" not in (tmp_path / RECORDS).read_text()


def test_the_folder_has_the_document_and_the_page(tmp_path: Path) -> None:
    found = evaluated(out=tmp_path / "deep" / "down")
    assert json.loads((tmp_path / "deep/down/evaluation.json").read_text()) == found.to_dict()
    page = (tmp_path / "deep/down/evaluation.md").read_text()
    assert "| half |" in page
    assert "the measurement with itself" in page


@pytest.mark.parametrize(
    ("settings", "why"), [({"seed": 1}, "seed was 0 and not 1"), ({"removal": "delete"}, "removal was 'text'"),
                          ({"temperature": 0.2}, "temperature was 0.1")]
)  # fmt: skip
def test_records_of_another_evaluation_are_not_mixed_in(tmp_path: Path, settings: dict, why: str) -> None:
    evaluated(PROMPTS[:1], out=tmp_path, protocols=["replace"])
    with pytest.raises(UserError, match=why):
        evaluated(PROMPTS[:1], out=tmp_path, protocols=["replace"], **settings)


@pytest.mark.parametrize("theirs", ['{"text": 1}\n{"and": "no end of line"}', "one line, and no end of it"])
def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path, theirs: str) -> None:
    (tmp_path / RECORDS).write_text(theirs)
    with pytest.raises(UserError, match="no records of an evaluation"):
        evaluated(out=tmp_path)
    assert (tmp_path / RECORDS).read_text() == theirs


def test_prompts_that_the_model_answers_otherwise_are_left_out_unless_all_are_asked_for() -> None:
    said = lm().evaluate(PROMPTS[:2], protocols=["delete"], **FEW)
    assert not said.left_out  # the predicted token is what the model says
    data = [{"prompt": ids, "target": "logit:7"} for ids in PROMPTS[:2]]
    data.append({"prompt": PROMPTS[2]})
    found = evaluated(data, protocols=["delete"])
    assert [one["why"] for one in found.left_out] == ["the model gives another answer"] * 2
    assert "2 of 3 prompts are left out: the model gives another answer" in (found.note or "")
    assert len(evaluated(data, protocols=["delete"], every=True).prompts) == 3
    with pytest.raises(UserError, match=r"no prompt is left: of 2, on 2 the model gives another answer"):
        evaluated(data[:2])


def test_targets_stand_with_their_prompts_or_are_one_for_all() -> None:
    tiny = handle(random_sae())
    feature = firing(tiny, PROMPTS[0], 6)
    data = [{"prompt": PROMPTS[0], "target": feature}, {"prompt": PROMPTS[1]}]
    own = tiny.evaluate(data, protocols=["replace"], **FEW)
    assert [one["pos"] for one in own.prompts] == [6, 8]
    both = tiny.evaluate(PROMPTS[:2], target="logprob:7", every=True, protocols=["delete"], **FEW)
    assert {one["target"] for one in both.prompts} == {"log-probability 7"}


def test_median_is_less_moved_by_one_prompt_than_the_mean() -> None:
    mean, median = (evaluated(protocols=["delete"], statistic=by) for by in ("mean", "median"))
    (one,) = {figure(median, "half", "delete", "value lost").found.value}
    each = sorted(r.numbers["value"] for r in median.records if r.method == "half")
    assert one == pytest.approx((each[1] + each[2]) / 2, rel=1e-5)
    assert figure(mean, "half", "delete", "value lost").found.value == pytest.approx(sum(each) / 4, rel=1e-5)


def test_figures_are_a_frame_and_a_page() -> None:
    found = evaluated(PROMPTS[:2], protocols=["replace"])
    frame = found.to_frame()
    assert set(frame["method"]) == {CEILING, "half", "random"}
    assert math.isnan(frame[frame["method"] == "half"]["ahead"].iloc[0])
    assert "intervals of so few prompts (2) say little" in found.to_html()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"of": "words"}, "of tokens, heads, neurons, features, not of 'words'"),
        ({"methods": ["halb"]}, "no method for tokens called 'halb'; there are half,"),
        ({"methods": []}, "name one method for tokens"),
        ({"protocols": ["cpr"]}, "no protocol for tokens called 'cpr'"),
        ({"removal": "zero"}, "tokens are taken out by"),
        ({"of": "heads", "removal": "text"}, "heads are taken out by zero or mean or contrast"),
        ({"against": "softmax", "methods": ["half"]}, "compared with one of them, half"),
        ({"own": {"half": print}}, "under a new name"),
        ({"samples": 1}, "samples are 2 to"),
        ({"statistic": "mode"}, "a mean or a median"),
        ({"limit": 0}, "1 at least"),
        ({"rule": "half"}, "name them among its methods"),
        ({"target": "direction:17.resid_post:none.npy"}, "prompt 1: "),
        ({"own": {"flat": lambda q: torch.zeros(2)}}, "gave scores of shape"),
    ],
)
def test_what_cannot_be_evaluated_is_said(settings: dict, why: str) -> None:
    with pytest.raises(UserError, match=why):
        lm().evaluate(PROMPTS[:1], **settings)


def test_all_methods_are_asked_for_by_one_word() -> None:
    assert Asked.of("tokens", ["all"]).methods == list(Asked.of("tokens").source.methods)


def test_a_model_by_its_handle_or_name_is_evaluated_by_the_module_too() -> None:
    found = ds.evaluate(lm(), PROMPTS[:2], protocols=["replace"], **FEW)
    assert found == evaluated(PROMPTS[:2], protocols=["replace"])
