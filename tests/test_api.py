"""``ds.load`` and its handle: whatever a user has, taken as it is, or refused in one line."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.passes import DEFAULT_RULE
from depass_sae.passes.forward import Allocation

from .attribution.tiny import (
    BOS,
    D_SAE,
    TEXT,
    VOCAB,
    fitting_sae,
    handle,
    model,
    random_sae,
    tokenizer,
    width,
)
from .passes.models import CONFIGS, D_MODEL, LAYERS, SHAPES

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
IDS = [BOS, 80, 90, 17]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer, which puts BOS in front."""
    path = tmp_path_factory.mktemp("model")
    model().save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def sae_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saes") / "layer_1"
    random_sae().save_model(path)
    return path


def refusal(call: Any) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def answer(lm: ds.LM, prompt: Any = TEXT, feature: str = "1/3") -> list[Any]:
    """What an attribution says, without the names of model and SAE."""
    return lm.attribute_tokens(prompt, feature).to_dict()["targets"]


# ------------------------------------------------------------------------------------------------------- what is taken


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_in_the_notebook_already_is_taken_as_it_is(shape: str) -> None:
    lm = ds.load(model(shape), tokenizer(), saes=[random_sae(d_in=width(shape, "resid_post"))])
    assert lm.model is model(shape)
    assert lm.tokenizer is tokenizer()
    assert list(lm.saes) == [1]
    assert lm.attribute_tokens(TEXT, "1/3").completeness_error < 1e-4


def test_a_directory_gives_what_the_objects_give(directory: Path, sae_directory: Path) -> None:
    from_objects = handle(random_sae())
    for path in (directory, str(directory)):
        lm = ds.load(path, saes=sae_directory)
        assert lm.tokenizer(TEXT)["input_ids"] == tokenizer()(TEXT)["input_ids"]
        for mine, theirs in zip(answer(lm), answer(from_objects), strict=True):
            assert mine["pos"] == theirs["pos"]
            assert mine["pre_activation"] == pytest.approx(theirs["pre_activation"], rel=1e-5)
    assert lm.attribute_tokens(TEXT, "1/3").to_dict()["model"] == str(directory)


def test_tokenizer_and_saes_may_be_left_out() -> None:
    lm = ds.load(model())
    assert lm.tokenizer is None
    assert lm.saes == {}
    att = lm.attribute_tokens(IDS, logit=5)
    assert att.tokens == ("#0", "#80", "#90", "#17")
    assert "without a tokenizer" in refusal(lambda: lm.features(TEXT))


