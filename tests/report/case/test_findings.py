"""The words of a case study say what its numbers say, and nothing else."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depass_sae.attribution.agreement import Agreement
from depass_sae.report.case.findings import (
    Facts,
    HeadFact,
    SourceFact,
    UpstreamFact,
    answer,
    gather,
    points,
    sentence,
)

SOURCES = [
    SourceFact(0, "<bos>", 0.5, special=True),
    SourceFact(4, " supply", 6.0, measured=5.5, spread=0.5),
    SourceFact(5, " and", -0.25, measured=0.25, spread=0.5),
    SourceFact(6, " demand", 2.0, measured=2.5, spread=0.5),
]


AGREEMENT = Agreement(0.75, 0.25, 0.95, 12, 0.9)


def facts(sources: list[SourceFact] = SOURCES, **changed: object) -> Facts:
    known: dict[str, object] = {
        "feature": "11/223", "label": "", "pos": 6, "token": " demand", "activation": 8.0, "pre_activation": 8.0,
        "replacements": 8, "agreement": AGREEMENT,
    }  # fmt: skip
    return gather(sources=sources, **(known | changed))  # type: ignore[arg-type]


def test_the_answer_names_the_largest_source_its_share_the_target_and_what_replacing_it_did():
    assert answer(facts()) == "supply (4) gives 75 % of 11/223 at demand (6); replaced: −5.5"
    assert "Its own token, demand (6): +2.00 (25 %)" in points(facts())


def test_a_special_token_is_never_the_largest_and_its_share_is_told_apart():
    found = facts([replace(SOURCES[0], value=7.0), *SOURCES[1:]])
    assert found.top is not None
    assert found.top.token == " supply"
    assert [source.token for source in found.special] == ["<bos>"]
    assert found.special[0].share == pytest.approx(7 / 8)
    assert "Apart from the ranking, special tokens: <bos> (0) +7.00 (88 %)" in points(found)
    assert found.verdict == "agree"


def test_where_all_tokens_are_special_the_answer_says_so():
    found = facts([SOURCES[0]], pos=0, token="<bos>")
    assert answer(found) == "No token that could be changed adds to 11/223 at <bos> (0)"


def test_attribution_and_intervention_agree_where_both_name_the_same_source():
    found = facts()
    assert found.verdict == "agree"
    assert (
        "Each source replaced by 8 random tokens: this agrees, most is lost without supply (4) (5.50); "
        "rank correlation 0.75 (95 %: 0.25 to 0.95; 12 sources without the target’s own; the measurement with itself "
        "0.90)" in points(found)
    )


def test_a_disagreement_is_said_plainly_with_both_losses():
    said = sentence(facts([*SOURCES[:3], replace(SOURCES[3], measured=7.0)]))
    assert "this disagrees, most is lost without demand (6) (7.00; without supply (4) 5.50" in said
    assert "agrees" not in said.replace("disagrees", "")


def test_a_disagreement_within_the_spread_of_the_replacements_says_so():
    sources = [*SOURCES[:3], replace(SOURCES[3], measured=5.75, spread=2.0)]
    assert "5.50, less apart than the standard deviation of 2.00)" in sentence(facts(sources))


def test_a_source_whose_replacement_does_the_opposite_is_named():
    yet = SourceFact(3, " yet", -2.5, measured=4.25, spread=1.0)
    said = points(facts([*SOURCES, yet]))
    assert "Signs differ for yet (3): it contributes \u22122.50, and without it the feature loses 4.25" in said
    said = points(facts([*SOURCES, replace(yet, value=2.5, measured=-4.25)]))
    assert "Signs differ for yet (3): it contributes +2.50, and without it the feature gains 4.25" in said


@pytest.mark.parametrize("change", [{"measured": 0.7}, {"spread": 5.0}, {"value": 0.1}])
def test_opposite_signs_that_are_small_or_uncertain_are_not_told(change: dict[str, float]):
    yet = replace(SourceFact(3, " yet", -2.5, measured=4.25, spread=1.0), **change)
    assert "Signs differ" not in sentence(facts([*SOURCES, yet]))


def test_where_no_replacement_takes_anything_away_it_disagrees():
    sources = [replace(s, measured=None if s.measured is None else -1.0) for s in SOURCES]
    found = facts(sources, agreement=None)
    assert found.verdict == "nothing lost"
    assert "this disagrees, on average none of them lowers the pre-activation" in sentence(found)


def test_orders_that_do_not_agree_are_said_to():
    against = replace(AGREEMENT, rank=-0.5, low=-0.8, high=0.1)
    assert points(facts(agreement=against))[-1].endswith("with itself 0.90), the two orders do not agree")


def test_without_replacements_nothing_is_said_of_them():
    found = facts([replace(s, measured=None) for s in SOURCES], replacements=0, agreement=None)
    assert found.verdict == "not measured"
    assert points(found)[-1] == "What replacing tokens really does was not measured"
    assert "replaced" not in answer(found)


def test_a_target_whose_own_token_is_no_source_has_no_such_point():
    assert "own token" not in sentence(facts(SOURCES[:3]))


def test_a_largest_contribution_of_the_own_token_is_called_that():
    assert answer(facts(pos=4, token=" supply")) == "supply (4) itself gives 75 % of 11/223 there; replaced: −5.5"


def test_a_feature_that_does_not_fire_has_no_shares():
    said = sentence(facts(activation=0.0, pre_activation=-2.0))
    assert said.startswith("11/223 does not fire at demand (6) (pre-activation −2.00); supply (4) adds most, +6.00; ")
    assert "%" not in said.replace("95 %", "")


def test_where_no_token_adds_it_says_so_and_names_what_takes_most_away():
    sources = [replace(s, value=-abs(s.value)) for s in SOURCES]
    takes = "supply (4) takes most away, −6.00"
    silent = answer(facts(sources, activation=0.0, pre_activation=-9.0))
    assert silent == f"11/223 does not fire at demand (6) (pre-activation −9.00); {takes}"
    assert answer(facts(sources)) == f"No token that could be changed adds to 11/223 at demand (6); {takes}"


def test_a_negative_contribution_larger_than_the_largest_positive_one_is_named_too():
    sources = [*SOURCES[:2], replace(SOURCES[2], value=-6.5), SOURCES[3]]
    assert "Larger in size is what and (5) takes away: −6.50" in points(facts(sources))
    own = points(facts([*SOURCES[:3], replace(SOURCES[3], value=-6.5)]))
    assert "Its own token, demand (6): −6.50 (−81 %), larger in size" in own


def test_heads_and_upstream_features_are_named_with_their_labels():
    heads = (HeadFact("L4H2", 3.0, SOURCES[1]), HeadFact("L1H0", -1.0))
    upstream = (UpstreamFact("5/12@6", "trade", 2.25),)
    said = points(facts(heads=heads, upstream=upstream, error_share=0.25, left_out_share=0.5))
    assert "Largest heads: L4H2 +3.00, +6.00 of it from supply (4); L1H0 −1.00" in said
    assert "Largest upstream features: 5/12@6 “trade” +2.25" in said
    errors = "25 % of the graph’s influence ends in SAE errors, which no feature explains"
    assert f"{errors}, and 50 % in what the graph leaves out" in said


def test_the_sentence_is_the_answer_and_its_points():
    found = facts()
    assert sentence(found) == ". ".join([answer(found), *points(found)]) + "."


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
    agreement = None if rho is None else Agreement(rho, -1, 1, 10)
    found = facts(sources, pos=0, pre_activation=pre, agreement=agreement, error_share=error)
    known = {f"{abs(number):.2f}" for number in _numbers(found.to_dict())}
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


def test_what_is_lost_without_the_graphs_features_stands_beside_random_ones_with_their_interval():
    random = {"mean": 0.5, "low": 0.45, "high": 0.55}
    together = {"features": 40, "shares": {"without_graph": 0.375, "without_random": random}}
    said = (
        "Removing the graph's 40 features takes 0.62 of the target away; 40 random features of the same layers and "
        "positions: 0.50 ± 0.05"
    )
    assert points(facts(together=together))[-1] == said
    assert not any("random features of" in point for point in points(facts()))
