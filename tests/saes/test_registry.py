"""Whether the registry is read as sae-lens reads it, and what is said of SAEs that cannot be used."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub.errors import EntryNotFoundError

from depass_sae.saes import registry as module
from depass_sae.saes.direction import ARCHITECTURES
from depass_sae.saes.hook import hook_in
from depass_sae.saes.model_types import BEGINNINGS, model_type_of
from depass_sae.saes.registry import ASSUMED, FOLDED_ONCE, ListedSAE, registry, why_not

LISTED = [sae for release in registry().values() for sae in release.saes]
# dictionary_learning's name for what sae-lens takes for an architecture
CLASSES = {
    "topk": "AutoEncoderTopK",
    "standard": "AutoEncoder",
    "gated": "GatedAutoEncoder",
    "jumprelu": "BatchTopKSAE",
}


@pytest.fixture
def every_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all models of the registry were supported."""
    types = {sae.model_type for sae in LISTED}
    monkeypatch.setattr(module, "FAMILIES", [SimpleNamespace(model_types=types)])


def written(sae: ListedSAE, row: dict[str, object], name: str) -> object:
    """The file on the hub that a loader of sae-lens asks for, as far as it is assumed."""
    layer = 0 if sae.hook_name is None else int(sae.hook_name.split(".")[1])
    hook = str(row.get("hook", "")).format(layer=layer)
    trainer = {"layer": layer, "dict_class": CLASSES.get(str(row.get("architecture"))), "k": 4}
    sizes = {"activation_dim": 4, "dict_size": 8, "lm_name": "model"}
    scope = {"d_model": 4, "d_sae": 8, "expansion_factor": 2, "hook_point_in": hook, "jump_relu_threshold": 0.1}
    temporal = dict.fromkeys(
        ("exp_factor", "n_heads", "n_attn_layers", "bottleneck_factor", "kval_topk", "tied_weights", "scaling_factor"),
        1,
    )
    topk = {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}}
    return {
        "cfg.json": {"d_in": 4, "d_sae": 8, "dtype": "float32", "device": "cpu", "hook_name": sae.hook_name}
        | (row | topk if row.get("architecture") == "topk" else row),
        "_cfg.json": {"act_size": 4, "dict_size": 8, "act_name": hook},
        "hyperparams.json": scope | {"dataset_average_activation_norm": {"in": 2.0}},
        "config.json": scope | {"trainer": trainer | sizes, "buffer": {"ctx_len": 8}},
        "wandb-config.yaml": {key: {"value": 4} for key in ("d_model", "d_feature", "batch_size")},
        "config.yaml": {
            "model_name": "model",
            "feature_input_hook": hook.partition(".")[2].partition(".")[2],
            "feature_output_hook": "hook_mlp_out",
        },
        "conf.yaml": {"llm": {"dimin": 4}, "data": {"dtype": "float32"}, "sae": temporal | {"sae_diff_type": "topk"}},
    }[name]


