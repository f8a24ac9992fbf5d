"""Targets that are made of logits: what they are worth, that their parts sum to it, and how they are written."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import depass_sae as ds
from depass_sae.attribution.logits import RIVALS, LogitTarget, listed, logit_name
from depass_sae.attribution.readoff import gradient
from depass_sae.attribution.targets import WrittenTarget, make_target, parse_target, written_against
from depass_sae.errors import UserError
from depass_sae.passes.forward import FirstToken

from ..passes.models import EVERY, SHAPES
from .tiny import TEXT, VOCAB, handle, model, tokenizer

WRITTEN = (
    "logit:5",
    "logit:5+9",
    "logit:5 against mean",
    "logit:5 against rivals",
    "logit:5 against 7",
    "logit:5 against 7,9,11",
    "logit:5+9 against mean",
    "logit:5+9 against rivals",
    "logit:5+9 against 7",
    "logprob:5",
    "logprob:5+9",
)
CAPPED = ("gemma2",)


def logits_of(lm: ds.LM, prompt: Any = TEXT) -> torch.Tensor:
    """[pos, vocab] of transformers, in float64."""
    with torch.no_grad():
        return lm.model(torch.tensor([lm.encode(prompt).token_ids]), use_cache=False).logits[0].double()


def expected(z: torch.Tensor, written: str) -> float:
    """A target by hand, of one position's logits."""
    kind, _, rest = written.partition(":")
    own, _, against = rest.partition(" against ")
    tokens = [int(token) for token in own.split("+")]
    if kind == "logprob":
        return z.log_softmax(0)[tokens].sum().item()
    if against == "rivals":
        order = [token for token in z.argsort(descending=True).tolist() if token not in tokens][:9]
        reference = z[order].mean()
    elif against == "mean":
        reference = z.mean()
    else:
        reference = z[[int(token) for token in against.split(",")]].mean() if against else torch.tensor(0.0)
    return sum((z[token] - reference).item() for token in tokens)


