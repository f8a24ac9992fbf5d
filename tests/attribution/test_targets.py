"""What is asked for, and at which position it is looked at."""

from typing import Any

import numpy as np
import pytest
import torch

import depass_sae as ds
from depass_sae.errors import UserError

from .tiny import BOS, D_SAE, EOS, SINK, TEXT, VOCAB, activation, handle, random_sae, sinking, tokenizer

SILENT = 7
"""A feature that fires nowhere."""


@pytest.fixture(scope="module")
def silenced() -> ds.LM:
    sae = random_sae()
    sae.threshold.data[SILENT] = 1e4
    return handle(sae)


def activations(lm: ds.LM, prompt: str) -> torch.Tensor:
    ids = torch.tensor([lm.tokenizer(prompt)["input_ids"]])
    return lm.saes[1].encode(activation(lm.model, ids, "1.resid_post")[0])


# ----------------------------------------------------------------------------------------------------------- positions


def test_the_default_position_is_where_the_feature_is_strongest_among_ordinary_tokens(lm: ds.LM) -> None:
    acts = activations(lm, TEXT)
    acts[0] = 0
    for feature in range(D_SAE):
        if acts[:, feature].any():
            for pos in (None, "max"):
                att = lm.attribute_tokens(TEXT, f"1/{feature}", pos=pos)
                assert att.target.pos == acts[:, feature].argmax()
                assert att.note is None


def test_all_is_wherever_the_feature_fires_in_order(lm: ds.LM) -> None:
    acts = activations(lm, TEXT)
    for feature in range(D_SAE):
        firing = [p for p in range(1, len(acts)) if acts[p, feature] > 0]
        if firing:
            att = lm.attribute_tokens(TEXT, f"1/{feature}", pos="all")
            assert [target.pos for target in att.targets] == firing


def test_special_tokens_are_no_targets_wherever_they_stand(lm: ds.LM) -> None:
    ids = [BOS, 80, 90, EOS, 70, EOS]
    for feature in range(D_SAE):
        positions = [target.pos for target in lm.attribute_tokens(ids, f"1/{feature}", pos="all").targets]
        assert set(positions) <= {1, 2, 4}
    every = lm.attribute_tokens(ids, direction=torch.ones(32), layer=1, pos="all")
    assert [target.pos for target in every.targets] == [1, 2, 4]


def test_where_nothing_fires_the_largest_pre_activation_is_shown_and_a_note_says_so(silenced: ds.LM) -> None:
    shown = [silenced.attribute_tokens(TEXT, f"1/{SILENT}", pos=pos) for pos in (None, "max", "all")]
    pre = [silenced.attribute_tokens(TEXT, f"1/{SILENT}", pos=pos).pre_activation for pos in range(1, 23)]
    for att in shown:
        assert len(att.targets) == 1
        assert att.activation == 0
        assert att.target.margin < 0
        assert att.target.pos == 1 + max(range(len(pre)), key=pre.__getitem__)
        assert (
            f"fires nowhere on this prompt; shown is its largest pre-activation, at position {att.target.pos}"
            in att.note
        )
        assert att.to_dict()["note"] == att.note
        assert "fires nowhere" in " ".join(str(att.table()).split())
        assert "fires nowhere" in att._repr_html_()


def test_a_position_may_be_named_and_need_not_fire(silenced: ds.LM) -> None:
    att = silenced.attribute_tokens(TEXT, f"1/{SILENT}", pos=4)
    assert (att.target.pos, att.activation, att.note) == (4, 0, None)


def test_a_feature_can_carry_its_position(lm: ds.LM) -> None:
    at, pos = lm.attribute_tokens(TEXT, "1/3@5"), lm.attribute_tokens(TEXT, "1/3", pos=5)
    assert at.to_dict() == pos.to_dict()
    assert lm.attribute_tokens(TEXT, "1/3@5", pos=5).to_dict() == pos.to_dict()
    with pytest.raises(UserError, match="names position 5, and pos is 6; give one of them"):
        lm.attribute_tokens(TEXT, "1/3@5", pos=6)


