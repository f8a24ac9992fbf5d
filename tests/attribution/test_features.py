"""Which features fire: against sae-lens's own encode, position by position."""

import html
import json
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import depass_sae as ds
from depass_sae.errors import SAEFitWarning, UserError
from depass_sae.saes import fit

from .tiny import (
    BOS,
    D_MODEL,
    EOS,
    SINK,
    TEXT,
    VOCAB,
    activation,
    fitting_sae,
    handle,
    random_sae,
    sinking,
    tokenizer,
)  # fmt: skip

HOOKS = ("0.resid_pre", "1.attn_out", "1.resid_post", "2.mlp_out")


@pytest.fixture(scope="module")
def several() -> ds.LM:
    """SAEs on four hooks, two of them on layer 1, given in no order."""
    kinds = dict(zip(reversed(HOOKS), ("topk", "gated", "standard", "jumprelu"), strict=True))
    return handle([random_sae(kind, hook) for hook, kind in kinds.items()])


@given(ids=st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=8), bos=st.booleans())
@settings(max_examples=30)
def test_every_active_feature_is_listed_strongest_first(ids: list[int], bos: bool) -> None:
    ids = [BOS, *ids] if bos else ids
    for kind in ("jumprelu", "topk", "abstopk"):
        lm = handle(random_sae(kind))
        acts = lm.saes[1].encode(activation(lm.model, torch.tensor([ids]), "1.resid_post")[0])
        (layer,) = lm.features(ids).to_dict()["layers"]
        assert [at["pos"] for at in layer["positions"]] == list(range(len(ids)))
        for at, row in zip(layer["positions"], acts, strict=True):
            found = {entry["index"]: entry["activation"] for entry in at["features"]}
            if bos and at["pos"] == 0:
                assert found == {}
                continue
            assert set(found) == set(row.nonzero()[:, 0].tolist())
            assert list(found.values()) == pytest.approx([row[i].item() for i in found], rel=1e-4, abs=1e-4)
            strengths = [abs(value) for value in found.values()]
            assert strengths == sorted(strengths, reverse=True)


def test_position_0_has_features_unless_it_is_a_special_token(lm: ds.LM) -> None:
    def first(ids: list[int]) -> tuple:
        return lm.features(ids).layers[0].positions[0].indices

    assert first([BOS, 80]) == ()
    assert first([EOS, 80]) == ()
    assert first([80, 90]) != ()


def test_a_sink_that_is_no_special_token_is_listed_with_its_features() -> None:
    lm = ds.load(sinking(), tokenizer(adds_bos=False), saes=random_sae())
    ids = [SINK, 90, 70, SINK, 60]
    acts = lm.saes[1].encode(activation(lm.model, torch.tensor([ids]), "1.resid_post")[0])
    (layer,) = lm.features(ids).layers
    for pos in (0, 3):
        assert set(layer.positions[pos].indices) == set(acts[pos].nonzero()[:, 0].tolist()) != set()
    expected = fit(lm.saes[1], activation(lm.model, torch.tensor([ids]), "1.resid_post")[0])
    assert layer.fit.explained_variance == pytest.approx(expected.explained_variance)
    assert layer.fit.l0 == expected.l0


def test_layers_ascend_whatever_order_the_saes_came_in(several: ds.LM) -> None:
    report = several.features(TEXT)
    assert [str(layer.hook) for layer in report.layers] == list(HOOKS)
    assert [(entry["layer"], entry["hook"]) for entry in report.to_dict()["layers"]] == [
        (int(hook[0]), hook[2:]) for hook in HOOKS
    ]


def test_features_are_named_by_layer_and_by_hook_only_where_saes_share_a_layer(several: ds.LM) -> None:
    report = several.features(TEXT)
    assert [layer.name for layer in report.layers] == ["0", "1.attn_out", "1.resid_post", "2"]
    named = set(report.to_frame()["feature"].str.partition("/")[0])
    assert named == {"0", "1.attn_out", "1.resid_post", "2"}
    alone = several.features(TEXT, layer=1)
    assert [layer.name for layer in alone.layers] == ["1.attn_out", "1.resid_post"]