def in_float64(shape: str) -> ds.LM:
    return ds.load(model(shape, torch.float64), tokenizer())


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("shape", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_a_target_is_what_the_models_own_logits_make_it(shape: str, written: str) -> None:
    lm = in_float64(shape)
    z = logits_of(lm)
    target, _ = parse_target(lm._subject, written)
    seen = lm._subject.trace(lm.encode(TEXT), None)
    readoff = target.read(lm._subject, seen)
    right = torch.tensor([expected(row, written) for row in z], dtype=torch.float64)
    assert (readoff.now - right).abs().max() < 1e-5 * right.abs().max()  # transformers' norms are float32's
    assert (target.live(lm._subject, seen.logits) - right).abs().max() < 1e-5 * right.abs().max()
    if shape not in CAPPED or "logprob" in written:
        assert torch.equal(readoff.pre, readoff.now)
    else:  # read before the cap
        uncapped = torch.atanh(z / lm._subject.adapter.softcap) * lm._subject.adapter.softcap
        bare = torch.tensor([expected(row, written) for row in uncapped], dtype=torch.float64)
        assert (readoff.pre - bare).abs().max() < 1e-5 * bare.abs().max()


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_read_along_a_direction_and_the_constant_are_all_of_it(shape: str, written: str) -> None:
    lm = in_float64(shape)
    subject, seen = lm._subject, lm._subject.trace(lm.encode(TEXT), None)
    readoff = parse_target(subject, written)[0].read(subject, seen)
    read = (readoff.direction.w * seen.resid_post).sum(1) + readoff.direction.c
    assert (read - readoff.pre).abs().max() < 1e-6 * readoff.pre.abs().max()


@settings(deadline=None, max_examples=30)
@given(
    shape=st.sampled_from(EVERY),
    written=st.sampled_from(WRITTEN),
    rule=st.sampled_from(["half", "linear", "softmax", "linear-norm", "relu", "max", "half-qk"]),
    first=st.sampled_from(["skip", "compete"]),
    pos=st.none() | st.integers(1, 12),
)
def test_contributions_and_the_constant_sum_to_it_by_every_rule(
    shape: str, written: str, rule: str, first: FirstToken, pos: int | None
) -> None:
    lm = in_float64(shape)
    att = lm.attribute_tokens(TEXT, target=written, rule=rule, first_token=first, pos=pos)
    whole = att.target.contributions.sum().item() + sum(att.target.other.values()) + att.constant
    assert whole == pytest.approx(att.pre_activation, rel=1e-5, abs=1e-5)
    assert att.completeness_error < 1e-6


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_a_log_probabilitys_constant_is_minus_the_entropy(shape: str) -> None:
    lm = in_float64(shape)
    log_p = logits_of(lm)[-1].log_softmax(0)
    entropy = -(log_p.exp() * log_p).sum().item()
    one, two = (lm.attribute_tokens(TEXT, target=written) for written in ("logprob:5", "logprob:5+9"))
    norm = lm._subject.adapter.final_norm
    biases = 0.0
    if norm.bias is not None:  # a LayerNorm's bias is read by every logit, as of any target
        weight, p = lm._subject.adapter.unembed.weight, log_p.exp()
        biases = (norm.bias.double() @ (weight[:, 5].double() - weight.double() @ p)).item()
    assert one.constant == pytest.approx(biases - entropy, rel=1e-5)
    if norm.bias is None:
        assert two.constant == pytest.approx(-2 * entropy, rel=1e-5)


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("shape", ["llama", "gpt2", "gemma2"])
def test_a_slope_is_the_derivative_of_the_models_own_output(shape: str, written: str) -> None:
    lm = in_float64(shape)
    subject = lm._subject
    seen = subject.trace(lm.encode(TEXT), None)
    pos, adapter = 11, subject.adapter
    target = parse_target(subject, written)[0].at(seen, 11)
    x = seen.resid_post[pos : pos + 1]
    norm, unembed = adapter.final_norm.to(x), adapter.unembed.to(x)
    right = gradient(lambda x: target.live(subject, adapter.capped(unembed(norm(x)))), x)
    assert (target.slope(subject, x) - right).abs().max() < 1e-9 * right.abs().max()


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("shape", ["llama", "gpt2", "gemma2"])
def test_what_it_is_read_along_is_the_derivative_with_the_norm_frozen(shape: str, written: str) -> None:
    lm = in_float64(shape)
    subject, pos = lm._subject, 11
    adapter, seen = subject.adapter, subject.trace(lm.encode(TEXT), None)
    target = parse_target(subject, written)[0].at(seen, pos)
    x = seen.resid_post[pos : pos + 1]
    norm, unembed, capped = adapter.final_norm.to(x), adapter.unembed.to(x), adapter.capped
    own = capped if "logprob" in written else lambda z: z  # other logits are read before the cap
    scale, bias = norm.scale(x), 0 if norm.bias is None else norm.bias
    right = gradient(lambda y: target.live(subject, own(unembed(norm.frozen(y, scale) + bias))), x)
    found = target.read(subject, seen).direction.w[pos]
    assert (found - right).abs().max() < 1e-6 * right.abs().max()  # transformers' norms are float32's


@pytest.mark.parametrize("written", WRITTEN)
def test_an_unembedding_with_biases_has_its_part_in_the_constant(written: str) -> None:
    made = copy.deepcopy(model("llama", torch.float64))
    made.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 2, VOCAB, dtype=torch.float64))
    lm = ds.load(made, tokenizer())
    seen = lm._subject.trace(lm.encode(TEXT), None)
    readoff = parse_target(lm._subject, written)[0].read(lm._subject, seen)
    read = (readoff.direction.w * seen.resid_post).sum(1) + readoff.direction.c
    assert (read - readoff.pre).abs().max() < 1e-6 * readoff.pre.abs().max()
    assert readoff.pre[-1].item() == pytest.approx(expected(logits_of(lm)[-1], written), rel=1e-5, abs=1e-5)


def test_what_is_measured_is_held_to_the_rivals_of_the_untouched_prompt() -> None:
    lm = in_float64("llama")
    rivals = lm.attribute_tokens(TEXT, logit=5, against="rivals", ablate=2, seed=4)
    ids = [one["id"] for one in rivals.to_dict()["logit"]["against"]]
    named = lm.attribute_tokens(TEXT, logit=5, against=ids, ablate=2, seed=4)
    assert rivals.target.measured.values == named.target.measured.values