def test_a_logit_is_read_at_the_last_position_unless_another_is_named(lm: ds.LM) -> None:
    last = len(tokenizer()(TEXT)["input_ids"]) - 1
    for question in ({"logit": 5}, {"logit_diff": (5, 6)}):
        assert lm.attribute_tokens(TEXT, **question).target.pos == last
        assert lm.attribute_tokens(TEXT, **question, pos=2).target.pos == 2
        assert lm.attribute_tokens(TEXT, **question, pos=0).target.pos == 0
        assert len(lm.attribute_tokens(TEXT, **question, pos="all").targets) == last


def test_the_largest_value_of_a_logit_can_be_asked_for(lm: ds.LM) -> None:
    every = lm.attribute_tokens(TEXT, logit=5, pos="all")
    largest = lm.attribute_tokens(TEXT, logit=5, pos="max")
    assert largest.target.pos == every.target.pos
    assert largest.pre_activation == max(target.pre_activation for target in every.targets)


def test_a_feature_is_not_looked_at_on_a_special_token_that_opens_the_prompt(lm: ds.LM) -> None:
    for feature, pos in (("1/3", 0), ("1/3@0", None)):
        with pytest.raises(UserError, match="position 0 is the special token '<bos>', where features mean nothing"):
            lm.attribute_tokens(TEXT, feature, pos=pos)
    assert lm.attribute_tokens([17, 18], "1/3", pos=0).target.pos == 0


@pytest.mark.parametrize("pos", [23, -1, 10**9])
def test_a_position_outside_the_prompt_is_refused(lm: ds.LM, pos: int) -> None:
    with pytest.raises(UserError, match="is outside the prompt; its 23 tokens have positions 0 to 22"):
        lm.attribute_tokens(TEXT, "1/3", pos=pos)


@pytest.mark.parametrize("pos", ["last", "3", 3.0, [3]])
def test_what_is_no_position_is_refused(lm: ds.LM, pos: Any) -> None:
    with pytest.raises(
        UserError, match=r'is neither max nor all nor a number|pos should be "max", "all" or a position'
    ):
        lm.attribute_tokens(TEXT, "1/3", pos=pos)


def test_numbers_of_numpy_and_torch_are_positions_and_ids_too(lm: ds.LM) -> None:
    for three in (np.int64(3), torch.tensor(3)):
        assert lm.attribute_tokens(TEXT, "1/3", pos=three).target.pos == 3
        assert lm.attribute_tokens(TEXT, logit=three).to_dict()["logit"]["id"] == 3
        assert lm.attribute_tokens(TEXT, logit_diff=(three, 4)).to_dict()["logit"]["id"] == 3


def test_a_prompt_of_special_tokens_alone_has_no_features(lm: ds.LM) -> None:
    with pytest.raises(UserError, match="special tokens only"):
        lm.attribute_tokens([BOS, EOS], "1/3")


# ------------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    "text", ["", "3", "1/", "/3", "1/x", "one/3", "1/3@", "1/3@x", "1/3@-1", "-1/3", "1/3/4", "1:3"]
)
def test_a_feature_that_is_not_layer_and_index_is_refused(lm: ds.LM, text: Any) -> None:
    with pytest.raises(UserError, match="is no feature; write LAYER/INDEX, for example 17/1208"):
        lm.attribute_tokens(TEXT, text)


def test_a_feature_may_name_its_hook(lm: ds.LM) -> None:
    assert lm.attribute_tokens(TEXT, "1.resid_post/3").to_dict() == lm.attribute_tokens(TEXT, " 1/3 ").to_dict()
    with pytest.raises(UserError, match=r"no SAE at 1.attn_out; there are SAEs at 1.resid_post"):
        lm.attribute_tokens(TEXT, "1.attn_out/3")


def test_a_feature_that_the_sae_does_not_have_is_refused(lm: ds.LM) -> None:
    with pytest.raises(UserError, match=f"there is no feature {D_SAE}: the SAE's features are 0 to {D_SAE - 1}"):
        lm.attribute_tokens(TEXT, f"1/{D_SAE}")


def test_a_layer_without_an_sae_is_refused(lm: ds.LM) -> None:
    with pytest.raises(UserError, match=r"no SAE at 2; there are SAEs at 1.resid_post"):
        lm.attribute_tokens(TEXT, "2/3")
    with pytest.raises(UserError, match="no SAEs are loaded"):
        handle().attribute_tokens(TEXT, "1/3")


