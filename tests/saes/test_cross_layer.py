"""Cross-layer transcoders: what their features read, and what they write into which layer."""

import json
import pickle
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.graph.neighbours import outflow_to
from depass_sae.passes.settings import Settings
from depass_sae.saes import (
    CrossLayer,
    Hook,
    activations,
    describe,
    encoder_direction,
    feature_parts,
    hook_of,
    live_pre_activation,
    load_saes,
    pre_activations,
    reconstructs,
    threshold_gap,
)

from ..attribution.tiny import TEXT, activation, handle, random_sae
from ..passes.models import D_MODEL, LAYERS
from .tracer_folder import WIDTHS, Weights, random_weights, write_config, write_transcoder

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
KINDS = pytest.mark.parametrize("jumprelu", [False, True])
N_POS = 7


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[Path, Weights]]:
    """By jumprelu or not."""
    made = {}
    for jumprelu in (False, True):
        weights = random_weights(jumprelu)
        made[jumprelu] = weights.write(tmp_path_factory.mktemp("clt") / "folder"), weights
    return made


@pytest.fixture
def clt(folders: Any, tmp_path: Path) -> Path:
    """A folder to break."""
    return folders[True][1].write(tmp_path / "clt")


def streams(seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(N_POS, D_MODEL, generator=generator, dtype=torch.float64) for _ in range(LAYERS)]


def refused(source: Any, **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        load_saes(source, **options)
    return str(raised.value)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max().item())


# --- what it is -------------------------------------------------------------------------------------------------------


@KINDS
def test_activations_are_those_of_the_formula(folders: Any, jumprelu: bool) -> None:
    path, weights = folders[jumprelu]
    whole = CrossLayer.read(path)
    assert (whole.n_layers, whole.d_sae, whole.d_model) == (LAYERS, WIDTHS, D_MODEL)
    for layer, x in enumerate(streams()):
        expected = weights.encode(x, layer)
        assert 0 < (expected != 0).sum() < expected.numel()
        close(whole.encode(x, layer), expected)


@KINDS
def test_what_is_written_into_each_layer_is_every_earlier_feature_by_its_decoder_for_that_layer(
    folders: Any, jumprelu: bool
) -> None:
    path, weights = folders[jumprelu]
    whole = CrossLayer.read(path)
    acts = {layer: weights.encode(x, layer) for layer, x in enumerate(streams())}
    for into in range(LAYERS):
        expected = sum(acts[at] @ weights.W_dec[at][:, into - at].double() for at in range(into + 1))
        close(whole.written(acts, into), expected)


def test_parts_constant_and_error_are_what_the_mlp_adds_at_every_layer(folders: Any) -> None:
    path, weights = folders[True]
    whole, mlp_out = CrossLayer.read(path), streams(2)
    acts = {layer: weights.encode(x, layer) for layer, x in enumerate(streams())}
    for into in range(LAYERS):
        total = whole.constant(into).double() + whole.error(mlp_out[into], acts, into)
        for layer in range(into + 1):
            found = whole.parts(layer, acts[layer], into)
            assert torch.equal(torch.stack([found.pos, found.index], 1), acts[layer].nonzero())
            assert torch.equal(found.activation, acts[layer][found.pos, found.index])
            rows = weights.W_dec[layer][found.index, into - layer].double()
            close(found.parts, found.activation[:, None] * rows)
            total = total.index_add(0, found.pos, found.parts)
        close(total, mlp_out[into])
        close(whole.constant(into), weights.b_dec[into])


def test_where_nothing_fires_nothing_is_written(folders: Any) -> None:
    whole = CrossLayer.read(folders[False][0])
    acts = {layer: torch.zeros(N_POS, width) for layer, width in enumerate(WIDTHS)}
    assert torch.equal(whole.written(acts, 2), torch.zeros(N_POS, D_MODEL))
    assert whole.parts(0, acts[0], 1).parts.shape == (0, D_MODEL)