def test_what_is_held_to_something_does_not_move_when_all_logits_do() -> None:
    lm = in_float64("llama")
    z = torch.randn(3, VOCAB, dtype=torch.float64)
    for written in WRITTEN:
        target, _ = parse_target(lm._subject, written)
        moved = (target.live(lm._subject, z + 7) - target.live(lm._subject, z)).abs().max()
        assert (moved > 1) == (written in ("logit:5", "logit:5+9")), written


def test_rivals_are_the_likeliest_others_at_each_position_and_stay_so_whatever_an_intervention_does() -> None:
    lm = in_float64("llama")
    z, subject = logits_of(lm), lm._subject
    seen = subject.trace(lm.encode(TEXT), None)
    (best, *others) = z[-1].argsort(descending=True).tolist()
    target, _ = make_target(subject, logit=best, against="rivals")
    settled = target.at(seen, len(z) - 1)
    assert isinstance(settled, LogitTarget)
    assert settled.others == tuple(others[:RIVALS])
    assert target.at(seen, 3).others != settled.others  # type: ignore[attr-defined]
    changed = z[-1:].clone()
    changed[0, others[20]] = 1e3
    right = changed[0, best] - changed[0, others[:RIVALS]].mean()
    assert settled.live(subject, changed).item() == pytest.approx(right.item())
    told = lm.attribute_tokens(TEXT, logit=best, against="rivals").to_dict()["logit"]
    assert [one["id"] for one in told["against"]] == others[:RIVALS]


def test_what_is_measured_is_the_same_target() -> None:
    lm = in_float64("llama")
    for written in ("logit:5 against rivals", "logprob:5", "logit:5+9 against mean"):
        att = lm.attribute_tokens(TEXT, target=written, by="sentence", measure="shapley", measure_seconds=5)
        measured = att.target.measured
        assert sum(v for v in measured.values if v is not None) + measured.baseline == pytest.approx(
            att.pre_activation, rel=1e-5
        )
    heads = lm.attribute_heads(TEXT, target="logit:5 against rivals", effects=True)
    assert heads.completeness_error < 1e-6


def test_every_question_takes_a_target_as_a_text(lm: ds.LM) -> None:
    one, other = (lm.attribute_tokens(TEXT, **how) for how in ({"target": "1/3@5"}, {"feature": "1/3@5"}))
    assert one.to_dict() == other.to_dict()
    for ask in (lm.attribute_heads, lm.attribute_modules, lm.attribute_neurons):
        assert ask(TEXT, target="logprob:5").pre_activation == pytest.approx(
            lm.attribute_tokens(TEXT, logprob=5).pre_activation, rel=1e-4
        )
    several = lm.attribute_tokens_each(TEXT, ["logit:5", "logprob:5", "logit:7 against rivals"])
    assert [len(found.targets) for found in several] == [1, 1, 1]
    held = lm.attribute_tokens_each(TEXT, ["logit:5", "logit:7"], against="mean")
    assert held[1].pre_activation == pytest.approx(
        lm.attribute_tokens(TEXT, target="logit:7 against mean").pre_activation, rel=1e-4
    )
    difference = lm.contrast(TEXT, TEXT[:-7], target="logit:5 against mean")
    assert difference.attribution.to_dict()["logit"]["against"] == "mean"


def test_against_one_token_is_a_difference_of_two() -> None:
    lm = handle()
    one = lm.attribute_tokens(TEXT, target='logit:" Paris" against " Rome"').to_dict()
    assert one == lm.attribute_tokens(TEXT, logit_diff=(" Paris", " Rome")).to_dict()
    assert one == lm.attribute_tokens(TEXT, logit=" Paris", against=" Rome").to_dict()
    assert one == lm.attribute_tokens(TEXT, logit=" Paris", against=[" Rome"]).to_dict()


# ---------------------------------------------------------------------------------------------------------- in writing