def test_exactly_one_target_is_asked_for(lm: ds.LM) -> None:
    for question in ({}, {"feature": "1/3", "logit": 5}, {"logit": 5, "logit_diff": (5, 6)}):
        with pytest.raises(UserError, match="ask for one target"):
            lm.attribute_tokens(TEXT, **question)


def test_the_gate_is_for_gated_saes_only(lm: ds.LM) -> None:
    with pytest.raises(UserError, match="a jumprelu SAE has no path 'gate', only magnitude"):
        lm.attribute_tokens(TEXT, "1/3", path="gate")
    with pytest.raises(UserError, match="is for features of gated SAEs"):
        lm.attribute_tokens(TEXT, logit=5, path="gate")


def test_a_matching_pursuit_sae_has_no_pre_activation_to_split() -> None:
    with pytest.raises(UserError, match="no pre-activation that is affine"):
        handle(random_sae("matching_pursuit")).attribute_tokens(TEXT, "1/3")


def test_a_logit_is_one_tokens(lm: ds.LM) -> None:
    with pytest.raises(UserError, match=r"' marzipan' is \d+ tokens .*, a logit is one token's$"):
        lm.attribute_tokens(TEXT, logit=" marzipan")
    with pytest.raises(UserError, match="most words begin with a space"):
        lm.attribute_tokens(TEXT, logit_diff=(" Paris", "marzipan"))
    with pytest.raises(UserError, match="'' is 0 tokens"):
        lm.attribute_tokens(TEXT, logit="")


def test_what_is_neither_a_token_nor_an_id_has_no_logit(lm: ds.LM) -> None:
    with pytest.raises(UserError, match=r"logit should be a text or a whole number, not 5.0"):
        lm.attribute_tokens(TEXT, logit=5.0)  # type: ignore[arg-type]


def test_a_special_token_has_a_logit_too(lm: ds.LM) -> None:
    assert lm.attribute_tokens(TEXT, logit="<eos>").to_dict()["logit"]["id"] == EOS


@pytest.mark.parametrize("token", [VOCAB, -1])
def test_a_token_id_outside_the_vocabulary_is_refused(lm: ds.LM, token: int) -> None:
    for question in ({"logit": token}, {"logit_diff": (5, token)}):
        with pytest.raises(UserError, match=f"token id {token} is not in the vocabulary"):
            lm.attribute_tokens(TEXT, **question)


def test_without_a_tokenizer_a_logit_is_an_id(lm: ds.LM) -> None:
    bare = ds.load(lm.model)
    assert bare.attribute_tokens([5, 6], logit="#7").to_dict()["logit"]["id"] == 7
    assert bare.attribute_tokens([5, 6], logit="7").to_dict()["logit"]["token"] == "#7"
    with pytest.raises(UserError, match="without a tokenizer; give the logit as a token id"):
        bare.attribute_tokens([5, 6], logit=" Paris")


@pytest.mark.parametrize(
    ("question", "why"),
    [
        ({"layer": None}, "a direction needs the layer"),
        ({"layer": 3}, "there is no layer 3; .* has layers 0 to 2"),
        ({"layer": -1}, "there is no layer -1"),
        ({"hook": "resid_up"}, "'resid_up' is not a hook; the hooks are resid_pre"),
        ({"direction": torch.ones(8)}, r"the direction has shape \[8\]; resid_post of this model needs \[32\]"),
        ({"direction": torch.ones(2, 32)}, r"the direction has shape \[2, 32\]"),
        ({"direction": torch.full((32,), float("nan"))}, "NaN or infinite"),
    ],
)
def test_a_direction_that_cannot_be_read_is_refused(lm: ds.LM, question: dict, why: str) -> None:
    with pytest.raises(UserError, match=why):
        lm.attribute_tokens(TEXT, **({"direction": torch.ones(32), "layer": 1} | question))


def test_a_direction_may_be_a_list_or_an_array(lm: ds.LM) -> None:
    w = torch.arange(32) / 32
    for given in (w.tolist(), w.numpy(), w.double()):
        att = lm.attribute_tokens(TEXT, direction=given, layer=1)
        assert att.pre_activation == pytest.approx(lm.attribute_tokens(TEXT, direction=w, layer=1).pre_activation)


