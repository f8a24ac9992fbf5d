"""Which hook an SAE's metadata name."""

import pytest

from depass_sae.errors import UserError
from depass_sae.saes import HOOK_NAMES, Hook, hook_of, parse_hook
from depass_sae.saes.hook import hook_in, transformer_lens_name

from .builders import Recipe


@pytest.mark.parametrize(
    ("metadata", "hook"),
    [
        ({"hook_name": "blocks.17.hook_resid_post"}, "17.resid_post"),
        ({"hook_name": "blocks.8.hook_resid_pre"}, "8.resid_pre"),
        ({"hook_name": "blocks.3.hook_resid_mid"}, "3.resid_mid"),
        ({"hook_name": "blocks.3.hook_attn_out"}, "3.attn_out"),
        ({"hook_name": "blocks.3.hook_mlp_out"}, "3.mlp_out"),
        ({"hook_name": "blocks.3.attn.hook_z"}, "3.hook_z"),
        ({"hook_name": "blocks.0.mlp.hook_in"}, "0.mlp_in"),
        ({"hook_point": "blocks.{layer}.hook_resid_pre", "hook_point_layer": 9}, "9.resid_pre"),
        ({"hook_name": "model.layers.4"}, "4.resid_post"),
        ({"hf_hook_name": "model.layers.17.output"}, "17.resid_post"),
        ({"hf_hook_name": "model.language_model.layers.2.output"}, "2.resid_post"),
        ({"hf_hook_name": "transformer.h.5"}, "5.resid_post"),
        ({"hf_hook_name": "model.layers.1.self_attn.o_proj.input"}, "1.hook_z"),
        (
            {"hf_hook_name": "model.layers.6.pre_feedforward_layernorm.output", "hook_name": "blocks.6.hook_mlp_in"},
            "6.mlp_in",
        ),
        ({"hf_hook_name": "model.layers.6.post_feedforward_layernorm.output"}, "6.mlp_out"),
        ({"hook_name": "blocks.3.ln2.hook_normalized"}, "3.ln2_normalized"),
        ({"hook_name": "hook_embed", "model_name": "gemma-2-2b"}, "0.resid_pre"),
        ({"hook_name": "hook_embed", "model_name": "pythia-70m-deduped"}, "0.resid_pre"),
        ({"hf_hook_name": "gpt_neox.layers.2.attention.dense.input"}, "2.hook_z"),
        # a Hugging Face name that families read differently: the other name decides
        ({"hf_hook_name": "model.layers.6.mlp.output", "hook_name": "blocks.6.hook_mlp_out"}, "6.mlp_out"),
    ],
)
def test_both_languages_are_understood_and_the_hugging_face_name_goes_first(metadata, hook):
    assert str(hook_in(metadata, "jumprelu")) == hook


@pytest.mark.parametrize(
    ("name", "model", "hook"),
    [
        ("model.layers.6.post_attention_layernorm.output", "google/gemma-2-2b", "6.attn_out"),
        ("model.language_model.layers.6.post_attention_layernorm.output", "google/gemma-3-4b-pt", "6.attn_out"),
        ("model.layers.6.post_attention_layernorm.output", "meta-llama/Llama-3.1-8B", "6.mlp_in"),
        ("model.layers.6.post_attention_layernorm.output", "openai/gpt-oss-20b", "6.mlp_in"),
        ("gpt_neox.layers.6.post_attention_layernorm.output", "EleutherAI/pythia-70m", "6.mlp_in"),
        ("model.layers.6.post_attention_layernorm.input", "Qwen/Qwen3-8B-Base", "6.resid_mid"),
        ("model.layers.6.pre_feedforward_layernorm.input", "gemma-2-9b", "6.resid_mid"),
        ("model.layers.6.self_attn.output", "mistral-7b", "6.attn_out"),
        ("gpt_neox.layers.6.attention.output", "pythia-70m-deduped", "6.attn_out"),
        ("transformer.h.6.attn.output", "gpt2-small", "6.attn_out"),
        ("transformer.h.6.ln_2.output", "gpt2-small", "6.mlp_in"),
        ("model.layers.6.mlp.output", "Qwen/Qwen3.5-27B", "6.mlp_out"),
    ],
)
def test_a_module_that_means_another_thing_in_another_family_is_read_by_the_model_that_is_named(name, model, hook):
    assert str(hook_in({"hf_hook_name": name, "model_name": model}, "standard")) == hook
    with pytest.raises(UserError, match="not a read point"):
        hook_in({"hf_hook_name": name}, "standard")


@pytest.mark.parametrize("name", ["mlp.output", "self_attn.output"])
def test_a_sublayers_own_output_is_nothing_where_a_norm_follows_it(name):
    with pytest.raises(UserError, match="not a read point"):
        hook_in({"hf_hook_name": f"model.layers.6.{name}", "model_name": "gemma-2-2b"}, "standard")


def test_the_mlp_input_by_its_ambiguous_name_is_taken_from_transcoders_only():
    metadata = {"hook_name": "blocks.3.hook_mlp_in"}
    assert hook_in(metadata, "jumprelu_transcoder") == Hook(3, "mlp_in")
    with pytest.raises(UserError, match="different things"):
        hook_in(metadata, "standard")


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({}, r'saes=\{"17.resid_post": path\}'),
        ({"hook_name": "hook_embed"}, "'hook_embed', which is not a read point"),
        ({"hook_name": "blocks.3.attn.hook_pattern"}, "not a read point"),
        ({"hook_name": "hook_embed", "model_name": "gpt2-small"}, "before gpt2 adds its learned positions"),
        ({"hook_name": "hook_embed", "model_name": "a-model-of-mine"}, "'hook_embed', which is not a read point"),
        ({"hook_name": "blocks.3.hook_resid_mid", "model_name": "pythia-70m"}, "virtual in parallel blocks"),
        ({"hf_hook_name": "gpt_neox.layers.3.post_attention_layernorm.input", "model_name": "pythia-70m"}, "virtual"),
        ({"hook_name": "blocks.3.attn.hook_z", "hook_head_index": 2}, "single attention head"),
    ],
)
def test_what_is_uncertain_is_refused(metadata, says):
    with pytest.raises(UserError, match=says):
        hook_in(metadata, "standard")


def test_a_layer_alone_means_resid_post_for_saes_that_name_no_hook():
    assert hook_of(Recipe("topk").build(), fallback_layer=12) == Hook(12, "resid_post")
    assert hook_of(Recipe("topk").build(hook_name="blocks.3.hook_mlp_out"), fallback_layer=12) == Hook(3, "mlp_out")


@pytest.mark.parametrize("name", HOOK_NAMES)
def test_a_hook_is_read_back_from_its_text_and_from_sae_lens_name(name):
    hook = Hook(3, name)
    assert parse_hook(str(hook)) == hook
    assert hook_in({"hook_name": transformer_lens_name(hook)}, "standard") == hook


@pytest.mark.parametrize("text", ["17", "resid_post", "17.resid", "-1.resid_post", "17.resid_post.x", ""])
def test_what_is_not_a_hook_is_refused(text):
    with pytest.raises(UserError):
        parse_hook(text)


def test_hooks_sort_by_layer():
    assert sorted([Hook(17, "resid_post"), Hook(3, "resid_pre")])[0].layer == 3