def test_every_name_in_the_report_can_be_asked_for(several: ds.LM) -> None:
    for layer in several.features(TEXT).layers:
        at = layer.positions[5]
        for index, value in list(zip(at.indices, at.activations, strict=True))[:2]:
            att = several.attribute_tokens(TEXT, f"{layer.name}/{index}@5")
            assert att.activation == pytest.approx(value, rel=1e-4)
            assert att.to_dict()["feature"] == {"layer": layer.hook.layer, "index": index, "hook": layer.hook.name}


def test_a_feature_of_a_shared_layer_must_say_which_hook(several: ds.LM) -> None:
    with pytest.raises(UserError, match=r"write the feature as 1.attn_out/INDEX or 1.resid_post/INDEX"):
        several.attribute_tokens(TEXT, "1/3")


def test_one_layer_can_be_picked(several: ds.LM) -> None:
    assert [str(layer.hook) for layer in several.features(TEXT, layer=2).layers] == ["2.mlp_out"]
    whole = several.features(TEXT)
    assert several.features(TEXT, layer=0).to_dict()["layers"] == whole.to_dict()["layers"][:1]


def test_a_layer_without_an_sae_is_refused(several: ds.LM) -> None:
    with pytest.raises(UserError, match=r"no SAE at 7; there are SAEs at 0.resid_pre, 1.attn_out"):
        several.features(TEXT, layer=7)
    with pytest.raises(UserError, match="no SAEs are loaded"):
        handle().features(TEXT)


def test_explained_variance_and_l0_leave_position_0_out(several: ds.LM) -> None:
    for ids in ([BOS, 80, 90, 17, 33], [80, 90, 17, 33]):
        for layer in several.features(ids).layers:
            sae = next(sae for key, sae in several.saes.items() if str(key) == layer.name)
            x = activation(several.model, torch.tensor([ids]), str(layer.hook))[0, 1:]
            acts = sae.encode(x)
            missed = (x - sae.decode(acts)).square().sum()
            explained = 1 - missed / (x - x.mean(0)).square().sum()
            assert layer.fit.explained_variance == pytest.approx(explained.item(), rel=1e-4)
            assert layer.fit.l0 == pytest.approx((acts != 0).sum(-1).double().mean().item())


def test_an_sae_that_fits_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (layer,) = handle(fitting_sae()).features(TEXT).layers
    assert layer.fit.explained_variance == pytest.approx(1)
    assert layer.fit.l0 == D_MODEL
    assert layer.fit.warning is None


def test_an_sae_that_does_not_fit_is_warned_of_by_its_hook() -> None:
    lm = handle([fitting_sae("1.resid_post"), random_sae(hook="2.mlp_out")])
    with pytest.warns(SAEFitWarning, match=r"^2.mlp_out: The SAE explains") as caught:
        report = lm.features(TEXT)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert "another model" in " ".join(str(report).split())
    assert "another model" in report._repr_html_()


def test_a_transcoder_has_features_and_no_explained_variance() -> None:
    report = handle(random_sae("jumprelu_skip_transcoder", "1.mlp_in")).features(TEXT)
    (layer,) = report.to_dict()["layers"]
    assert layer["explained_variance"] is None
    assert layer["l0"] > 0
    assert "of the variance" not in report.table()


def test_the_document_has_the_keys_that_it_promises(several: ds.LM) -> None:
    document = several.features(TEXT).to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert next(iter(document)) == "schema_version"
    assert set(document) >= {"schema_version", "model", "prompt", "tokens", "token_ids", "dtype", "layers"}
    for layer in document["layers"]:
        assert set(layer) >= {"layer", "hook", "explained_variance", "l0", "positions"}
        for at in layer["positions"]:
            assert set(at) >= {"pos", "token", "features"}
            assert at["token"] == document["tokens"][at["pos"]]
            assert all(set(entry) == {"index", "activation"} for entry in at["features"])


def test_the_frame_has_a_row_for_every_active_feature(several: ds.LM) -> None:
    report = several.features(TEXT)
    frame = report.to_frame()
    named = ["layer", "hook", "pos", "token", "feature", "index", "activation", "above_usual", "always_on"]
    assert list(frame.columns) == named
    assert len(frame) == sum(len(at.indices) for layer in report.layers for at in layer.positions)


