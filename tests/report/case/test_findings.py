"""The sentence of a case study says what its numbers say, and nothing else."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depass_sae.report.case.findings import Facts, HeadFact, SourceFact, UpstreamFact, gather, sentence

SOURCES = [
    SourceFact(0, "<bos>", 0.5),
    SourceFact(4, " supply", 6.0, measured=5.5, spread=0.5),
    SourceFact(5, " and", -0.25, measured=0.25, spread=0.5),
    SourceFact(6, " demand", 2.0, measured=2.5, spread=0.5),
]


def facts(sources: list[SourceFact] = SOURCES, **changed: object) -> Facts:
    known: dict[str, object] = {
        "feature": "11/223", "label": "", "pos": 6, "token": " demand", "activation": 8.0, "pre_activation": 8.0,
        "replacements": 8, "rank_correlation": 0.75,
    }  # fmt: skip
    return gather(sources=sources, **(known | changed))  # type: ignore[arg-type]


def test_the_largest_source_and_the_own_token_are_named_with_their_shares():
    said = sentence(facts())
    assert "fires on demand (6) with activation 8.00." in said
    assert "comes from supply (4): +6.00 (75 %)" in said
    assert "Its own token contributes +2.00 (25 %)" in said


def test_a_pre_activation_that_differs_from_the_activation_is_told():
    assert "activation 8.00 (pre-activation 9.50)" in sentence(facts(pre_activation=9.5))


def test_attribution_and_intervention_agree_where_both_name_the_same_source():
    found = facts()
    assert found.verdict == "agree"
    assert "by 8 random tokens agrees on the first: most is lost without supply (4), 5.50 on average" in sentence(found)
    assert "The rank correlation over 3 sources is 0.75." in sentence(found)


def test_a_disagreement_is_said_plainly_with_both_losses():
    sources = [*SOURCES[:3], replace(SOURCES[3], measured=7.0)]
    said = sentence(facts(sources))
    assert "disagrees with the contributions: most is lost without demand (6), 7.00 on average" in said
    assert "and 5.50 without supply (4)." in said
    assert "agrees" not in said.replace("disagrees", "")


def test_a_disagreement_within_the_spread_of_the_replacements_says_so():
    sources = [*SOURCES[:3], replace(SOURCES[3], measured=5.75, spread=2.0)]
    assert "they lie 0.25 apart, less than the standard deviation of 2.00" in sentence(facts(sources))


def test_a_source_whose_replacement_does_the_opposite_is_named():
    yet = SourceFact(3, " yet", -2.5, measured=4.25, spread=1.0)
    said = sentence(facts([*SOURCES, yet]))
    assert "agrees on the first" in said
    assert "The signs differ for yet (3): it contributes \u22122.50, and without it the feature loses 4.25." in said
    said = sentence(facts([*SOURCES, replace(yet, value=2.5, measured=-4.25)]))
    assert "it contributes +2.50, and without it the feature gains 4.25." in said


@pytest.mark.parametrize("change", [{"measured": 0.7}, {"spread": 5.0}, {"value": 0.1}])
def test_opposite_signs_that_are_small_or_uncertain_are_not_told(change: dict[str, float]):
    yet = replace(SourceFact(3, " yet", -2.5, measured=4.25, spread=1.0), **change)
    assert "The signs differ" not in sentence(facts([*SOURCES, yet]))


def test_where_no_replacement_takes_anything_away_it_disagrees():
    sources = [replace(s, measured=None if s.measured is None else -1.0) for s in SOURCES]
    found = facts(sources, rank_correlation=None)
    assert found.verdict == "nothing lost"
    assert "disagrees with the contributions: on average none of them lowers the pre-activation." in sentence(found)


def test_orders_that_do_not_agree_are_said_to():
    assert "is −0.50: over all sources the two orders do not agree." in sentence(facts(rank_correlation=-0.5))


def test_without_replacements_nothing_is_said_of_them():
    found = facts([replace(s, measured=None) for s in SOURCES], replacements=0, rank_correlation=None)
    assert found.verdict == "not measured"
    assert sentence(found).endswith("What replacing tokens really does was not measured.")


def test_a_special_token_with_the_largest_contribution_was_kept_and_the_next_is_compared():
    sources = [replace(SOURCES[0], value=7.0), *SOURCES[1:]]
    found = facts(sources)
    assert found.top.token == "<bos>"
    assert found.verdict == "agree"
    assert "(<bos> (0), a special token, was kept)" in sentence(found)


def test_a_target_whose_own_token_is_no_source_has_no_such_clause():
    said = sentence(facts(SOURCES[:3]))
    assert "own token" not in said


def test_a_largest_contribution_of_the_own_token_is_called_that():
    assert "The largest contribution is its own token’s, +6.00 (75 %)." in sentence(facts(pos=4))


def test_a_feature_that_does_not_fire_has_no_shares():
    said = sentence(facts(activation=0.0, pre_activation=-2.0))
    assert "does not fire on demand (6): its pre-activation there is −2.00." in said
    assert "%" not in said


def test_where_no_token_adds_it_says_so_and_names_what_takes_most_away():
    sources = [replace(s, value=-abs(s.value)) for s in SOURCES]
    said = sentence(facts(sources, activation=0.0, pre_activation=-9.0))
    assert "No source token adds to it. Most is taken away by what supply (4) takes away" not in said
    assert "No source token adds to it. Most is taken away by supply (4): −6.00." in said


def test_a_negative_contribution_larger_than_the_largest_positive_one_is_named_too():
    sources = [*SOURCES[:2], replace(SOURCES[2], value=-6.5), SOURCES[3]]
    assert "Larger in size is what and (5) takes away: −6.50." in sentence(facts(sources))


def test_heads_and_upstream_features_are_named_with_their_labels():
    heads = (HeadFact("L4H2", 3.0, SOURCES[1]), HeadFact("L1H0", -1.0))
    upstream = (UpstreamFact("5/12@6", "trade", 2.25),)
    said = sentence(facts(label="the economy", heads=heads, upstream=upstream, error_share=0.25, left_out_share=0.5))
    assert said.startswith("Feature 11/223 (“the economy”) fires")
    assert "the largest heads are L4H2 (+3.00, of which +6.00 from supply (4)) and L1H0 (−1.00)" in said
    assert "the largest edge comes from 5/12@6 (“trade”) (+2.25)" in said
    assert "25 % ends in SAE errors, which no feature explains, and 50 % in what the graph leaves out." in said


@given(
    values=st.lists(st.floats(-50, 50), min_size=1, max_size=6),
    measured=st.lists(st.none() | st.floats(-50, 50), min_size=6, max_size=6),
    pre=st.floats(-50, 50),
    rho=st.none() | st.floats(-1, 1),
    error=st.none() | st.floats(0, 1),
)
def test_every_number_in_it_is_one_of_the_facts(
    values: list[float], measured: list[float | None], pre: float, rho: float | None, error: float | None
):
    sources = [
        SourceFact(pos, f"t{chr(97 + pos)}", v, measured=measured[pos], spread=1.0) for pos, v in enumerate(values)
    ]
    found = facts(sources, pos=0, pre_activation=pre, rank_correlation=rho, error_share=error)
    known = {f"{abs(number):.2f}" for number in _numbers(found.to_dict())}
    if found.most_lost and found.top_replaced:
        known.add(f"{abs((found.most_lost.measured or 0) - (found.top_replaced.measured or 0)):.2f}")
    told = re.findall(r"\d+\.\d\d(?!\d)", sentence(found))
    assert set(told) <= known


def _numbers(value: object) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in _numbers(item)]
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.mark.parametrize("token", ["\n", "\x1b[31m", "  ", "‮"])
def test_token_texts_stay_on_one_visible_line(token: str):
    said = sentence(facts([replace(SOURCES[1], token=token)], token=token))
    assert said.isprintable()