# --------------------------------------------------------------------------------------------------------------- sinks


IDS = [SINK, 90, 70, 60, 90, 75]


@pytest.fixture(scope="module")
def sunk() -> ds.LM:
    """Without a start token: the first token of a prompt is an ordinary one that the model makes a sink."""
    return ds.load(sinking(), tokenizer(adds_bos=False), saes=[random_sae(), random_sae("topk", "2.mlp_out", seed=1)])


def firing_at_the_sink(lm: ds.LM, name: str = "1") -> str:
    """The feature that fires most there: it does elsewhere, too."""
    layer = next(layer for layer in lm.features(IDS).layers if layer.name == name)
    others = {i for at in layer.positions[1:] for i in at.indices}
    return f"{name}/{next(i for i in layer.positions[0].indices if i in others)}"


@pytest.mark.parametrize("name", ["1", "2"])
def test_a_sink_is_no_default_position_and_the_note_says_how_to_ask_for_it(sunk: ds.LM, name: str) -> None:
    feature = firing_at_the_sink(sunk, name)
    said = f"position 0 ({sunk.tokenizer.decode([SINK])!r}) is left out as an attention sink; ask for it with --pos 0"
    there = sunk.attribute_tokens(IDS, feature, pos=0)
    assert there.target.pos == 0
    assert there.note is None
    for pos in (None, "max", "all"):
        att = sunk.attribute_tokens(IDS, feature, pos=pos)
        assert 0 not in [target.pos for target in att.targets]
        assert att.note == said
        assert att.to_dict()["note"] == said
    assert abs(there.activation) > abs(sunk.attribute_tokens(IDS, feature).activation)


def test_a_sink_within_the_prompt_is_left_out_as_well(sunk: ds.LM) -> None:
    feature = firing_at_the_sink(sunk)
    ids = [BOS, 90, 70, SINK, 60, 90, SINK]
    att = sunk.attribute_tokens(ids, feature, pos="all")
    assert not {0, 3, 6} & {target.pos for target in att.targets}
    assert "positions 3 (" in att.note
    assert att.note.endswith("are left out as attention sinks; ask for them with --pos 3 or --pos 6")
    assert sunk.attribute_tokens(ids, feature, pos=3).target.pos == 3


def test_nothing_is_said_of_a_sink_at_which_the_feature_does_not_fire(sunk: ds.LM) -> None:
    (layer, _) = sunk.features(IDS).layers
    silent = next(
        i for at in layer.positions[1:] for i in at.indices if i not in layer.positions[0].indices
    )  # fmt: skip
    assert sunk.attribute_tokens(IDS, f"1/{silent}").note is None


def test_a_feature_that_fires_on_a_sink_alone_is_shown_where_it_comes_nearest(sunk: ds.LM) -> None:
    (layer, _) = sunk.features(IDS).layers
    others = {i for at in layer.positions[1:] for i in at.indices}
    alone = next(i for i in layer.positions[0].indices if i not in others)
    att = sunk.attribute_tokens(IDS, f"1/{alone}")
    assert att.target.pos != 0
    assert att.note.startswith("position 0 (")
    assert f"feature 1/{alone} fires nowhere elsewhere; shown is its largest pre-activation" in att.note


def test_where_all_other_tokens_are_special_a_sink_is_taken(sunk: ds.LM) -> None:
    assert sunk.attribute_tokens([SINK, EOS], firing_at_the_sink(sunk)).target.pos == 0


def test_directions_leave_sinks_out_too_and_a_logits_own_position_stays_the_last(sunk: ds.LM) -> None:
    att = sunk.attribute_tokens(IDS, direction=torch.ones(32), layer=1, pos="all")
    assert [target.pos for target in att.targets] == [1, 2, 3, 4, 5]
    assert sunk.attribute_tokens([*IDS, SINK], logit=5).target.pos == len(IDS)


def test_in_several_prompts_each_has_its_own_sinks(sunk: ds.LM) -> None:
    feature = firing_at_the_sink(sunk)
    plain, with_sink = sunk.attribute_tokens_batch([IDS[1:], IDS], feature, pos="all")
    assert plain.note is None or "sink" not in plain.note
    assert "sink" in with_sink.note
    assert "sink" in sunk.contrast(IDS, IDS[1:], feature).attribution.note
