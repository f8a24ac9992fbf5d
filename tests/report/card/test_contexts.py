"""Cards on Neuronpedia's own contexts of a feature: what drives it there, and where it is not here what it is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.report.card.card import FeatureCard

from ...attribution.tiny import TEXT, fitting_sae, handle
from ...labels.test_contexts import PAGE, answered
from ...labels.test_neuronpedia import SAE, Neuronpedia, server  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
INDEX = 3


@pytest.fixture
def lm(server: Neuronpedia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ds.LM:  # noqa: F811
    monkeypatch.setattr("depass_sae.labels.neuronpedia.SITE", server.url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sae = fitting_sae()
    sae.cfg.metadata.neuronpedia_id = SAE
    return handle([sae])


def feature_of(lm: ds.LM) -> str:
    (hook,) = lm.saes
    return f"{hook}/{INDEX}"


def page_of(card: FeatureCard, *changed: float) -> dict[str, Any]:
    """What Neuronpedia would have of the card's only prompt; changed: what is added to each activation from the end."""
    (read,) = card.prompts
    values = [value or 0.0 for value in read.activations]
    for i, more in enumerate(changed, start=1):
        values[-i] += more
    return PAGE | {"activations": [{"tokens": list(read.prompt.tokens), "values": values}]}


def test_contexts_and_labels_are_kept_where_that_is_said(lm: ds.LM, server: Neuronpedia, tmp_path: Path) -> None:  # noqa: F811
    server.answer(INDEX, answered(page_of(lm.card(feature_of(lm), TEXT))))
    kept = tmp_path / "kept"
    lm.card(feature_of(lm), contexts="neuronpedia", cache_dir=str(kept))
    assert [path.name for path in kept.rglob("*.json")] == [f"{INDEX}.contexts.json"]
    with pytest.raises(UserError, match="an empty name is no path"):
        lm.card(feature_of(lm), contexts="neuronpedia", cache_dir="")


def test_a_features_own_contexts_become_the_prompts(lm: ds.LM, server: Neuronpedia) -> None:  # noqa: F811
    known = lm.card(feature_of(lm), TEXT)
    assert known.public is None
    assert "public" not in known.to_dict()
    server.answer(INDEX, answered(page_of(known)))
    card = lm.card(feature_of(lm), contexts="neuronpedia")
    assert [read.prompt.token_ids for read in card.prompts] == [known.prompts[0].prompt.token_ids]
    assert card.drives == known.drives
    assert card.public is not None
    (compared,) = card.public.compared
    assert compared.differs == pytest.approx(0, abs=1e-6)
    text = str(card.table())
    assert "What Neuronpedia has" in text
    assert "differ from" not in text
    assert "1 % of all tokens" in text
    assert "␣plus" in text
    assert "What Neuronpedia has" in card.to_html()


def test_activations_that_are_others_than_here_are_said(
    lm: ds.LM,
    server: Neuronpedia,  # noqa: F811
    tmp_path: Path,
) -> None:
    known = lm.card(feature_of(lm), TEXT)
    largest = max(value or 0.0 for value in known.prompts[0].activations)
    for share, is_said in ((0.04, False), (0.2, True)):
        server.answer(INDEX, answered(page_of(known, -share * largest)))
        for kept in tmp_path.rglob("*.contexts.json"):
            kept.unlink()
        card = lm.card(feature_of(lm), contexts="neuronpedia")
        assert card.public is not None
        (compared,) = card.public.compared
        assert compared.pos == len(known.prompts[0].activations) - 1
        assert compared.differs == pytest.approx(share, rel=0.3)
        assert ("differ from" in str(card.table())) == is_said


def test_other_tokens_are_not_compared(lm: ds.LM, server: Neuronpedia) -> None:  # noqa: F811
    server.answer(
        INDEX, answered(PAGE | {"activations": [{"tokens": ["the pri", "ce of ", "supply"], "values": [0, 1, 2]}]})
    )
    card = lm.card(feature_of(lm), contexts="neuronpedia")
    assert card.public is not None
    assert [one.differs for one in card.public.compared] == [None]
    assert "Not compared" in str(card.table())


def test_with_texts_of_ones_own_they_are_shown_beside_and_trouble_is_a_warning(
    lm: ds.LM,
    server: Neuronpedia,  # noqa: F811
) -> None:
    with pytest.warns(UserWarning, match="has no feature"):
        assert lm.card(feature_of(lm), TEXT, contexts="neuronpedia").public is None
    server.answer(INDEX, answered())
    card = lm.card(feature_of(lm), TEXT, contexts="neuronpedia")
    assert card.public is not None
    assert card.public.compared == ()
    assert len(card.prompts) == 1


def test_what_cannot_be_is_refused(lm: ds.LM, server: Neuronpedia) -> None:  # noqa: F811
    with pytest.raises(UserError, match="needs a prompt"):
        lm.card(feature_of(lm))
    with pytest.raises(UserError, match="come from neuronpedia"):
        lm.card(feature_of(lm), contexts="elsewhere")
    with pytest.raises(UserError, match="has no feature"):
        lm.card(feature_of(lm), contexts="neuronpedia")
    server.answer(INDEX, answered({"activations": []}))
    with pytest.raises(UserError, match="no contexts"):
        lm.card(feature_of(lm), contexts="neuronpedia")
    with pytest.raises(UserError, match="does not say where"):
        handle([fitting_sae()]).card("1/3", contexts="neuronpedia")


def test_hostile_texts_are_shown_as_texts(lm: ds.LM, server: Neuronpedia) -> None:  # noqa: F811
    hostile = ["<script>alert(1)</script>", "\u202e\x1b[31m"]
    page = PAGE | {"activations": [{"tokens": hostile, "values": [1, 2]}], "pos_str": hostile, "pos_values": [1, 2]}
    server.answer(INDEX, answered(page))
    card = lm.card(feature_of(lm), TEXT, contexts="neuronpedia")
    assert "<script>alert" not in card.to_html()
    for text in (card.to_html(), str(card.table())):
        assert "\x1b" not in text
        assert "\u202e" not in text
