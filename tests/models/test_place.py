"""Places: pairs that compare as a model computes them."""

import random
from itertools import pairwise

from depass_sae.models.place import HOOKS, Place


def test_places_are_ordered_as_a_model_computes_them_and_equal_plain_pairs() -> None:
    places = [Place(layer, hook) for layer in (0, 1, 10) for hook in HOOKS]
    mixed = random.Random(0).sample(places, len(places))
    assert sorted(mixed) == places
    assert [max(mixed), min(mixed)] == [places[-1], places[0]]
    for one, other in pairwise(places):
        assert one < other
        assert one <= other
        assert other > one
        assert other >= tuple(one)
    assert places[3] == (0, "resid_mid")
    assert {places[3]: 1}[0, "resid_mid"] == 1  # type: ignore[index]


def test_the_stream_behind_a_layer_is_the_stream_before_the_next() -> None:
    behind, before = Place(3, "resid_post"), Place(4, "resid_pre")
    assert behind != before
    assert behind.depth == before.depth == before.as_post.depth
    assert before.as_post == behind
    assert Place(0, "resid_pre").as_post == Place(0, "resid_pre")
