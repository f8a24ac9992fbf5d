"""From whatever a user has to {hook: SAE}."""

import io
import json
import logging
import shutil
import warnings
from contextlib import redirect_stderr, redirect_stdout

import pytest
import torch
from safetensors.torch import load_file, save_file

from depass_sae.errors import SAEFitWarning, UserError
from depass_sae.saes import Hook, describe, hook_of, load_saes

from .builders import AFFINE, CLASSES, D_IN, D_SAE, TRAINERS, Recipe

AT_17, AT_3 = Hook(17, "resid_post"), Hook(3, "hook_z")


def named(kind="jumprelu", hook_name="blocks.17.hook_resid_post", **recipe):
    return Recipe(kind, **recipe).build(hook_name=hook_name)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("saes") / "layer17"
    named().save_model(path)
    return path


@pytest.fixture(scope="module")
def unnamed(tmp_path_factory):
    """As sae-lens's own trainer saves an SAE: it does not say where it reads."""
    path = tmp_path_factory.mktemp("unnamed") / "sae"
    Recipe("topk", rescale_acts_by_decoder_norm=True).build_trainer().save_inference_model(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("several")
    named().save_model(path / "late")
    named("topk", "blocks.3.attn.hook_z", options={"reshape_activations": "hook_z"}).save_model(path / "early")
    (path / "notes").mkdir()
    return path


@pytest.fixture
def broken(directory, tmp_path):
    """A copy of a good directory, to break."""
    return shutil.copytree(directory, tmp_path / "broken")


def refused(call):
    """The one line with which a call is refused, after which the terminal is still empty."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(UserError) as raised:
        call()
    assert out.getvalue() == err.getvalue() == ""
    assert "\n" not in str(raised.value)
    return str(raised.value)


# --- what can be handed over ------------------------------------------------------------------------------------------


def test_a_directory_is_one_sae(directory):
    for path in (directory, str(directory)):
        assert list(load_saes(path)) == [AT_17]


def test_a_folder_is_its_saes_in_order_of_their_hooks(folder):
    assert list(load_saes(folder)) == [AT_3, AT_17]


def test_objects_and_lists_of_anything_are_taken(directory):
    other = named(hook_name="blocks.4.hook_mlp_out")
    assert list(load_saes(other)) == [Hook(4, "mlp_out")]
    assert list(load_saes([directory, other])) == [Hook(4, "mlp_out"), AT_17]
    assert load_saes([]) == load_saes(None) == {}


@pytest.mark.parametrize("key", [12, "12", "12.resid_post", Hook(12, "resid_post")])
def test_a_key_names_the_hook_of_an_sae_that_does_not(unnamed, key):
    (loaded,) = load_saes({key: unnamed}).items()
    assert loaded[0] == Hook(12, "resid_post")
    assert hook_of(loaded[1]) == Hook(12, "resid_post")
    assert list(load_saes({key: Recipe("topk").build()})) == [Hook(12, "resid_post")]


def test_a_bare_layer_leaves_the_hook_to_the_file():
    assert list(load_saes({3: named(hook_name="blocks.3.hook_mlp_out")})) == [Hook(3, "mlp_out")]


def test_a_key_names_a_hook_that_the_file_names_in_no_known_language():
    (sae,) = load_saes({"0.resid_pre": named(hook_name="hook_embed")}).values()
    assert hook_of(sae) == Hook(0, "resid_pre")


def test_layers_choose_from_a_folder(folder):
    assert list(load_saes(folder, layers=[3])) == [AT_3]
    assert list(load_saes(folder, layers=17)) == [AT_17]


def test_two_hooks_at_one_layer_are_two_saes():
    saes = [named(), named(hook_name="blocks.17.hook_mlp_out")]
    assert list(load_saes(saes, layers=[17])) == [Hook(17, "mlp_out"), AT_17]


# --- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", AFFINE)
def test_what_is_loaded_computes_what_was_saved(kind, tmp_path):
    sae, x = named(kind), torch.randn(4, D_IN)
    sae.save_model(tmp_path)
    for source in (tmp_path, sae):
        (own,) = load_saes(source).values()
        assert torch.equal(own(x), sae(x))
        assert own is not sae


@pytest.mark.parametrize("kind", CLASSES)
def test_saes_come_without_gradients_and_in_evaluation_mode(kind):
    theirs = named(kind)
    theirs.train()
    (sae,) = load_saes(theirs).values()
    assert not any(weight.requires_grad for weight in sae.parameters())
    assert not sae.training
    assert theirs.training
    assert all(weight.requires_grad for weight in theirs.parameters())


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_training_sae_becomes_the_inference_sae_that_it_is_saved_as(kind, tmp_path):
    trainer, x = Recipe(kind).build_trainer(hook_name="blocks.17.hook_resid_post"), torch.randn(4, D_IN)
    before = {name: values.clone() for name, values in trainer.state_dict().items()}
    trainer.save_inference_model(tmp_path)
    (own,), (saved,) = load_saes(trainer).values(), load_saes(tmp_path).values()
    assert torch.equal(own.encode(x), saved.encode(x))
    assert own.cfg.architecture() == saved.cfg.architecture()
    assert all(torch.equal(values, before[name]) for name, values in trainer.state_dict().items())


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "abstopk", "gated"])
def test_a_trainers_raw_folder_loads_where_its_weights_are_those_of_inference(kind, tmp_path):
    trainer, x = Recipe(kind).build_trainer(hook_name="blocks.17.hook_resid_post"), torch.randn(4, D_IN)
    trainer.save_model(tmp_path)
    (sae,) = load_saes(tmp_path).values()
    assert torch.allclose(sae.encode(x), trainer.encode(x), atol=1e-6)


def test_a_configuration_from_before_sae_lens_6_is_understood(broken):
    old = {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "model_name": "gpt2-small",
        "hook_point": "blocks.8.hook_resid_pre",
        "hook_point_layer": 8,
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 3},
        "normalize_activations": False,
    }
    (broken / "cfg.json").write_text(json.dumps(old))
    weights = load_file(broken / "sae_weights.safetensors")
    del weights["threshold"]
    save_file(weights, broken / "sae_weights.safetensors")
    ((hook, sae),) = load_saes(broken).items()
    assert hook == hook_of(sae) == Hook(8, "resid_pre")
    assert (sae.cfg.architecture(), sae.cfg.k) == ("topk", 3)


def test_half_precision_is_loaded_as_float32_unless_asked_otherwise(tmp_path):
    named(dtype="float16").save_model(tmp_path)
    (sae,) = load_saes(tmp_path).values()
    assert sae.dtype == sae.W_enc.dtype == torch.float32
    (sae,) = load_saes(tmp_path, dtype="bfloat16").values()
    assert sae.dtype == sae.W_enc.dtype == torch.bfloat16


def test_float64_stays_float64():
    (sae,) = load_saes(named(dtype="float64")).values()
    assert sae.W_enc.dtype == sae.threshold.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_thresholds_stay_float32_whatever_the_dtype(directory, dtype):
    on_disk = load_file(directory / "sae_weights.safetensors")["threshold"]
    transcoder = named("jumprelu_transcoder")
    for source, threshold in {directory: on_disk, named(): on_disk, transcoder: transcoder.threshold}.items():
        (sae,) = load_saes(source, dtype=dtype).values()
        assert sae.W_enc.dtype == dtype
        assert sae.threshold.dtype == torch.float32
        assert torch.equal(sae.threshold, threshold)
        assert sae.encode(torch.randn(2, D_IN)).dtype == dtype


def test_a_batchtopk_trainers_threshold_is_not_rounded_to_its_weights():
    trainer = Recipe("batchtopk", dtype="bfloat16").build_trainer(hook_name="blocks.17.hook_resid_post")
    (sae,) = load_saes(trainer).values()
    assert torch.equal(sae.threshold, torch.full((D_SAE,), 0.31))


def test_heads_are_read_flat():
    theirs = named("topk", "blocks.3.attn.hook_z", options={"reshape_activations": "hook_z"})
    x = torch.randn(5, 2, D_IN // 2)
    (sae,) = load_saes(theirs).values()
    assert torch.equal(sae.encode(x.flatten(1)), theirs.encode(x))
    assert theirs.hook_z_reshaping_mode


def test_what_was_handed_over_is_left_as_it_was():
    theirs = named("topk", dtype="float64", rescale_acts_by_decoder_norm=True)
    config, weights = theirs.cfg.to_dict(), {name: w.clone() for name, w in theirs.state_dict().items()}
    load_saes({"17.resid_post": theirs}, dtype="bfloat16")
    assert theirs.cfg.to_dict() == config
    assert all(torch.equal(w, weights[name]) and w.dtype == torch.float64 for name, w in theirs.state_dict().items())


def test_an_sae_is_described_as_far_as_it_is_known(directory, unnamed):
    (sae,) = load_saes(directory).values()
    assert describe(sae) == {
        "release": None,
        "id": "layer17",
        "neuronpedia_id": None,
        "architecture": "jumprelu",
        "d_in": D_IN,
        "d_sae": D_SAE,
        "hook": "17.resid_post",
    }
    assert describe(Recipe("topk").build())["hook"] is None


def test_a_normalisation_that_was_never_folded_is_warned_of():
    with pytest.warns(SAEFitWarning, match="not folded into its weights"):
        load_saes(named(normalize_activations="expected_average_only_in"))


def test_a_warning_points_to_the_line_that_loads():
    with pytest.warns(SAEFitWarning) as caught:
        load_saes(named(normalize_activations="expected_average_only_in"))
    assert caught[0].filename == __file__


def test_loading_leaves_logging_and_warnings_as_they_were(directory):
    filters, level = list(warnings.filters), logging.root.manager.disable
    load_saes(directory)
    assert warnings.filters == filters
    assert logging.root.manager.disable == level


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka_batchtopk"])
def test_a_training_checkpoint_is_refused_with_the_way_to_save_it(kind, tmp_path):
    Recipe(kind).build_trainer(hook_name="blocks.17.hook_resid_post").save_model(tmp_path)
    assert "save_inference_model" in refused(lambda: load_saes(tmp_path))


def test_a_missing_directory_is_named(tmp_path):
    for source in (tmp_path / "none", str(tmp_path / "none"), {17: tmp_path / "none"}, [str(tmp_path / "none")]):
        assert f"there is no SAE directory {tmp_path / 'none'}" in refused(lambda source=source: load_saes(source))


def test_a_folder_without_saes_is_refused(tmp_path):
    assert "holds no SAE" in refused(lambda: load_saes(tmp_path))


def test_weights_that_are_missing_are_named(broken):
    (broken / "sae_weights.safetensors").unlink()
    assert "has no sae_weights.safetensors" in refused(lambda: load_saes(broken))


def test_weights_that_are_cut_short_are_told_from_good_ones(broken):
    weights = broken / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "damaged or cut short" in refused(lambda: load_saes(broken))
    weights.write_bytes(b"")
    assert "damaged or cut short" in refused(lambda: load_saes(broken))


def test_weights_of_another_width_are_refused(broken):
    config = json.loads((broken / "cfg.json").read_text())
    (broken / "cfg.json").write_text(json.dumps({**config, "d_sae": 99}))
    assert "do not fit together" in refused(lambda: load_saes(broken))


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_configuration_that_is_broken_is_named(broken, text):
    (broken / "cfg.json").write_text(text)
    assert "cfg.json" in refused(lambda: load_saes(broken))


K = "k, the number of features that are active, should be from 1 to d_sae"


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("topk", {"k": None}, f"{K} (20), and is missing"),
        ("topk", {"k": 0}, f"{K} (20), and is 0"),
        ("topk", {"k": -5}, f"{K} (20), and is -5"),
        ("topk", {"k": 21}, f"{K} (20), and is 21"),
        ("topk", {"k": 2.5}, f"{K} (20), and is 2.5"),
        ("abstopk", {"k": "5"}, f'{K} (20), and is "5"'),
        ("jumprelu", {"activation_fn_str": "topk"}, f"{K} (20), and is missing"),
        ("jumprelu", {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 99}}, f"{K} (20), and is 99"),
        ("jumprelu", {"architecture": 7}, "architecture should be a text, and is 7"),
        ("jumprelu", {"architecture": ["topk"]}, "architecture should be a text, and is ['topk']"),
        ("jumprelu", {"hook_name": 17}, "hook_name should be a text, and is 17"),
        ("jumprelu", {"metadata": {"hook_name": ["blocks.17.hook_resid_post"]}}, "hook_name should be a text"),
        ("jumprelu", {"metadata": {"neuronpedia_id": 3}}, "neuronpedia_id should be a text, and is 3"),
        ("jumprelu", {"metadata": {"hook_layer": "a", "hook_name": "blocks.{layer}.hook_resid_post"}}, "hook_layer"),
        ("jumprelu", {"metadata": []}, "metadata should be an object, and is []"),
        ("jumprelu", {"d_in": 0}, "d_in should be a whole number from 1, and is 0"),
        ("jumprelu", {"d_in": -8}, "d_in should be a whole number from 1, and is -8"),
        ("jumprelu", {"d_in": "8"}, 'd_in should be a whole number from 1, and is "8"'),
        ("jumprelu", {"d_sae": 20.0}, "d_sae should be a whole number from 1, and is 20.0"),
        ("jumprelu", {"d_sae": None}, "d_sae should be a whole number from 1, and is None"),
        ("jumprelu", {"d_sae": True}, "d_sae should be a whole number from 1, and is True"),
        ("jumprelu", {"d_sae": 10**400}, "d_sae should be a whole number from 1, and is 1000"),
        ("jumprelu", {"d_sae": 10**9}, "do not fit together"),
    ],
)  # fmt: skip
def test_a_configuration_whose_values_cannot_be_is_refused_with_what_would_be_right(tmp_path, kind, change, message):
    named(kind).save_model(tmp_path / "sae")
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps(config | change))
    assert message in refused(lambda: load_saes(tmp_path / "sae"))


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "{" * 5, "[]", '{"d_in": ' + "9" * 5000 + "}", '{"k": 1, "k": 2}', "\0"]
)
def test_a_configuration_that_is_no_json_of_one_meaning_is_one_line(broken, text):
    (broken / "cfg.json").write_text(text)
    assert refused(lambda: load_saes(broken)).startswith(f"{broken / 'cfg.json'} ")


def test_a_configuration_that_is_missing_or_incomplete_is_named(broken):
    config = json.loads((broken / "cfg.json").read_text())
    (broken / "cfg.json").write_text(json.dumps({key: value for key, value in config.items() if key != "d_in"}))
    assert "d_in" in refused(lambda: load_saes(broken))
    (broken / "cfg.json").write_text(json.dumps({**config, "architecture": "quantum"}))
    assert "no architecture 'quantum'" in refused(lambda: load_saes(broken))
    (broken / "cfg.json").unlink()
    assert "has no cfg.json" in refused(lambda: load_saes(broken))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused_by_name(broken, value):
    weights = load_file(broken / "sae_weights.safetensors")
    weights["b_enc"][3] = value
    save_file(weights, broken / "sae_weights.safetensors")
    assert "b_enc holds NaN or infinite values" in refused(lambda: load_saes(broken))
    sae = named()
    sae.W_dec.data[0, 0] = value
    assert "W_dec holds NaN or infinite values" in refused(lambda: load_saes(sae))


def test_an_sae_that_names_no_hook_is_refused_with_what_to_write(unnamed):
    for source in (unnamed, str(unnamed), [unnamed]):
        message = refused(lambda source=source: load_saes(source))
        assert message.startswith(f"{unnamed} does not say which hook it reads; name it: ")
        assert f'saes={{"17.resid_post": "{unnamed}"}}' in message
        assert "into the metadata of cfg.json" in message
    nameless = Recipe("topk").build()
    for source in (nameless, [nameless], [named(), nameless]):
        message = refused(lambda source=source: load_saes(source))
        assert message == 'the TopKSAE object does not say which hook it reads; name it: saes={"17.resid_post": sae}'


def test_a_folder_whose_saes_name_no_hook_is_refused_with_its_own_folders_to_write(unnamed, tmp_path):
    for i in range(5):
        shutil.copytree(unnamed, tmp_path / f"sae_{i}")
    several = f'saes={{0: "{tmp_path}/sae_0", 1: "{tmp_path}/sae_1", 2: "{tmp_path}/sae_2", ...}}'
    for source in (tmp_path, [tmp_path / f"sae_{i}" for i in range(5)]):
        message = refused(lambda source=source: load_saes(source))
        assert message.startswith("5 SAEs do not say which hook they read; name each by its layer")
        assert several in message
    written = {i: tmp_path / f"sae_{i}" for i in range(5)}
    assert list(load_saes(written)) == [Hook(i, "resid_post") for i in range(5)]


def test_only_the_saes_of_a_folder_that_name_no_hook_are_asked_for(unnamed, tmp_path):
    named().save_model(tmp_path / "good")
    for name in ("layer_11", "layer_23"):
        shutil.copytree(unnamed, tmp_path / name)
    message = refused(lambda: load_saes(tmp_path))
    assert f'saes={{11: "{tmp_path}/layer_11", 23: "{tmp_path}/layer_23"}}' in message


def test_objects_that_name_no_hook_are_counted():
    assert "saes={0: sae1, 1: sae2}" in refused(lambda: load_saes([Recipe("topk").build(), Recipe("topk").build()]))


def test_a_key_that_contradicts_the_file_is_refused(directory):
    assert "reads 17.resid_post, not layer 12" in refused(lambda: load_saes({12: directory}))
    assert "reads 17.resid_post (blocks.17" in refused(lambda: load_saes({"17.mlp_out": directory}))


def test_two_saes_of_one_hook_are_refused_by_name(directory):
    message = refused(lambda: load_saes([directory, named("topk")]))
    assert f"two SAEs read 17.resid_post: {directory} and the TopKSAE object" in message


def test_a_layer_without_an_sae_is_refused_with_the_layers_that_there_are(folder):
    assert "no SAE at layer 4; the layers are 3, 17" in refused(lambda: load_saes(folder, layers=[17, 4]))
    assert "no SAE at layer 4" in refused(lambda: load_saes([named()], layers=[4]))


@pytest.mark.parametrize("source", [7, [7], {17: 7}, torch.nn.Linear(2, 2)])
def test_what_is_not_an_sae_is_refused_by_its_type(source):
    assert "an SAE object" in refused(lambda: load_saes(source))


@pytest.mark.parametrize("key", [17.0, (17,), "layer 17", -1])
def test_a_key_that_is_no_layer_or_hook_is_refused(key):
    refused(lambda: load_saes({key: Recipe("topk").build()}))


def test_sae_ids_are_for_releases(directory):
    assert "sae_ids choose from a release" in refused(lambda: load_saes(directory, sae_ids=["a"]))


def test_a_dtype_that_no_sae_has_is_refused(directory):
    assert "dtype is one of float16" in refused(lambda: load_saes(directory, dtype="int8"))