def test_tables_show_the_strongest_and_count_the_others(lm: ds.LM) -> None:
    report = lm.features(TEXT)
    at = report.layers[0].positions[4]
    always = report.layers[0].always_on
    shown = "  ".join(
        f"1/{i}{'*' if i in always else ''} {a:.2f}" for i, a in list(zip(at.indices, at.activations, strict=True))[:2]
    )
    line = next(line for line in report.table(top=2).splitlines() if "supply (4)" in line)
    assert shown in line
    assert f"+{len(at.indices) - 2}" in line
    page = report.plot(top=2)
    assert f"{at.activations[1]!r}" in page
    assert f"{at.activations[2]!r}" not in page


def test_a_prompt_of_one_token_is_reported(lm: ds.LM) -> None:
    for ids in ([BOS], [80]):
        (layer,) = lm.features(ids).to_dict()["layers"]
        assert layer["explained_variance"] is None
        assert layer["l0"] == 0


# ------------------------------------------------------------------------------------------ what is specific to a place


@pytest.mark.parametrize("kind", ["jumprelu", "abstopk"])
def test_specific_is_the_size_of_the_activation_above_its_mean_over_the_prompt(kind: str) -> None:
    lm = ds.load(sinking(), tokenizer(adds_bos=False), saes=random_sae(kind))
    ids = [BOS, 90, 70, SINK, 60, 61, EOS, 62]
    acts = lm.saes[1].encode(activation(lm.model, torch.tensor([ids]), "1.resid_post")[0]).abs()
    above = acts - acts[[1, 2, 4, 5, 7]].mean(0)  # without position 0, the sink and the special token
    report = lm.features(ids, sort="specific")
    frame = report.to_frame()
    for row in frame.itertuples():
        assert row.above_usual == pytest.approx(above[row.pos, row.index].item(), abs=1e-3 * acts[row.pos].max().item())
    for at in report.layers[0].positions:
        values = frame[frame.pos == at.pos].above_usual.tolist()
        assert values == sorted(values, reverse=True)
    plain = lm.features(ids)
    for at, other in zip(report.layers[0].positions, plain.layers[0].positions, strict=True):
        assert dict(zip(at.indices, at.activations, strict=True)) == dict(
            zip(other.indices, other.activations, strict=True)
        )
    assert [document.to_dict()["sort"] for document in (report, plain)] == ["specific", "activation"]


def test_features_that_fire_nearly_everywhere_are_marked(lm: ds.LM) -> None:
    ids = [BOS, *range(20, 30)]
    acts = lm.saes[1].encode(activation(lm.model, torch.tensor([ids]), "1.resid_post")[0])[1:]
    expected = (acts.ne(0).float().mean(0) >= 0.9).nonzero()[:, 0].tolist()
    assert expected
    report = lm.features(ids)
    assert report.to_dict()["layers"][0]["always_on"] == expected
    always = report.to_frame()
    assert set(always[always.always_on]["index"]) == set(expected)
    table, page = str(report.table(top=40)), report.plot(top=40)
    for index in range(acts.shape[1]):
        if acts[:, index].any():
            for text in (table, page):
                assert (f"1/{index}*" in text) == (index in expected)
    for text in (table, page):
        assert "* fires at nearly every position" in " ".join(text.split())


def test_a_short_prompt_has_no_feature_that_is_always_on(lm: ds.LM) -> None:
    (layer,) = lm.features([BOS, *range(20, 27)]).to_dict()["layers"]  # 7 positions that count
    assert layer["always_on"] == []


def test_tables_say_what_they_are_sorted_by_and_an_order_that_is_none_is_refused(lm: ds.LM) -> None:
    assert "strongest features" in lm.features(TEXT).table()
    report = lm.features(TEXT, sort="specific")
    for text in (report.table(), report.plot()):
        assert "most above their usual activation" in text
        assert "a feature's mean over the prompt's positions" in html.unescape(" ".join(text.split()))
    with pytest.raises(UserError, match="sorted by activation or specific, not by 'size'"):
        lm.features(TEXT, sort="size")  # type: ignore[arg-type]