def test_every_sae_is_read_as_sae_lens_reads_it(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.loading.pretrained_saes_directory import get_norm_scaling_factor

    rows, now = yaml.safe_load(ASSUMED.read_text()), {}

    def download(repo_id: str, filename: str, **_: object) -> str:
        name = "_cfg.json" if filename.endswith("_cfg.json") else filename.rpartition("/")[2]
        if name == "config.json" and "gemma-scope-2-" in repo_id:
            raise EntryNotFoundError(filename)  # sae-lens then goes by the path
        (tmp_path / name).write_text(json.dumps(written(now["sae"], rows.get(now["sae"].release, {}), name)))
        return str(tmp_path / name)

    shapes = {"w_enc": [4, 8], "w_dec": [8, 4]}
    shapes_of_layers = {f"b_{part}_{layer}": [4] for part in ("enc", "dec") for layer in range(100)}
    monkeypatch.setattr(loaders, "hf_hub_download", download)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", lambda *_: shapes | shapes_of_layers)
    for sae in LISTED:
        now["sae"] = sae
        theirs = loaders.load_sae_config_from_huggingface(sae.release, sae.sae_id)
        metadata, norm = theirs["metadata"], theirs["normalize_activations"]
        if norm == FOLDED_ONCE and get_norm_scaling_factor(sae.release, sae.sae_id) is not None:
            norm = "none"
        kwargs = metadata.get("model_from_pretrained_kwargs") or {}
        assert sae == ListedSAE(
            sae.release,
            sae.sae_id,
            sae.model,
            model_type_of(sae.model),
            theirs["architecture"],
            metadata["hook_name"],
            metadata.get("hf_hook_name"),
            norm,
            theirs["apply_b_dec_to_input"],
            theirs["reshape_activations"] == "hook_z",
            bool(kwargs.get("center_writing_weights")),
            sae.summed,  # of which sae-lens's configurations say nothing
        )
        assert hook_in(metadata, theirs["architecture"]) == sae.hook


def test_the_registry_is_whole() -> None:
    assert len(registry()) == 170
    assert len(LISTED) == 13_857
    assert set(yaml.safe_load(ASSUMED.read_text())) <= set(registry())
    assert {sae.model_type for sae in LISTED} <= set(BEGINNINGS.values())
    assert Counter(sae.hook.name for sae in LISTED) == {
        "resid_post": 4775,
        "mlp_in": 3784,
        "mlp_out": 2598,
        "hook_z": 2480,
        "attn_out": 94,
        "resid_pre": 50,
        "resid_mid": 50,
        "ln2_normalized": 26,
    }


def test_nearly_all_can_be_used_where_their_models_can(every_family: None) -> None:
    assert sum(why_not(sae) is None for sae in LISTED) >= 13_800


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"architecture": "matching_pursuit"}, "a matching_pursuit SAE has no pre-activation that is affine"),
        ({"normalize_activations": "another"}, "the normalisation 'another' is not supported"),
        ({"model_type": "gpt_neo"}, "models of type gpt_neo are not supported"),
        ({"model_type": None}, "it is not known what kind of model gpt2-small is"),
        ({"hook_name": "blocks.3.attn.hook_pattern"}, "'blocks.3.attn.hook_pattern', which is not a read point"),
        ({"hook_name": "hook_embed"}, "before gpt2 adds its learned positions"),
        ({"hook_name": None}, "only in its file on the hub"),
        ({"architecture": None}, "only in its file on the hub"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(changes: dict[str, object], why: str | None) -> None:
    fields = {"architecture": "standard", "hook_name": "blocks.3.hook_resid_pre", "model_type": "gpt2"} | changes
    said = why_not(ListedSAE("release", "id", "gpt2-small", **fields))  # type: ignore[arg-type]
    assert said is None if why is None else why in said
    assert "\n" not in (said or "")


def test_reasons_come_from_what_can_be_read(every_family: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ARCHITECTURES, "gated")
    gated = [why_not(sae) for sae in LISTED if sae.architecture == "gated"]
    assert len(gated) == 41
    assert set(gated) == {"a gated SAE has no pre-activation that is affine in what it reads"}


def test_a_release_that_came_after_this_version_is_listed_without_a_guess() -> None:
    entry = {"model": "gpt2-small", "repo_id": "some/one", "saes": [{"id": "layer_3", "path": 3}]}
    for conversion in ({}, {"conversion_func": "newer"}):
        (sae,) = module._release("new", entry | conversion, {}).saes
        assert (sae.architecture, sae.hook_name) == (None, None)
        assert why_not(sae) == "what it is stands only in its file on the hub: load it to see"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gpt2-small", "gpt2"),
        ("google/gemma-3-270m-it", "gemma3_text"),
        ("google/gemma-3-27b-pt", "gemma3"),
        ("Qwen/Qwen3.5-35B-A3B-Base", "qwen3_5_moe"),
        ("Qwen/Qwen3.5-27B", "qwen3_5"),
        ("Qwen/Qwen3-30B-A3B-Base", "qwen3_moe"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "llama"),
        ("gemma-2b-it", "gemma"),
        ("a-model-of-mine", None),
        (None, None),
    ],
)
def test_a_models_type_is_known_by_the_longest_beginning_of_its_name(name: str | None, kind: str | None) -> None:
    assert model_type_of(name) == kind
