"""Measured effects against a plain loop over transformers and sae-lens."""

import copy
import itertools
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AddedToken, PreTrainedTokenizerFast

import depass_sae as ds
from depass_sae.attribution import measure, reservoir
from depass_sae.attribution.reservoir import replacements, written
from depass_sae.errors import UserError

from .tiny import BOS, EOS, VOCAB, activation, handle, model, pre_activations, random_sae, tokenizer

PROMPT = "supply and demand of apples"
LONG = [BOS, *range(60, 76)]


@cache
def ordinary() -> list[int]:
    """The different tokens of the package's texts, those left out that are only a part of a character."""
    known = tokenizer(adds_bos=False)
    found = {i for text in written()[: reservoir.TEXTS] for i in known(text)["input_ids"]}
    return sorted(i for i in found if "\ufffd" not in known.decode([i]))


def by_hand(
    value: Callable[[Tensor], float], ids: list[int], sources: list[tuple[int, ...]], pos: int, times: int, seed: int
) -> list[list[float] | None]:
    """For every source, what is lost in each of ``times`` replacements by random ordinary tokens, one run at a time."""
    generator = torch.Generator().manual_seed(seed)
    whole = value(torch.tensor([ids[: pos + 1]]))
    lost: list[list[float] | None] = []
    for positions in sources:
        where = [p for p in positions if p <= pos]
        if any(ids[p] in (BOS, EOS) for p in where):
            lost.append(None)
            continue
        drawn = torch.randint(len(ordinary()), (times, len(where)), generator=generator)
        runs = []
        for row in drawn.tolist():
            changed = list(ids[: pos + 1])
            for p, token in zip(where, row, strict=True):
                changed[p] = ordinary()[token]
            runs.append(whole - value(torch.tensor([changed])))
        lost.append(runs)
    return lost