@pytest.mark.parametrize(
    ("written", "named", "pos"),
    [
        ('logit:" Paris"', {"logit": " Paris"}, None),
        ("logit: Paris", {"logit": " Paris"}, None),
        ("logit:Paris@3", {"logit": "Paris"}, 3),
        ("logit:5", {"logit": 5}, None),
        ('logit:"5"', {"logit": "5"}, None),
        ('logit:"+"', {"logit": "+"}, None),
        ("logit:C++", {"logit": "C++"}, None),
        ('logit:" against mean"', {"logit": " against mean"}, None),
        ('logit:" Paris"+" France"', {"logit": [" Paris", " France"]}, None),
        ("logit:' Paris' + 7@4", {"logit": [" Paris", 7]}, 4),
        ('logit:" Paris" against mean', {"logit": " Paris", "against": "mean"}, None),
        ('logit:" Paris" against rivals@6', {"logit": " Paris", "against": "rivals"}, 6),
        ('logit:" Paris" against "mean"', {"logit": " Paris", "against": ["mean"]}, None),
        ('logit:" Paris" against " Rome", " London",7', {"logit": " Paris", "against": [" Rome", " London", 7]}, None),
        ("logit:Paris against Rome,London", {"logit": "Paris", "against": ["Rome", "London"]}, None),
        ('logprob:" Paris"+" Rome"@2', {"logprob": [" Paris", " Rome"]}, 2),
        ('logit-diff:" Paris"," Rome"', {"logit_diff": (" Paris", " Rome")}, None),
    ],
)
def test_a_target_is_written_so(written: str, named: dict, pos: int | None) -> None:
    found = WrittenTarget.of(written)
    assert (found.named, found.pos) == (named, pos)


@pytest.mark.parametrize("text", ["", "  ", ",", '" Rome",', '" Rome" " London"', '"'])
def test_what_says_nothing_to_be_held_against_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="a logit is held against mean, rivals, or tokens"):
        written_against(text)


@pytest.mark.parametrize(
    ("question", "why"),
    [
        ({"target": "logprob:5 against mean"}, "a log-probability is held to all tokens already"),
        ({"target": "logit:5+5"}, "stands in the sum twice; name it once"),
        ({"target": "logit:5 against 7,7"}, "named twice"),
        ({"target": f"logit:5 against 7,{VOCAB}"}, f"token id {VOCAB} is not in the vocabulary"),
        ({"target": "logit:5 against mean", "against": "rivals"}, "says itself what it is held against"),
        ({"target": "1/3", "against": "mean"}, "against says what a logit is held to"),
        ({"target": "logit:5", "logit": 5}, "target says what is asked for, and logit something else"),
        ({"target": "logit:5@3", "pos": 4}, "names position 3, and pos is 4"),
        ({"logit_diff": (5, 7), "against": "mean"}, "it goes with a logit alone"),
        ({"logprob": 5, "against": "mean"}, "it goes with a logit alone"),
        ({"logit": 5, "against": []}, "name the tokens that the logit is held against"),
        ({"logit": 5, "against": 5.5}, "against should be"),
        ({"logit": 5, "logprob": 7}, "ask for one target"),
        ({"target": "logit:5 against"}, r"is \d tokens"),
    ],
)
def test_what_makes_no_target_is_refused(lm: ds.LM, question: dict, why: str) -> None:
    with pytest.raises(UserError, match=why):
        lm.attribute_tokens(TEXT, **question)


def test_names_say_what_is_read() -> None:
    assert logit_name([" A"], None) == "logit ' A'"
    assert logit_name([" A", 7], "mean") == "logits ' A' + 7 against the vocabulary's mean"
    assert logit_name([" A"], "rivals") == "logit ' A' against its rivals"
    assert logit_name([" A"], [" B"]) == "logit difference ' A' − ' B'"
    assert logit_name([" A"], [" B", 5]) == "logit ' A' against ' B', 5"
    assert logit_name([" A"], "softmax") == "log-probability ' A'"
    assert listed([" A"]) == "␣A"
    assert listed([" A", "B"]) == "the mean of ␣A, B"
    assert listed([" A"] * 9) == "the mean of 9 tokens (␣A, ␣A, ␣A, …)"


def test_a_token_without_its_space_is_told_of_wherever_it_stands() -> None:
    lm = ds.load(handle().model, tokenizer())
    target, _ = make_target(lm._subject, logit=" Paris", against=["Rome"])
    assert isinstance(target, LogitTarget)
    assert [twin.text for twin in target.twins] == ["Rome"]
