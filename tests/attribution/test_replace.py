"""Measured effects against a plain loop over transformers and sae-lens."""

import copy
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
from depass_sae.attribution import replace, reservoir
from depass_sae.attribution.reservoir import replacements, written
from depass_sae.errors import UserError

from .tiny import BOS, EOS, VOCAB, activation, handle, model, pre_activations, random_sae, tokenizer

PROMPT = "supply and demand of apples"


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
    monkeypatch.setattr(replace, "BATCH_TOKENS", 20)
    steps: list[int] = []
    apart = lm.attribute_tokens(
        PROMPT,
        "1/3",
        pos=5,
        ablate=3,
        progress=lambda what, done, of: steps.append(of) if "replacing" in what else None,
    ).target.measured
    assert len(steps) > 3
    assert apart.mean[1:] == pytest.approx(together.mean[1:], rel=1e-4, abs=1e-5)


def test_the_seed_decides_the_replacements(lm: ds.LM) -> None:
    first, again, other = (lm.attribute_tokens(PROMPT, "1/3", ablate=2, seed=s).target.measured for s in (1, 1, 2))
    assert first == again
    assert first.mean != other.mean


def test_a_seed_that_is_too_large_is_refused(lm: ds.LM) -> None:
    with pytest.raises(UserError, match="a seed is a whole number of 64 bits"):
        lm.attribute_tokens(PROMPT, "1/3", ablate=1, seed=2**64)
    assert lm.attribute_tokens(PROMPT, "1/3", ablate=1, seed=-1).target.measured.seed == -1


def test_the_rank_correlation_is_spearmans_over_what_was_replaced(lm: ds.LM) -> None:
    target = lm.attribute_tokens(PROMPT, "1/3", ablate=2).target
    assert target.measured.mean[0] is None
    expected = spearmanr(target.contributions[1:].tolist(), target.measured.mean[1:]).statistic
    assert target.rank_correlation == pytest.approx(expected)


def test_fewer_than_three_sources_have_no_rank_correlation(lm: ds.LM) -> None:
    for pos in (1, 2):
        assert lm.attribute_tokens(PROMPT, "1/3", pos=pos, ablate=2).target.rank_correlation is None
    assert lm.attribute_tokens(PROMPT, "1/3", pos=3, ablate=2).target.rank_correlation is not None


def test_a_prompt_of_special_tokens_has_nothing_to_replace(lm: ds.LM) -> None:
    target = lm.attribute_tokens([BOS, EOS], logit=5, ablate=2).target
    assert target.measured.mean == (None, None)


def test_the_document_has_what_was_measured_beside_each_contribution(lm: ds.LM) -> None:
    att = lm.attribute_tokens(PROMPT, "1/3", ablate=2, seed=3)
    document = att.to_dict()["targets"][0]
    assert document["measured"] == {
        "replacements": 2, "seed": 3, "replace_from": None, "rank_correlation": att.target.rank_correlation,
    }  # fmt: skip
    assert document["contributions"][0]["measured"] is None
    for entry, mean, spread in zip(
        document["contributions"][1:], att.target.measured.mean[1:], att.target.measured.spread[1:], strict=True
    ):
        assert entry["measured"] == {"mean": mean, "std": spread}


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
    with pytest.raises(UserError, match="give --ablate, too"):
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