def test_decoders_are_read_by_layer_by_feature_and_in_blocks(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path, weights = folders[False]
    whole = CrossLayer.read(path)
    assert torch.equal(whole.decoder(1, [5, 3, 5], into=2), weights.W_dec[1][[5, 3, 5], 1])
    assert torch.equal(whole.decoders(0, torch.tensor([7])), weights.W_dec[0][[7]])
    monkeypatch.setattr("depass_sae.saes.cross_layer.AT_ONCE", 7 * 2 * D_MODEL)
    blocks = list(whole.decoder_blocks(1))
    assert [len(block) for block in blocks] == [7, 7, 7, 3]
    assert torch.equal(torch.cat(blocks), weights.W_dec[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_every_dtype_are_read_in_float32_at_least(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = random_weights(True, dtype)
    whole, x = CrossLayer.read(weights.write(tmp_path)), streams()[0]
    acts = weights.encode(x, 0)
    close(whole.encode(x, 0), acts)
    close(whole.parts(0, acts, 2).parts, (acts[..., None] * weights.W_dec[0][:, 2].double())[acts != 0])
    saes = load_saes(tmp_path)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert {sae.W_enc.dtype for sae in saes.values()} == {sae.threshold.dtype for sae in saes.values()} == {expected}


def test_what_one_feature_writes_is_read_without_the_rest_of_its_file(clt: Path) -> None:
    n = 2**22
    whole, size = replace(CrossLayer.read(clt), d_sae=(n, *WIDTHS[1:])), 4 * n * LAYERS * D_MODEL
    header = {"W_dec_0": {"dtype": "F32", "shape": [n, LAYERS, D_MODEL], "data_offsets": [0, size]}}
    written = json.dumps(header).encode()
    with (clt / "W_dec_0.safetensors").open("wb") as file:  # 1.5 GiB that take no room on the disk
        file.write(struct.pack("<Q", len(written)) + written)
        file.truncate(8 + len(written) + size)
    before = psutil.Process().memory_info().rss
    assert whole.decoder(0, [n - 1, n // 2], into=1).shape == (2, D_MODEL)
    assert whole.decoders(0, [n - 1]).shape == (1, LAYERS, D_MODEL)
    assert psutil.Process().memory_info().rss - before < size / 20


# --- as what questions are asked of -----------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_features_direction_gives_the_transcoders_own_pre_activation(
    folders: Any, jumprelu: bool, dtype: torch.dtype
) -> None:
    path, weights = folders[jumprelu]
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    for hook, sae in load_saes(path, dtype=dtype).items():
        x = streams()[hook.layer].to(dtype)
        expected = weights.pre(x, hook.layer)
        close(pre_activations(sae, x), expected, tolerance)
        close(activations(sae, x), weights.encode(x, hook.layer), tolerance)
        for feature in (0, sae.cfg.d_sae - 1):
            direction = encoder_direction(sae, x, feature)
            close((direction.w * x).sum(-1) + direction.c, expected[:, feature], tolerance)
            close(live_pre_activation(sae, x, feature), expected[:, feature], tolerance)
        for feature in range(sae.cfg.d_sae):
            assert torch.equal(threshold_gap(sae, x, feature) > 0, activations(sae, x)[:, feature] != 0)


@KINDS
def test_a_layers_features_are_described_and_do_not_reconstruct(folders: Any, jumprelu: bool) -> None:
    path = folders[jumprelu][0]
    saes = load_saes(path)
    assert list(saes) == [Hook(layer, "resid_mid") for layer in range(LAYERS)]
    for hook, sae in saes.items():
        assert hook_of(sae) == hook
        assert not reconstructs(sae)
        assert not any(weight.requires_grad for weight in sae.parameters())
        assert describe(sae) == {
            "release": None,
            "id": f"folder/{hook.layer}",
            "neuronpedia_id": None,
            "architecture": "jumprelu_cross_layer_transcoder" if jumprelu else "cross_layer_transcoder",
            "d_in": D_MODEL,
            "d_sae": WIDTHS[hook.layer],
            "hook": str(hook),
        }


def test_layers_and_keys_choose_from_a_folder(folders: Any) -> None:
    path = folders[True][0]
    at_1 = [Hook(1, "resid_mid")]
    assert (
        list(load_saes(path, layers=[1]))
        == list(load_saes({1: path}))
        == list(load_saes({"1.resid_mid": path}))
        == at_1
    )
    assert list(load_saes([path], layers=1)) == list(load_saes(path.parent, layers=1)) == at_1
    assert refused(path, layers=[3]) == "there is no SAE at layer 3; the layers are 0, 1, 2"
    assert "has no SAE or transcoder that reads 1.mlp_in; there are 0.resid_mid" in refused({"1.mlp_in": path})
    assert "sae_ids choose from a release" in refused(path, sae_ids=["1"])


def test_a_layers_features_are_taken_as_an_object_and_pickled(folders: Any) -> None:
    path, _ = folders[True]
    own = load_saes(path, layers=[1])
    x = streams()[1].float()
    for source in (own, list(own.values()), pickle.loads(pickle.dumps(own))):
        ((hook, again),) = load_saes(source).items()
        assert hook == Hook(1, "resid_mid")
        assert again is not own[hook]
        assert torch.equal(again.encode(x), own[hook].encode(x))
        assert torch.equal(again.decoders(3), own[hook].decoders(3))


def test_what_was_loaded_does_not_change_with_its_file(clt: Path) -> None:
    (sae,) = load_saes(clt, layers=[1]).values()
    before = sae.encode(streams()[1].float())
    with (clt / "W_enc_1.safetensors").open("r+b") as file:  # in its place, as some programs write
        file.seek(-4 * 24 * D_MODEL, 2)
        file.write(bytes(4 * 24 * D_MODEL))
    assert not torch.equal(CrossLayer.read(clt).encode(streams()[1].float(), 1), before)
    assert torch.equal(sae.encode(streams()[1].float()), before)


@pytest.mark.parametrize("read", ["hook_resid_mid", "mlp.hook_in"])
@pytest.mark.parametrize("rule", ["half", "softmax"])
@pytest.mark.parametrize("shape", ["llama", "gpt2", "gemma2"])
def test_tokens_heads_and_modules_sum_to_a_features_pre_activation(
    tmp_path: Path, read: str, rule: str, shape: str
) -> None:
    weights = random_weights(True)
    lm = handle(weights.write(tmp_path / "clt", feature_input_hook=read, model_name=None), shape)
    prompt = lm.encode(TEXT)
    layer = 2
    hook = f"{layer}.{'resid_mid' if read == 'hook_resid_mid' else 'mlp_in'}"
    if (shape, hook) != ("gemma2", "2.resid_mid"):  # a norm stands between what its module gives and the stream
        x = activation(lm.model, torch.tensor([prompt.token_ids]), hook)[0]
    else:
        x = lm._subject.trace(prompt, None, [Hook(2, "resid_mid")]).at(Hook(2, "resid_mid"))
    acts = weights.encode(x, layer)
    pos, index = divmod(int(acts[1:].argmax()), WIDTHS[layer])
    feature = f"{layer}/{index}@{pos + 1}"
    target = lm.attribute_tokens(TEXT, feature, rule=rule).target
    assert target.pre_activation == pytest.approx(weights.pre(x, layer)[pos + 1, index].item(), rel=1e-5)
    assert target.activation == pytest.approx(acts[pos + 1, index].item(), rel=1e-5)
    total = sum(target.contributions.tolist()) + sum(target.other.values()) + target.constant
    assert total == pytest.approx(target.pre_activation, rel=1e-4)
    for answer in (lm.attribute_heads(TEXT, feature, rule=rule), lm.attribute_modules(TEXT, feature, rule=rule)):
        assert answer.target.completeness_error <= 1e-4


def test_the_error_on_a_model_is_what_its_mlps_add_beyond_the_features(folders: Any) -> None:
    path, weights = folders[False]
    lm = handle(path)
    ids = torch.tensor([lm.encode(TEXT).token_ids])
    whole = lm.saes[0].whole
    x = {layer: activation(lm.model, ids, f"{layer}.resid_mid")[0] for layer in range(LAYERS)}
    acts = {layer: whole.encode(x[layer], layer) for layer in range(LAYERS)}
    assert all(torch.equal(acts[layer], lm.saes[layer].encode(x[layer])) for layer in range(LAYERS))
    mlp_out = activation(lm.model, ids, "2.mlp_out")[0]
    decoded = sum(acts[at] @ weights.W_dec[at][:, 2 - at] for at in range(LAYERS)) + weights.b_dec[2]
    close(whole.error(mlp_out, acts, 2), mlp_out - decoded, 1e-5)


def test_features_are_found_on_a_prompt(folders: Any) -> None:
    path, weights = folders[True]
    lm = handle(path, layers=[1])
    report = lm.features(TEXT)
    x = activation(lm.model, torch.tensor([lm.encode(TEXT).token_ids]), "1.resid_mid")[0]
    expected = weights.encode(x, 1)
    (found,) = report.layers
    assert found.fit.explained_variance is None
    for at in found.positions[1:]:
        assert sorted(at.indices) == expected[at.pos].nonzero()[:, 0].tolist()


# --- where it matters that they write into several layers -------------------------------------------------------------


def test_votes_are_those_of_all_that_a_feature_writes_together_and_say_so(folders: Any) -> None:
    path, weights = folders[False]
    lm = handle(path)
    card = lm.card("1/3", TEXT, top=5)
    direction = weights.W_dec[1][3].sum(0) * lm.model.model.norm.weight
    logits = lm.model.lm_head.weight @ direction
    logits = logits - logits.mean()
    assert card.votes is not None
    assert [vote.id for vote in card.votes.top] == logits.topk(5).indices.tolist()
    assert card.votes.top[0].logit == pytest.approx(logits.max().item(), rel=1e-5)
    assert card.to_dict()["logits"]["direction"].startswith("the sum of W_dec[3] over all layers that it writes into")


def test_the_nearest_features_are_those_that_write_alike_into_all_layers(folders: Any) -> None:
    path, weights = folders[False]
    rows = torch.nn.functional.normalize(weights.W_dec[0].flatten(1), dim=1)
    cosines = rows @ rows[3]
    cosines[3] = -2
    found = handle(path).card("0/3", TEXT, top=6).nearest
    assert [entry.index for entry in found] == cosines.topk(6).indices.tolist()
    torch.testing.assert_close(torch.tensor([entry.cosine for entry in found]), cosines.topk(6).values)


@pytest.fixture(scope="module")
def outflows(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a feature of layer 0 contributes to an SAE behind the last layer, with some of its decoders at zero."""
    behind = random_sae("standard", "2.resid_post", seed=1)

    def flow(*into: int) -> tuple[dict[int, Tensor], Tensor, Any]:
        weights = random_weights()
        for layer in set(range(LAYERS)) - set(into):
            weights.W_dec[0][:, layer] = 0
        lm = handle([weights.write(tmp_path_factory.mktemp("outflow")), behind])
        subject, prompt = lm._subject, lm.encode(TEXT)
        hook, target = Hook(0, "resid_mid"), Hook(2, "resid_post")
        seen = subject.trace(prompt, None, [hook, target])
        acts = weights.encode(seen.at(hook), 0)
        pos, index = divmod(int(acts[1:].argmax()), WIDTHS[0])
        found = outflow_to(subject, seen, prompt, hook, index, [pos + 1], target, Settings())
        d_sae = behind.cfg.d_sae
        direct = acts[pos + 1, index] * weights.W_dec[0][index, 2] @ behind.W_enc.detach()
        return {p: entry.sums(d_sae).double() for p, entry in found.items()}, direct.double(), (pos + 1, index)

    return flow


def test_what_a_feature_contributes_further_on_arrives_from_every_layer_that_it_writes_into(outflows: Any) -> None:
    alone = [outflows(layer)[0] for layer in range(LAYERS)]
    together, _, (pos, _) = outflows(0, 1, 2)
    assert list(together) == list(range(pos, max(together) + 1))
    for at, found in together.items():
        size = max(found.abs().max().item(), 1e-6)
        torch.testing.assert_close(sum(each[at] for each in alone), found, rtol=0, atol=1e-4 * size)
        # Later positions see the first two through attention. At its own all three arrive.
        assert all(each[at].any() for each in alone[: 3 if at == pos else 2])


def test_what_a_feature_writes_into_the_last_layer_arrives_as_it_is(outflows: Any) -> None:
    found, direct, (pos, _) = outflows(2)
    active = found[pos] != 0
    assert active.any()
    torch.testing.assert_close(found[pos][active], direct[active], rtol=1e-4, atol=1e-4)
    assert not any(found[later].any() for later in found if later > pos)


def test_what_asks_for_one_decoder_is_refused_in_a_line(folders: Any) -> None:
    lm = handle([folders[False][0], random_sae()])
    line = "have no one decoder: those of layer 1 have one for each of the layers 1 to 2"
    sae = lm.saes["1.resid_mid"]
    for question in (
        lambda: lm.decoder_directions(["1.resid_mid/3"]),
        lambda: feature_parts(sae, torch.zeros(2, D_MODEL)),
        lambda: sae.W_dec,
    ):
        with pytest.raises(UserError, match=line):
            question()


def test_a_transcoder_of_another_number_of_layers_is_refused(tmp_path: Path) -> None:
    path = random_weights(widths=(8, 8)).write(tmp_path)
    with pytest.raises(UserError, match=r"is for a model of 2 layers, and .* has 3"):
        handle(path)


# --- transcoders of one layer each ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("jumprelu", "skip"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_set_of_transcoders_is_read_as_sae_lens_ones(tmp_path: Path, jumprelu: bool, skip: bool) -> None:
    path = write_config(tmp_path, model_kind="transcoder_set", feature_input_hook="mlp.hook_in")
    files = {layer: write_transcoder(path, layer, jumprelu=jumprelu, skip=skip) for layer in (0, 2)}
    saes = load_saes(path)
    assert list(saes) == [Hook(0, "mlp_in"), Hook(2, "mlp_in")]
    kind = f"{'jumprelu_' if jumprelu else ''}{'skip_' if skip else ''}transcoder"
    for (layer, given), (hook, sae) in zip(files.items(), saes.items(), strict=True):
        assert (sae.cfg.architecture(), describe(sae)["id"]) == (kind, f"{tmp_path.name}/{layer}")
        x = streams()[0].float()
        pre = x @ given["W_enc"].T + given["b_enc"]
        acts = torch.where(pre > given["activation_function.threshold"], pre, 0) if jumprelu else pre.relu()
        out = acts @ given["W_dec"] + given["b_dec"] + (x @ given["W_skip"].T if skip else 0)
        torch.testing.assert_close(sae.encode(x), acts)
        torch.testing.assert_close(sae(x), out)
        assert hook_of(sae) == hook
    lm = handle(path)
    assert lm.attribute_tokens(TEXT, "2/5").target.completeness_error <= 1e-4


# --- what is refused --------------------------------------------------------------------------------------------------

CONFIGS = {
    "no kind": ({"model_kind": None}, "model_kind should be cross_layer_transcoder or transcoder_set, and is missing"),
    "another kind": ({"model_kind": "lorsa"}, 'and is "lorsa"'),
    "no input": ({"feature_input_hook": None}, "feature_input_hook should be one of hook_resid_pre, hook_resid_mid"),
    "an input of two meanings": ({"feature_input_hook": "hook_mlp_in"}, 'mlp.hook_in, and is "hook_mlp_in"'),
    "no output": ({"feature_output_hook": None}, "feature_output_hook should be hook_mlp_out, and is missing"),
    "another output": ({"feature_output_hook": "hook_attn_out"}, 'should be hook_mlp_out, and is "hook_attn_out"'),
    "before a norm": (
        {"feature_output_hook": "mlp.hook_out", "model_name": "google/gemma-2-2b"},
        "before a norm on it, which google/gemma-2-2b may have",
    ),
    "topk": ({"activation": "topk"}, 'activation should be relu or jump_relu, and is "topk"'),
    "on the hub": ({"transcoders": "hf://a/b/c"}, "lists transcoders that lie elsewhere"),
    "no stream there": ({"model_name": "EleutherAI/pythia-70m"}, "which is virtual in parallel blocks"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_without_what_is_needed_is_refused(clt: Path, name: str) -> None:
    change, line = CONFIGS[name]
    write_config(clt, **({"model_kind": "cross_layer_transcoder"} | change))
    assert line in refused(clt)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model_kind: [", "cannot read {}: not YAML: "),
        ("- model_kind: 1", "{} is no configuration: it holds no mapping"),
        ("model_kind: 3", "{}: model_kind should be a text, and is 3"),
        ("model_kind: a\nmodel_kind: b", "cannot read {}: not YAML: model_kind is there twice"),
        ("a: &x [1]\nmodel_kind: *x", "lists and mappings are not repeated"),
    ],
)
def test_a_configuration_that_is_none_is_refused(clt: Path, text: str, line: str) -> None:
    (clt / "config.yaml").write_text(text)
    assert line.format(clt / "config.yaml") in refused(clt)


def test_an_mlps_own_output_is_what_it_adds_where_no_norm_follows(clt: Path) -> None:
    write_config(clt, model_kind="cross_layer_transcoder", feature_output_hook="mlp.hook_out")
    assert len(load_saes(clt)) == LAYERS


@pytest.mark.parametrize("name", ["W_enc_1", "W_dec_0", "W_enc_2", "config.yaml"])
def test_a_file_that_is_missing_is_named(clt: Path, name: str) -> None:
    (clt / name if name.endswith("yaml") else clt / f"{name}.safetensors").unlink()
    assert f" no {name}" in refused(clt)


def test_layers_that_are_missing_at_the_end_are_named(clt: Path) -> None:
    for name in ("W_enc_2", "W_dec_2"):
        (clt / f"{name}.safetensors").unlink()
    assert "has no W_enc_2.safetensors; a cross_layer_transcoder is one piece" in refused(clt)


def test_files_of_more_layers_than_are_written_into_are_refused(clt: Path) -> None:
    save_file({"W_enc_7": torch.zeros(2, 2)}, clt / "W_enc_7.safetensors")
    assert "has files of layer 7, and W_dec_0 writes into 3 layers" in refused(clt)


SHAPES = {
    "W_enc_1": (torch.zeros(24, D_MODEL + 1), f"W_enc_1 should be [?, {D_MODEL}] (features, d_model), and is [24, 33]"),
    "b_enc_1": (torch.zeros(25), "b_enc_1 should be [24] (features), and is [25]"),
    "b_dec_1": (None, f"b_dec_1 should be [{D_MODEL}] (d_model), and is missing"),
    "threshold_1": (torch.zeros(24, 1), "threshold_1 should be [24] (features), and is [24, 1]"),
    "W_dec_1": (torch.zeros(24, 3, D_MODEL), f"W_dec_1 should be [24, 2, {D_MODEL}] (features, layers from 1 on"),
    "W_skip_1": (torch.zeros(2), "has W_skip_1: cross-layer transcoders with a skip connection are not supported"),
    "W_enc_0": (torch.zeros(0, D_MODEL), "W_enc_0 should be [?, ?] (features, d_model), and is [0, 32]"),
    "b_enc_2": (torch.zeros(32, dtype=torch.int8), "b_enc_2 is I8; weights are F16, BF16, F32, F64"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_weights_that_do_not_fit_are_refused_by_name(clt: Path, name: str) -> None:
    values, line = SHAPES[name]
    path = clt / f"{'W_dec' if 'W_dec' in name else 'W_enc'}_{name[-1]}.safetensors"
    tensors = load_file(path) | {name: values}
    save_file({key: kept for key, kept in tensors.items() if kept is not None}, path)
    assert line in refused(clt)


def test_thresholds_of_some_layers_only_are_refused(clt: Path) -> None:
    path = clt / "W_enc_1.safetensors"
    save_file({key: values for key, values in load_file(path).items() if key != "threshold_1"}, path)
    assert "W_enc_1 and W_enc_0 do not both have thresholds" in refused(clt)


def test_a_damaged_file_is_named(clt: Path) -> None:
    path = clt / "W_dec_1.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert f"{path} is damaged or cut short" in refused(clt)


def test_weights_that_are_not_numbers_are_refused(clt: Path) -> None:
    path = clt / "W_dec_1.safetensors"
    rows = load_file(path)["W_dec_1"]
    rows[3, 1, 0] = float("nan")
    save_file({"W_dec_1": rows}, path)
    whole = CrossLayer.read(clt)
    with pytest.raises(UserError, match=r"W_dec_1\.safetensors holds NaN or infinite values"):
        whole.decoder(1, [3], into=2)
    assert whole.decoder(1, [3], into=1).isfinite().all()
    path = clt / "W_enc_1.safetensors"
    encoder = load_file(path)
    encoder["b_enc_1"][0] = float("inf")
    save_file(encoder, path)
    assert f"layer 1 of {clt}: b_enc holds NaN or infinite values" in refused(clt)


def test_questions_that_a_transcoder_has_no_answer_to_are_refused(folders: Any) -> None:
    whole = CrossLayer.read(folders[True][0])
    acts = {layer: torch.zeros(2, width) for layer, width in enumerate(WIDTHS)}
    mistakes = {
        "not into 0": lambda: whole.decoder(1, [0], into=0),
        "there is no layer 3": lambda: whole.constant(3),
        "there is no layer -1": lambda: whole.encoder(-1),
        "there is no feature 24: those of layer 1 are 0 to 23": lambda: whole.decoder(1, [24], into=1),
        "there is no feature -1": lambda: whole.decoders(1, [-1]),
        "features of layer 0 write into layer 2": lambda: whole.written({1: acts[1], 2: acts[2]}, 2),
        r"activations of layer 1 are \[pos, 24\], not \[2, 32\]": lambda: whole.parts(1, acts[2], 1),
        r"mlp_out of layer 0 is \[2, 32\] here, not \[3, 32\]": lambda: whole.error(torch.zeros(3, 32), acts, 0),
        r"layer 0 reads activations \[pos, 32\], not \[2, 31\]": lambda: whole.encode(torch.zeros(2, 31), 0),
    }
    for line, question in mistakes.items():
        with pytest.raises(UserError, match=line):
            question()


def test_a_set_of_transcoders_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = write_config(tmp_path, model_kind="transcoder_set")
    assert "is a transcoder_set without transcoders: their files are layer_N.safetensors" in refused(path)
    file, given = path / "layer_0.safetensors", write_transcoder(path, 0, jumprelu=True)
    with pytest.raises(UserError, match="is a transcoder_set, not a cross_layer_transcoder"):
        CrossLayer.read(path)
    threshold = given["activation_function.threshold"]
    for change, line in (
        ({"b_enc": torch.zeros(3)}, "b_enc should be [40] (features: 40, read: 32, written: 32), and is [3]"),
        ({"W_dec": torch.zeros(39, 32)}, "W_dec should be [40, ?] (features, what is written), and is [39, 32]"),
        ({"activation_function.threshold": threshold - 5}, "a threshold is below 0"),
    ):
        save_file(given | change, file)
        assert line in refused(path)
    write_config(path, model_kind="transcoder_set", activation="relu")
    save_file(given, file)
    assert "the activation in config.yaml is relu, and there is a threshold" in refused(path)


def test_a_folder_that_only_has_a_configuration_of_its_own_is_none_of_these(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("learning_rate: 1\n")
    assert "holds no SAE" in refused(tmp_path)
    sae = random_sae()
    sae.save_model(tmp_path / "sae")
    assert list(load_saes(tmp_path)) == [Hook(1, "resid_post")]


def test_a_bad_folder_is_told_of_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no SAE"):
        ds.load("no/such-model", saes=tmp_path)
    write_config(tmp_path, model_kind="cross_layer_transcoder")
    with pytest.raises(UserError, match="has no W_enc_0"):
        ds.load("no/such-model", saes=str(tmp_path))