def assert_measured(att: ds.TokenAttribution, value: Callable[[Tensor], float], times: int, seed: int) -> None:
    ids = list(att.heading.prompt.token_ids)
    for target in att.targets:
        expected = by_hand(value, ids, [source.positions for source in target.sources], target.pos, times, seed)
        measured = target.measured
        assert (measured.replacements, measured.seed) == (times, seed)
        for mean, spread, runs in zip(measured.mean, measured.spread, expected, strict=True):
            if runs is None:
                assert (mean, spread) == (None, None)
            else:
                assert mean == pytest.approx(torch.tensor(runs).mean().item(), rel=1e-3, abs=1e-4)
                assert spread == pytest.approx(torch.tensor(runs).std(correction=0).item(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("by", ["token", "word"])
@pytest.mark.parametrize("kind", ["jumprelu", "topk", "gated"])
def test_a_features_measured_effects_are_those_of_a_plain_loop(kind: str, by: str) -> None:
    lm = handle(random_sae(kind))

    def value(ids: Tensor) -> float:
        return pre_activations(lm.saes[1], activation(lm.model, ids, "1.resid_post")[0])[-1, 3].item()

    att = lm.attribute_tokens(PROMPT, "1/3", by=by, pos="all", ablate=3, seed=5)
    assert_measured(att, value, 3, 5)


@pytest.mark.parametrize("hook", ["mlp_out", "hook_z", "resid_mid"])
def test_a_directions_measured_effects_are_those_of_a_plain_loop(hook: str) -> None:
    lm, w = handle(shape="gpt2"), torch.linspace(-1, 1, 32)

    def value(ids: Tensor) -> float:
        return (activation(lm.model, ids, f"2.{hook}")[0, -1] @ w).item()

    assert_measured(lm.attribute_tokens(PROMPT, direction=w, layer=2, hook=hook, pos=5, ablate=2), value, 2, 0)


def test_a_logit_differences_measured_effects_are_those_of_a_plain_loop(lm: ds.LM) -> None:
    @torch.no_grad()
    def value(ids: Tensor) -> float:
        logits = lm.model(ids).logits[0, -1]
        return (logits[7] - logits[9]).item()

    assert_measured(lm.attribute_tokens(PROMPT, logit_diff=(7, 9), ablate=4, seed=1), value, 4, 1)


def test_special_tokens_are_not_replaced(lm: ds.LM) -> None:
    measured = lm.attribute_tokens([BOS, 80, EOS, 90, 70], "1/3", pos=4, ablate=2).target.measured
    assert [mean is None for mean in measured.mean] == [True, False, True, False, False]
    assert [spread is None for spread in measured.spread] == [True, False, True, False, False]


def test_several_batches_measure_what_one_does(lm: ds.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    together = lm.attribute_tokens(PROMPT, "1/3", pos=5, ablate=3).target.measured
    monkeypatch.setattr(measure, "BATCH_TOKENS", 20)
    done_: list[int] = []
    apart = lm.attribute_tokens(
        PROMPT,
        "1/3",
        pos=5,
        ablate=3,
        progress=lambda what, done, of: done_.append(done) if "replacing" in what else None,
    ).target.measured
    assert done_ == [33, 67, 100]
    assert apart.mean[1:] == pytest.approx(together.mean[1:], rel=1e-4, abs=1e-5)


def test_the_seed_decides_the_replacements(lm: ds.LM) -> None:
    first, again, other = (lm.attribute_tokens(PROMPT, "1/3", ablate=2, seed=s).target.measured for s in (1, 1, 2))
    assert first == again
    assert first.mean != other.mean


def test_a_seed_that_is_too_large_is_refused(lm: ds.LM) -> None:
    with pytest.raises(UserError, match="a seed is a whole number of 64 bits"):
        lm.attribute_tokens(PROMPT, "1/3", ablate=1, seed=2**64)
    assert lm.attribute_tokens(PROMPT, "1/3", ablate=1, seed=-1).target.measured.seed == -1


def test_the_rank_correlation_is_spearmans_over_what_was_replaced_but_for_the_targets_own(lm: ds.LM) -> None:
    target = lm.attribute_tokens(LONG, "1/3", pos=11, ablate=2).target
    assert target.measured.mean[0] is None
    expected = spearmanr(target.contributions[1:11].tolist(), target.measured.mean[1:11]).statistic
    assert target.rank_correlation == pytest.approx(expected)
    assert target.agreement.n == 10


def test_fewer_than_ten_sources_have_no_rank_correlation(lm: ds.LM) -> None:
    for pos in (1, 2, 10):
        target = lm.attribute_tokens(LONG, "1/3", pos=pos, ablate=2).target
        assert target.agreement is None
        assert target.rank_correlation is None
    assert lm.attribute_tokens(LONG, "1/3", pos=11, ablate=2).target.rank_correlation is not None


def test_the_reliability_is_that_of_two_halves_of_the_draws(lm: ds.LM) -> None:
    target = lm.attribute_tokens(LONG, "1/3", pos=11, ablate=6).target
    drawn = target.measured.sampled.samples[:, :-1]
    half = spearmanr(drawn[::2].mean(0), drawn[1::2].mean(0)).statistic
    assert target.agreement.reliability == pytest.approx(2 * half / (1 + half) if half > 0 else half)


def test_a_prompt_of_special_tokens_has_nothing_to_replace(lm: ds.LM) -> None:
    target = lm.attribute_tokens([BOS, EOS], logit=5, ablate=2).target
    assert target.measured.mean == (None, None)


def test_the_document_has_what_was_measured_beside_each_contribution(lm: ds.LM) -> None:
    att = lm.attribute_tokens(PROMPT, "1/3", ablate=2, seed=3)
    document = att.to_dict()["targets"][0]
    whole, error = att.target.pre_activation, att.target.measured.errors
    assert document["measured"] == {
        "kind": "replace", "whole": pytest.approx(whole), "baseline": None, "baseline_error": None,
        "values": [
            {"pos": pos, "token": att.heading.prompt.tokens[pos], "value": mean, "error": error[pos]}
            for pos, mean in enumerate(att.target.measured.mean)
            if mean is not None
        ],
        "removal": "text", "replacements": 2, "enumerated": False, "stopped": "samples", "asked": None, "seed": 3,
        "replace_from": None, "agreement": None, "rank_correlation": None,
    }  # fmt: skip
    assert document["contributions"][0]["measured"] is None
    for entry, mean, spread in zip(
        document["contributions"][1:], att.target.measured.mean[1:], att.target.measured.spread[1:], strict=True
    ):
        assert entry["measured"] == {"mean": mean, "std": spread, "error": pytest.approx(spread)}


def test_nothing_is_measured_unless_it_is_asked_for(lm: ds.LM) -> None:
    att = lm.attribute_tokens(PROMPT, "1/3")
    assert att.target.measured is None
    assert att.target.rank_correlation is None
    assert "measured" not in att.to_dict()["targets"][0]
    assert "when replaced" not in str(att.table())


def test_tables_show_what_was_measured(lm: ds.LM) -> None:
    att = lm.attribute_tokens(PROMPT, "1/3", ablate=2)
    mean, spread = att.target.measured.mean[1], att.target.measured.spread[1]
    for shown in (str(att.table()), att._repr_html_()):
        assert f"{mean:+.2f} ± {spread:.2f}".replace("-", "−") in re.sub("<[^>]*>", "", shown)
        assert "each source replaced by 2 random tokens" in " ".join(shown.split())
    assert tokenizer()(PROMPT)["input_ids"][0] == BOS


# ------------------------------------------------------------------------------------------------------ Shapley values


def live_feature(lm: ds.LM) -> Callable[[list[int]], float]:
    """A feature's pre-activation at the last token, by transformers and sae-lens alone."""

    def value(ids: list[int]) -> float:
        return pre_activations(lm.saes[1], activation(lm.model, torch.tensor([ids]), "1.resid_post")[0])[-1, 3].item()

    return value


def without(ids: list[int], gone: set[int], removal: str) -> list[int]:
    if removal == "delete":
        return [token for p, token in enumerate(ids) if p not in gone]
    return [71 if p in gone else token for p, token in enumerate(ids)]


def by_all_orders(value: Callable[[set[int]], float], players: list[tuple[int, ...]]) -> list[float]:
    """value: takes the positions that are gone."""
    found = [0.0] * len(players)
    known: dict[frozenset[int], float] = {}

    def of(there: tuple[int, ...]) -> float:
        key = frozenset(p for i, group in enumerate(players) if i not in there for p in group)
        if key not in known:
            known[key] = value(set(key))
        return known[key]

    orders = list(itertools.permutations(range(len(players))))
    for order in orders:
        for k, player in enumerate(order):
            found[player] += (of(order[: k + 1]) - of(order[:k])) / len(orders)
    return found


@pytest.mark.parametrize("removal", ["delete", f"mask:{tokenizer().decode([71])}"])
@pytest.mark.parametrize("by", ["token", "word"])
def test_shapley_values_are_the_mean_over_all_orders_of_the_live_model(lm: ds.LM, removal: str, by: str) -> None:
    att = lm.attribute_tokens(PROMPT, "1/3", by=by, pos=5, measure="shapley", removal=removal)
    ids, found = list(att.heading.prompt.token_ids)[:6], att.target.measured
    own = removal == "delete"  # the token that is read has to stay
    players = [tuple(p for p in s.positions if p <= 5) for s in att.target.sources[1 : len(att.target.sources) - own]]
    value = live_feature(lm)
    expected = by_all_orders(lambda gone: value(without(ids, gone, removal)), players)
    assert [v for v in found.values if v is not None] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert found.baseline == pytest.approx(value(without(ids, {p for g in players for p in g}, removal)), rel=1e-3)
    assert found.values[0] is None
    assert (found.values[-1] is None) == own
    assert (found.sampled.stopped, found.enumerated) == ("exact", True)


def test_enumeration_by_random_tokens_is_brute_force_with_the_same_draws(lm: ds.LM) -> None:
    att = lm.attribute_tokens(PROMPT, "1/3", pos=4, measure="shapley", measure_error=5.0, seed=2)
    ids, found, value = list(att.heading.prompt.token_ids)[:5], att.target.measured, live_feature(lm)
    generator, expected = torch.Generator().manual_seed(2), []
    drawn = torch.stack([torch.randint(len(ordinary()), (16, 1), generator=generator)[:, 0] for _ in ids[1:]], dim=1)
    for row in drawn[:3].tolist():
        random_ = [ids[0], *(ordinary()[i] for i in row)]

        def changed(gone: set[int], other: list[int] = random_) -> float:
            return value([other[p] if p in gone else token for p, token in enumerate(ids)])

        expected.append(by_all_orders(changed, [(1,), (2,), (3,), (4,)]))
    assert len(found.sampled.samples) == 16
    assert torch.allclose(found.sampled.samples[:3, :-1], torch.tensor(expected).double(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("removal", ["text", "delete"])
@pytest.mark.parametrize("target", [{"feature": "1/3"}, {"logit": 7}, {"logit_diff": (7, 9)}])
def test_shapley_values_and_the_baseline_sum_to_the_pre_activation(lm: ds.LM, target: Any, removal: str) -> None:
    for by, prompt in (("token", LONG), ("word", PROMPT)):
        att = lm.attribute_tokens(
            prompt, **target, by=by, measure="shapley", measure_seconds=1e-9, removal=removal, seed=4
        )
        document = att.to_dict()["targets"][0]
        found = document["measured"]
        total = sum(entry["value"] for entry in found["values"]) + found["baseline"]
        assert total == pytest.approx(att.pre_activation, rel=1e-5, abs=1e-6)
        assert all(entry["error"] >= 0 for entry in found["values"])
        assert len(document["contributions"]) > len(found["values"])  # <bos> is no player


def test_what_cannot_be_taken_out_belongs_to_the_baseline(lm: ds.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "sinks", lambda seen, place: [2])
    ask: Any = {"pos": 6, "measure_seconds": 1e-9}
    for removal, own in (("text", []), ("delete", [6])):
        found = lm.attribute_tokens(LONG, "1/3", measure="shapley", removal=removal, **ask).target.measured
        assert [p for p, v in enumerate(found.values) if v is None] == [0, 2, *own]
        alone = lm.attribute_tokens(LONG, "1/3", measure="replace", removal=removal, **ask).target.measured
        assert [p for p, v in enumerate(alone.values) if v is None] == [0, *own]


def test_two_runs_by_other_orders_agree_within_their_errors(lm: ds.LM) -> None:
    first, second = (
        lm.attribute_tokens(LONG, "1/3", pos=12, measure="shapley", measure_error=0.2, seed=s).target.measured
        for s in (1, 2)
    )
    assert first.sampled.stopped == "error"
    assert max(e for e in first.errors if e is not None) <= 0.2 * abs(first.whole)
    away = [
        abs(a - b) / math.hypot(x, y)
        for a, b, x, y in zip(first.values[1:], second.values[1:], first.errors[1:], second.errors[1:], strict=True)
    ]
    assert max(away) < 4.5
    assert first != second


def test_replacing_goes_on_until_the_errors_are_small_enough(lm: ds.LM) -> None:
    found = lm.attribute_tokens(LONG, "1/3", pos=12, measure="replace", measure_error=0.1).target.measured
    assert found.sampled.stopped == "error"
    assert found.replacements >= 16
    assert max(e for e in found.errors if e is not None) <= 0.1 * abs(found.whole)
    assert found.baseline is None


def test_why_there_are_not_more_samples_is_said(lm: ds.LM) -> None:
    soon = lm.attribute_tokens(LONG, "1/3", pos=12, measure="shapley", measure_error=1e-6, measure_seconds=1e-9)
    shown = " ".join(str(soon.table()).split())
    assert "2 pairs of orders" in shown
    assert "before all errors were below" in shown
    assert "Shapley value" in shown
    assert "baseline" in shown
    assert soon.to_dict()["targets"][0]["measured"]["asked"] == {"error": 1e-6, "seconds": 1e-9}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"measure": "banzhaf"}, "shapley or replace, not 'banzhaf'"),
        ({"measure": "shapley", "ablate": 3}, "leave it out for shapley"),
        ({"measure": "shapley", "measure_error": 0.0}, "--measure-error is greater than 0"),
        ({"measure": "shapley", "measure_error": math.nan}, "--measure-error is greater than 0"),
        ({"measure": "replace", "measure_seconds": -1.0}, "--measure-seconds is greater than 0"),
        ({"measure_seconds": 5.0}, "give --measure, too"),
        ({"ablate": 2, "measure_seconds": 5.0}, "--ablate replaces so often and no more"),
        ({"removal": "delete"}, "give --measure, too"),
        ({"measure": "shapley", "removal": "burn"}, "not by 'burn'"),
        ({"measure": "shapley", "removal": "mask:"}, "not by 'mask:'"),
        ({"measure": "shapley", "removal": "mask:supply and"}, "'supply and' is"),
        ({"measure": "shapley", "removal": "delete", "replace_from": "x.txt"}, "draws nothing"),
        ({"ablate": -1}, "from 1 to 10,000"),
    ],
)
def test_what_cannot_be_measured_is_refused(lm: ds.LM, asked: Any, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        lm.attribute_tokens(PROMPT, "1/3", **asked)


# ---------------------------------------------------------------------------------------------- what tokens give way to


def drawn(tokenizer_: Any, replace_from: Path | None = None) -> set[int]:
    return set(replacements(ds.load(model(), tokenizer_)._subject, replace_from).tolist())


def test_tokens_give_way_to_tokens_that_a_text_has() -> None:
    reserved = copy.deepcopy(tokenizer())
    added = ["<|reserved|>", "<|tool|>"]
    reserved.add_tokens([AddedToken(text, special=True) for text in added])
    small = copy.deepcopy(model())
    small.resize_token_embeddings(len(reserved) + 30)  # a padded vocabulary
    found = replacements(ds.load(small, reserved)._subject).tolist()
    assert found == ordinary()
    assert max(found) < len(reserved)
    assert not {BOS, EOS, *reserved.convert_tokens_to_ids(added)} & set(found)
    assert all("\ufffd" not in reserved.decode([i]) for i in found)
    assert {tokenizer().decode([i]) for i in found} >= {" supply", " the", "e", "."}


def test_tokens_that_only_the_tokenizer_knows_are_not_drawn() -> None:
    longer = copy.deepcopy(tokenizer())
    longer.add_tokens([chr(0x4E00 + i) for i in range(VOCAB)])
    longer.add_tokens([" people"])  # more than the model has embeddings for
    assert longer(" people", add_special_tokens=False)["input_ids"][0] >= VOCAB
    assert max(drawn(longer)) < VOCAB


def test_another_text_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("<bos>supply and demand 🦊<eos>", encoding="utf-8")
    known = tokenizer().get_vocab()
    assert drawn(tokenizer(), path) == {known[text] for text in ("supply", "Ġand", "Ġdemand", "Ġ")}
    lm = handle(random_sae())
    path.write_text(" Paris")
    att = lm.attribute_tokens(PROMPT, "1/3", pos=2, ablate=2, replace_from=path)
    ids = list(att.heading.prompt.token_ids[:3])
    ids[1] = known["ĠParis"]
    there = lm.attribute_tokens(ids, "1/3", pos=2).pre_activation
    assert att.target.measured.mean[1] == pytest.approx(att.pre_activation - there, rel=1e-4)
    assert att.target.measured.spread[1] == pytest.approx(0, abs=1e-6)
    assert att.to_dict()["targets"][0]["measured"]["replace_from"] == str(path)
    assert f"2 random tokens of {path}".replace(" ", "") in "".join(str(att.table()).split())


def test_a_text_that_cannot_be_drawn_from_is_refused(tmp_path: Path) -> None:
    lm, path = handle(random_sae()), tmp_path / "own.txt"
    with pytest.raises(UserError, match=r"cannot read .*own.txt: No such file"):
        lm.attribute_tokens(PROMPT, "1/3", ablate=1, replace_from=path)
    path.write_text("<bos>")
    with pytest.raises(UserError, match=r"own.txt has no token to replace others by; it should be a text"):
        lm.attribute_tokens(PROMPT, "1/3", ablate=1, replace_from=path)
    with pytest.raises(UserError, match="draw from; give one, too"):
        lm.attribute_tokens(PROMPT, "1/3", replace_from=path)
    with pytest.raises(UserError, match="came without a tokenizer, so nothing can be replaced from a text"):
        ds.load(model(), saes=random_sae()).attribute_tokens([5, 6], "1/3", ablate=1, replace_from=path)


def test_without_a_tokenizer_all_but_special_ids_are_drawn() -> None:
    assert drawn(None) == set(range(VOCAB)) - {BOS, EOS}


def test_a_tokenizer_that_knows_no_english_gives_its_vocabulary() -> None:
    words = {"<unk>": 0, "<s>": 1, "東": 2, "京": 3}
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")), unk_token="<unk>", bos_token="<s>"
    )
    assert drawn(other) == {2, 3}
