"""A subspace's part and all the rest, carried on apart, and what is measured of them."""

from statistics import mean

import numpy as np
import pytest
import torch

from depass_sae.evaluation.paper import languages
from depass_sae.evaluation.paper.languages import Found, Part
from depass_sae.evaluation.paper.translated import LANGUAGES, translated

from ...attribution.tiny import handle, model

RNG = np.random.default_rng(0)
TEXTS = tuple(one for one in translated() if one.meaning[0] < 6)


def test_the_two_parts_are_what_the_model_computed_and_votes_are_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(languages, "LAYER", 1)
    lm, texts = handle(), ["In economics, supply", "the price of demand"]
    basis = RNG.normal(size=(3, model().config.hidden_size))
    (inside, votes), (off, others) = languages._carried(lm, texts, basis, None)
    for i, text in enumerate(texts):
        ids = torch.tensor([lm.encode(text).token_ids])
        with torch.no_grad():
            logits = lm.model(ids).logits[0, -1].double().numpy()
            whole = lm.model.model(ids, output_hidden_states=True)
        assert whole.last_hidden_state.shape[-1] == inside.shape[1]
        total = votes[i] + others[i]
        assert np.allclose(total, logits - logits.mean(), atol=1e-4)
        assert np.abs(inside[i]).max() > 0 < np.abs(off[i]).max()


def planted(by: str) -> Part:
    """Knows the language alone, or the meaning alone."""
    keys = sorted({getattr(one, by) for one in TEXTS})
    states = np.stack([np.eye(len(keys))[keys.index(getattr(one, by))] for one in TEXTS])
    votes = np.zeros((len(TEXTS), 40 * len(keys)))
    for i, one in enumerate(TEXTS):
        start = 40 * keys.index(getattr(one, by))
        votes[i, start : start + languages.VOTES] = 1
    return Part(by, states, votes)


@pytest.mark.parametrize("by", ["language", "meaning"])
def test_what_a_part_knows_alone_is_found_and_the_other_is_not(by: str) -> None:
    records = languages.measured(Found(TEXTS, (1.0,), 0.25, (planted(by),)))
    own = [one for one in records if one["part"] == by]
    assert len(own) == len(TEXTS)
    other = "meaning" if by == "language" else "language"
    assert mean(one[by] for one in own) == 1
    assert mean(one[other] for one in own) < 0.5
    assert mean(one[f"votes of the {by}"] for one in own) == 1
    assert mean(one[f"votes of the {other}"] for one in own) == 0


def test_contrast_takes_the_mean_off() -> None:
    part = planted("language")
    other = part.contrasted()
    assert np.allclose(other.states.mean(0), 0)
    assert np.allclose(part.votes - other.votes, part.votes.mean(0))


def test_the_picture_is_a_png_of_every_language() -> None:
    pytest.importorskip("sklearn")
    found = Found(TEXTS, (1.0,), 0.25, (planted("language"),))
    noise = Part("x", RNG.normal(size=(len(TEXTS), 8)), planted("language").votes)
    assert languages.picture(found, noise).startswith(b"\x89PNG")
    assert len({one.language for one in TEXTS}) == len(LANGUAGES)