def test_a_directory_without_tokenizer_files_is_asked_by_ids(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    lm = ds.load(tmp_path, saes=random_sae())
    assert lm.tokenizer is None
    assert answer(lm, IDS)[0]["pre_activation"] == pytest.approx(answer(handle(random_sae()), IDS)[0]["pre_activation"])


def test_another_tokenizer_may_go_with_a_directory(directory: Path) -> None:
    assert ds.load(directory, tokenizer(adds_bos=False)).tokenizer is tokenizer(adds_bos=False)


def test_a_directorys_dtype_is_the_checkpoints_own_unless_another_is_asked_for(tmp_path: Path) -> None:
    model("llama", torch.bfloat16).save_pretrained(tmp_path)
    assert ds.load(tmp_path).model.dtype == torch.bfloat16
    assert ds.load(tmp_path, dtype="float32").model.dtype == torch.float32
    assert ds.load(tmp_path, dtype=torch.float64).model.dtype == torch.float64


def test_its_repr_says_what_is_loaded() -> None:
    assert repr(handle([random_sae(), random_sae(hook="0.mlp_out")])) == (
        "LM('LlamaForCausalLM', SAEs at 0.mlp_out, 1.resid_post)"
    )
    assert repr(handle()) == "LM('LlamaForCausalLM', SAEs at none)"


# ---------------------------------------------------------------------------------------------------------------- SAEs


@pytest.mark.parametrize("key", [1, "1", "1.resid_post"])
@pytest.mark.parametrize("as_directory", [False, True])
def test_an_sae_that_does_not_name_its_hook_is_given_one_by_its_key(
    key: Any, as_directory: bool, tmp_path: Path
) -> None:
    sae: Any = random_sae(hook=None)
    if as_directory:
        sae.save_model(tmp_path / "sae")
        sae = tmp_path / "sae"
    lm = handle({key: sae})
    assert list(lm.saes) == [1]
    document = lm.attribute_tokens(TEXT, "1/3").to_dict()
    assert document["feature"] == {"layer": 1, "index": 3, "hook": "resid_post"}
    assert document["sae"]["hook"] == "1.resid_post"
    assert answer(lm) == answer(handle(random_sae()))


def test_an_sae_whose_hook_is_nowhere_named_is_refused() -> None:
    assert "does not say which hook it reads" in refusal(lambda: handle(random_sae(hook=None)))


def test_saes_are_keyed_by_layer_and_by_hook_where_two_share_one() -> None:
    lm = handle({"2.resid_post": random_sae(hook=None), "0.attn_out": random_sae(hook=None), 0: random_sae(hook=None)})
    assert list(lm.saes) == ["0.attn_out", "0.resid_post", 2]
    for name in ("0.attn_out/3", "0.resid_post/3", "2/3", "2.resid_post/3"):
        assert lm.attribute_tokens(TEXT, name).completeness_error < 1e-4
    assert "write the feature as 0.attn_out/INDEX or 0.resid_post/INDEX" in refusal(
        lambda: lm.attribute_tokens(TEXT, "0/3")
    )


def test_layers_choose_among_several(tmp_path: Path) -> None:
    for layer in range(3):
        random_sae(hook=f"{layer}.resid_post").save_model(tmp_path / f"layer_{layer}")
    assert list(handle(tmp_path).saes) == [0, 1, 2]
    assert list(handle(tmp_path, layers=[2, 0]).saes) == [0, 2]
    assert "no SAE at layer 7" in refusal(lambda: handle(tmp_path, layers=[7]))


def test_an_sae_of_another_width_is_refused() -> None:
    assert refusal(lambda: handle(random_sae(d_in=16))) == (
        f"the SAE at 1.resid_post reads 16 dimensions, but resid_post of LlamaForCausalLM has {D_MODEL}"
    )


def test_the_width_of_hook_z_is_that_of_the_heads() -> None:
    heads = width("mistral", "hook_z")
    assert heads != D_MODEL
    lm = handle(random_sae(hook="1.hook_z", d_in=heads), "mistral")
    assert lm.attribute_tokens(TEXT, "1/3").completeness_error < 1e-4
    assert f"hook_z of MistralForCausalLM has {heads}" in refusal(
        lambda: handle(random_sae(hook="1.hook_z", d_in=D_MODEL), "mistral")
    )


def test_an_sae_between_sublayers_that_read_the_same_stream_is_refused() -> None:
    assert "nothing passes between them" in refusal(lambda: handle(random_sae(hook="1.resid_mid"), "gpt_neox"))
    assert list(handle(random_sae(hook="1.resid_mid"), "gpt_neox_serial").saes) == [1]


@pytest.mark.parametrize("hook", ["3.resid_post", "99.hook_z"])
def test_an_sae_of_a_layer_that_the_model_does_not_have_is_refused(hook: str) -> None:
    assert refusal(lambda: handle(random_sae(hook=hook))) == (
        f"the SAE at {hook} cannot be on LlamaForCausalLM, whose layers are 0 to {LAYERS - 1}"
    )


def test_what_is_no_sae_is_refused() -> None:
    assert "SAEs are a release, a directory, an SAE object" in refusal(lambda: handle(5))
    assert "there is no SAE directory or sae-lens release 'no-such-release'" in refusal(
        lambda: handle("no-such-release")
    )


# ----------------------------------------------------------------------------------------------------------------- BOS


@pytest.mark.parametrize("prepend_bos", [True, False, None])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_bos_is_there_once_where_the_tokenizer_or_the_saes_want_it(adds_bos: bool, prepend_bos: bool | None) -> None:
    lm = handle(fitting_sae(prepend_bos=prepend_bos), adds_bos=adds_bos)
    ids = lm.features(TEXT).to_dict()["token_ids"]
    body = tokenizer(adds_bos=False)(TEXT)["input_ids"]
    assert ids == ([BOS, *body] if adds_bos or prepend_bos else body)


def test_without_saes_the_tokenizer_decides_about_bos() -> None:
    for adds_bos in (True, False):
        att = handle(adds_bos=adds_bos).attribute_tokens(TEXT, logit=5)
        assert (att.tokens[0] == "<bos>") == adds_bos


def test_ids_get_no_bos_whatever_the_saes_want() -> None:
    for adds_bos in (True, False):
        lm = handle(fitting_sae(prepend_bos=True), adds_bos=adds_bos)
        for prompt in (IDS[1:], torch.tensor(IDS[1:]), torch.tensor([IDS[1:]])):
            assert lm.features(prompt).to_dict()["token_ids"] == IDS[1:]
            assert lm.attribute_tokens(prompt, "1/3").to_dict()["token_ids"] == IDS[1:]
            assert len(lm.decompose(prompt, layer=1).whole) == len(IDS) - 1


def test_a_text_and_its_ids_are_the_same_question() -> None:
    lm = handle(random_sae())
    ids = tokenizer()(TEXT, return_tensors="pt")["input_ids"]
    assert lm.attribute_tokens(TEXT, "1/3").to_dict()["targets"] == lm.attribute_tokens(ids, "1/3").to_dict()["targets"]


# ------------------------------------------------------------------------------------------------------ left as it was


def state(module: torch.nn.Module) -> dict[str, Any]:
    return {
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "training": [m.training for m in module.modules()],
        "gradients": [(p.requires_grad, p.grad is None) for p in module.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()],
        "attention": getattr(getattr(module, "config", None), "_attn_implementation", None),
    }


def assert_same(module: torch.nn.Module, before: dict[str, Any]) -> None:
    after = state(module)
    weights = before.pop("weights")
    assert all(torch.equal(value, weights[name]) for name, value in after.pop("weights").items())
    assert after == before


@pytest.mark.parametrize("trace_dtype", [None, "float64"])
def test_model_and_saes_are_left_as_they_were(trace_dtype: str | None) -> None:
    given, sae, words = copy.deepcopy(model()), random_sae(), tokenizer(adds_bos=False)
    given.train()
    sae.train()
    before, sae_before = state(given), state(sae)
    lm = ds.load(given, words, saes=[sae], trace_dtype=trace_dtype)
    ids = [5, 6, 7, 8]
    lm.features(ids)
    lm.attribute_tokens(ids, "1/3", ablate=1)
    lm.attribute_tokens(ids, logit=4)
    lm.decompose(ids, layer=2)
    lm.contrast(ids, [5, 9], "1/3")
    lm.attribute_heads(ids, "1/3", by_token=True)
    lm.attribute_modules(ids, "1/3", rule="softmax")
    lm.attribute_neurons(ids, "1/3")
    lm.attribute_subspace(ids, "1/3", subspace=ds.Subspace(torch.eye(D_MODEL)[:2], 0))
    lm.attribute_attention(ids, 2, 1, 3, 2, by="features", against="mean")
    lm.votes(ids, ds.Neurons(1, [[0, 1]]))
    for question in ({"feature": "1/999"}, {"feature": "1/3", "rule": "nonsense"}, {"feature": "1/3", "pos": 99}):
        refusal(lambda: lm.attribute_tokens(ids, **question))  # noqa: B023
    assert_same(given, before)
    assert_same(sae, sae_before)


def test_answers_do_not_depend_on_what_was_asked_before() -> None:
    lm = handle(random_sae())
    first = lm.attribute_tokens(TEXT, "1/3").to_dict()
    lm.attribute_tokens([5, 6], "1/4", rule="max", ablate=1)
    assert lm.attribute_tokens(TEXT, "1/3").to_dict() == first


def test_gradients_are_not_kept(capsys: pytest.CaptureFixture[str]) -> None:
    lm = handle(random_sae())
    assert not lm.attribute_tokens(TEXT, "1/3").contributions.requires_grad
    assert not lm.decompose(TEXT, layer=1).parts.requires_grad
    for found in (lm.attribute_heads(TEXT, "1/3"), lm.attribute_attention(TEXT, 1, 1, 3, 2)):
        assert not (found.contributions if hasattr(found, "contributions") else found.values).requires_grad
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize(
    ("source", "labels"),
    [
        (ds.Heads(1), [f"head {h}" for h in range(4)]),
        (ds.Modules(1, "mlp"), ["mlp 1"]),
        (ds.Neurons(0, [[1, 2], [3]]), ["neurons [1, 2]", "neuron 3"]),
        (ds.Subspace([torch.eye(D_MODEL)[:2], torch.eye(D_MODEL)[2:3]], 1), ["subspace 0", "subspace 1"]),
        (ds.Spans([[1, 2]], ["word"]), ["word"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_source_can_be_carried_and_sums_to_the_stream(source: Any, labels: list[str]) -> None:
    lm = handle()
    for rule in ("softmax", "half"):
        found = lm.decompose(IDS, source, layer=2, read="mlp_out", rule=rule)
        assert list(found.labels) == [*labels, "bias", "rest"]
        assert found.completeness_error < 1e-4


def test_a_place_that_is_not_named_is_what_the_layer_hands_on() -> None:
    lm, rows = handle(random_sae()), torch.eye(D_MODEL)[:3]
    left_open, named = ds.Subspace(rows, 1), ds.Subspace(rows, 1, "resid_post")
    seen = lm._subject.trace(lm.encode(IDS), None)
    assert left_open.start(seen).at == lm.decompose(IDS, layer=1).place == (1, "resid_post")
    found, expected = (lm.attribute_subspace(IDS, "1/3", subspace=space) for space in (left_open, named))
    assert found.to_dict() == expected.to_dict()
    assert found.hook == "resid_post"
    assert lm.votes(IDS, left_open).votes == lm.votes(IDS, named).votes


def test_one_rule_is_the_default_of_every_question() -> None:
    lm = handle([random_sae(), random_sae(hook="0.resid_post")])
    space, pair = ds.Subspace(torch.eye(D_MODEL)[:2], 0), {"layer": 1, "head": 2, "query": 3, "key": 1}
    for ask in (
        lambda **how: lm.attribute_tokens(IDS, "1/3", **how).to_dict(),
        lambda **how: lm.attribute_subspace(IDS, "1/3", subspace=space, **how).to_dict(),
        lambda **how: lm.attribute_neurons(IDS, "1/3", **how).to_dict(),
        lambda **how: lm.attribute_attention(IDS, **pair, **how).to_dict(),
        lambda **how: lm.decompose(IDS, layer=2, **how).parts.tolist(),
        lambda **how: lm.votes(IDS, ds.Modules(0, "attn"), **how).votes,
        lambda **how: lm.graph(IDS, "1/3", **how).graph["rule"],
        lambda **how: lm.card("1/3", IDS, **how).to_dict(),
    ):
        assert ask() == ask(rule=None) == ask(rule="half") != ask(rule="softmax")
    assert Allocation().rule == DEFAULT_RULE == "half"  # what a function does that is not asked through a handle


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(name: str, value: float) -> None:
    damaged = copy.deepcopy(model())
    damaged.get_parameter(name).data.view(-1)[3] = value
    assert "NaN" in refusal(lambda: ds.load(damaged))


def test_an_sae_with_nan_weights_is_refused() -> None:
    sae = random_sae()
    sae.W_enc.data[0, 0] = float("nan")
    assert "W_enc holds NaN or infinite values" in refusal(lambda: handle(sae))


def test_a_family_without_an_adapter_is_refused() -> None:
    config = AutoConfig.for_model(
        "gpt_neo", vocab_size=VOCAB, hidden_size=16, num_layers=1, num_heads=2, attention_types=[[["global"], 1]]
    )
    said = refusal(lambda: ds.load(AutoModelForCausalLM.from_config(config)))
    assert said.startswith("models of type 'gpt_neo' are not supported; supported types are gemma, ")


def test_a_model_without_an_unembedding_is_refused() -> None:
    assert "has no unembedding; load it as AutoModelForCausalLM" in refusal(
        lambda: ds.load(AutoModel.from_config(CONFIGS["llama"]()))
    )


def test_what_is_no_model_is_refused() -> None:
    assert "are not supported" in refusal(lambda: ds.load(torch.nn.Linear(2, 2)))


def test_settings_of_loading_are_refused_for_an_object() -> None:
    for setting in ({"dtype": "float32"}, {"device": "cpu"}):
        assert "a model object is taken as it is" in refusal(lambda: ds.load(model(), **setting))  # noqa: B023


def test_an_unknown_dtype_is_refused(directory: Path) -> None:
    assert "unknown dtype 'float8'; choose one of" in refusal(lambda: ds.load(directory, dtype="float8"))
    assert "unknown dtype 'float8'; choose one of" in refusal(lambda: ds.load(directory, trace_dtype="float8"))


def test_a_trace_in_a_lower_dtype_than_the_models_is_refused() -> None:
    said = refusal(lambda: ds.load(model(), trace_dtype="bfloat16"))
    assert said == "trace_dtype bfloat16 is lower than the model's float32"


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path) -> None:
    assert "no config.json" in refusal(lambda: ds.load(tmp_path))
    assert "there is no directory" in refusal(lambda: ds.load(tmp_path / "missing"))


def test_a_mistyped_setting_is_not_passed_over() -> None:
    lm = handle(random_sae())
    for ask in (lm.attribute_tokens, lm.attribute_heads, lm.attribute_modules, lm.attribute_neurons):
        with pytest.raises(TypeError, match="there is no setting 'rul'; there are rule, "):
            ask(TEXT, "1/3", rul="half")
    with pytest.raises(TypeError, match="there is no setting 'by'"):
        lm.attribute_heads(TEXT, "1/3", by="word")


def test_a_user_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=f"features are 0 to {D_SAE - 1}"):
        handle(random_sae()).attribute_tokens(TEXT, "1/999")


# -------------------------------------------------------------------------------------------------------------- imports


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, json, depass_sae as ds; dir(ds); "
        "json.dump([ds.__version__, *sorted({'torch', 'transformers', 'sae_lens', 'scipy', 'pandas', 'rich'} "
        "& set(sys.modules))], sys.stdout)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == [ds.__version__]


def test_every_public_name_is_there() -> None:
    assert set(ds.__all__) <= set(dir(ds))
    for name in ds.__all__:
        assert getattr(ds, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = ds.nonsense  # type: ignore[attr-defined]
