"""Raw parts at any point."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.models.place import HOOKS
from depass_sae.passes.rules import RULES

from ..passes.models import EVERY
from .tiny import TEXT, VOCAB, activation, handle, model, width

IDS = [0, 17, 5, 33, 5, 40]


@given(
    shape=st.sampled_from(EVERY), rule=st.sampled_from(sorted(RULES)), read=st.sampled_from(HOOKS),
    start=st.integers(0, 2), data=st.data(), source=st.sampled_from(["tokens", "words"]),
    ids=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=7),
)  # fmt: skip
@settings(max_examples=80)
def test_the_parts_sum_to_what_the_model_computed(
    shape: str, rule: str, read: str, start: int, data: st.DataObject, source: str, ids: list[int]
) -> None:
    layer = data.draw(st.integers(start, 2))
    dec = handle(shape=shape).decompose(ids, source, layer=layer, read=read, start=start, rule=rule)
    whole = activation(model(shape), torch.tensor([ids]), f"{layer}.{read}")[0]
    assert torch.allclose(dec.whole, whole, rtol=1e-4, atol=1e-4)
    assert dec.parts.shape == (len(ids), len(dec.labels), width(shape, read))
    assert dec.present.shape == dec.parts.shape[:2]
    assert not dec.parts[~dec.present].any()
    assert dec.completeness_error <= 1e-4
    assert (dec.parts.sum(1) - whole).abs().max() <= 1e-4 * max(dec.parts.abs().max(), whole.abs().max())


def test_tokens_are_labelled_with_their_texts_in_order(lm: ds.LM) -> None:
    dec = lm.decompose("supply and demand", layer=2)
    assert dec.labels == ("<bos>", "supply", " and", " demand", "bias", "rest")
    assert torch.equal(dec.present[:, :4], torch.ones(4, 4, dtype=torch.bool).tril())


def test_words_are_labelled_with_their_sub_tokens_joined(lm: ds.LM) -> None:
    dec = lm.decompose("a marked apple", "words", layer=2)
    assert dec.labels == ("<bos>", "a", " marked", " apple", "bias", "rest")


def test_a_decomposition_that_starts_at_a_layer_splits_the_stream_there(lm: ds.LM) -> None:
    dec = lm.decompose(IDS, start=2, layer=2, read="resid_pre")
    assert torch.equal(dec.parts[torch.arange(6), torch.arange(6)], dec.whole)
    assert torch.equal(dec.present[:, :6], torch.eye(6, dtype=torch.bool))
    assert torch.allclose(dec.whole, activation(lm.model, torch.tensor([IDS]), "2.resid_pre")[0], atol=1e-5)


def test_a_feature_is_attributed_through_the_same_parts(lm: ds.LM) -> None:
    att = lm.attribute_tokens(IDS, direction=torch.linspace(-1, 1, 32), layer=1, hook="resid_mid", pos=4)
    dec = lm.decompose(IDS, layer=1, read="resid_mid", rule="half")
    read = dec.parts[4] @ torch.linspace(-1, 1, 32)
    assert torch.allclose(read[:5], att.contributions.float(), atol=1e-4)
    assert read[-2].item() == pytest.approx(att.other["bias"], abs=1e-4)


@pytest.mark.parametrize("at", [(0, "resid_pre"), (0, "resid_mid"), (1, "resid_pre"), (0, "resid_post")])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_any_vectors_are_carried_and_what_they_leave_over_is_rest(lm: ds.LM, at: tuple[int, str], rule: str) -> None:
    parts = torch.randn(6, 2, 32, generator=torch.Generator().manual_seed(0))
    dec = lm.decompose(IDS, ds.Vectors(parts, ["first", "second"], at), layer=2, rule=rule)
    assert dec.labels == ("first", "second", *RULES[rule].aside)
    assert dec.present[:, -1].all()
    assert dec.completeness_error <= 1e-4


def test_vectors_that_are_the_whole_stream_leave_no_rest(lm: ds.LM) -> None:
    x = activation(lm.model, torch.tensor([IDS]), "1.resid_pre")[0]
    dec = lm.decompose(IDS, ds.Vectors(torch.stack([x / 4, 3 * x / 4], 1), ["a", "b"], (1, "resid_pre")), layer=2)
    assert not dec.present[:, -1].any()


def test_spans_are_a_source_and_positions_in_none_are_rest(lm: ds.LM) -> None:
    dec = lm.decompose(IDS, ds.Spans([[1, 3], [2]], ["odd", "two"]), layer=2, rule="linear")
    each = lm.decompose(IDS, layer=2, rule="linear")
    assert dec.labels == ("odd", "two", "bias", "rest")
    assert torch.allclose(dec.parts[:, 0], each.parts[:, [1, 3]].sum(1), atol=1e-4)
    assert torch.allclose(dec.parts[:, -1], each.parts[:, [0, 4, 5]].sum(1), atol=1e-4)


def test_how_much_memory_there_is_changes_nothing(lm: ds.LM) -> None:
    whole = lm.decompose(TEXT, layer=2)
    small = lm.decompose(TEXT, layer=2, memory=1000)
    assert torch.allclose(whole.parts, small.parts, atol=1e-5)


def test_its_repr_says_what_it_is(lm: ds.LM) -> None:
    text = repr(lm.decompose(IDS, layer=1, read="hook_z"))
    assert text.startswith("Decomposition(hook_z of layer 1: 6 positions x 8 components x 32, completeness error ")


@pytest.mark.parametrize(
    ("question", "why"),
    [
        ({"layer": 3}, "there is no layer 3; .* has layers 0 to 2"),
        ({"layer": -1}, "there is no layer -1"),
        ({"layer": 2, "start": 3}, "there is no layer 3"),
        ({"layer": 1, "start": 2, "read": "resid_mid"}, "lies before the decomposition's start"),
        ({"layer": 1, "read": "resid_up"}, "'resid_up' is not a hook"),
        ({"layer": 1, "source": "letters"}, "unknown source 'letters'; choose tokens, words, sentences"),
        ({"layer": 1, "rule": "nonsense"}, "unknown rule"),
        ({"layer": 1, "source": ds.Vectors(torch.ones(6, 1, 8), ["a"], (0, "resid_pre"))}, r"\[6, 1, 8\], expected"),
        ({"layer": 1, "source": ds.Vectors(torch.ones(5, 1, 32), ["a"], (0, "resid_pre"))}, r"shape \[5, 1, 32\]"),
        ({"layer": 1, "source": ds.Vectors(torch.ones(6, 1, 32), ["a"], (0, "mlp_out"))}, "on the residual stream"),
        ({"layer": 0, "source": ds.Vectors(torch.ones(6, 1, 32), ["a"], (1, "resid_mid"))}, "before"),
        ({"layer": 0, "source": ds.Vectors(torch.ones(6, 1, 32), ["a"], (9, "resid_post"))}, "layer 9"),
        ({"layer": 0, "source": ds.Spans([[1]], ["a"], layer=2)}, "before"),
        ({"layer": 0, "source": ds.Spans([[1]], ["a"], layer=9)}, "layer 9"),
        ({"layer": 1, "source": ds.Spans([[1], [1, 2]], ["a", "b"])}, "spans must not overlap"),
        ({"layer": 1, "source": ds.Spans([[6]], ["a"])}, "outside the prompt"),
    ],
)  # fmt: skip
def test_what_cannot_be_decomposed_is_refused(lm: ds.LM, question: dict, why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        lm.decompose(IDS, **question)
    assert "\n" not in str(caught.value)
