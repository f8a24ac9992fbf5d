"""Releases: choosing from the registry without a network, and the hub with all that it can answer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

from depass_sae.errors import UserError
from depass_sae.saes import load_saes
from depass_sae.saes.release import choose_ids, layer_of_id


@pytest.fixture(scope="module")
def registry():
    return get_pretrained_saes_directory()


@pytest.mark.parametrize(
    ("sae_id", "layer"),
    [
        ("l25r_8x", 25),
        ("blocks.8.hook_resid_pre", 8),
        ("layer_20/width_16k/canonical", 20),
        ("resid_post_layer_3_trainer_1", 3),
        ("transcoder/layer_17_width_16k_l0_big", 17),
        ("layer0", 0),
        ("blocks.12.hook_resid_post__trainer_5_step_46322", 12),
        ("embedding/width_4k/average_l0_6", None),
    ],
)
def test_the_layer_is_read_off_the_id(sae_id, layer):
    assert layer_of_id(sae_id) == layer


def test_every_id_of_the_registry_has_a_layer_but_those_on_the_embedding(registry):
    ids = {sae_id for release in registry.values() for sae_id in release.saes_map}
    assert all("embedding" in sae_id for sae_id in ids if layer_of_id(sae_id) is None)


def test_layers_choose_the_ids_of_a_release(registry):
    ids = list(registry["llama_scope_lxr_8x"].saes_map)
    assert choose_ids("llama_scope_lxr_8x", ids, None, [25, 31]) == ["l25r_8x", "l31r_8x"]
    assert choose_ids("one", ["layer_50"], None, None) == ["layer_50"]


@pytest.mark.parametrize(
    ("release", "arguments", "says"),
    [
        ("gemma-scope-2b-pt-res", {"layers": [20]}, r"SAEs at layer 20: choose with sae_ids; they are layer_20/width"),
        ("llama_scope_lxr_8x", {"layers": [32]}, r"no SAE at layer 32; its layers are 0, 1, 2, .* 31$"),
        ("llama_scope_lxr_8x", {}, r"has 32 SAEs: choose with layers or sae_ids; it has l0r_8x, .* and 20 more"),
        ("llama_scope_lxr_8x", {"sae_ids": "l25_8x"}, r"no SAE 'l25_8x'; close to it: l25r_8x"),
        (
            "llama_scope_lxr8x",
            {"layers": [25]},
            r"no SAE directory or sae-lens release .*; close to it: llama_scope_lxr",
        ),
    ],
)
def test_what_a_release_does_not_have_is_refused_with_what_it_has(release, arguments, says):
    with pytest.raises(UserError, match=says) as raised:
        load_saes(release, **arguments)
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """What hub_session.py saw of a hub that runs on this machine."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    kept |= {"HF_HOME": str(tmp_path_factory.mktemp("hub")), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    kept["PYTHONPATH"] = os.pathsep.join(path for path in [str(Path(__file__).parents[2]), *sys.path] if path)
    script = Path(__file__).with_name("hub_session.py")
    done = subprocess.run([sys.executable, script], env=kept, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "stderr": done.stderr}


def test_a_release_loads_through_the_hub(session):
    assert session["loaded"] == session["by id"]
    assert session["loaded"] == [
        {
            "release": "llama_scope_lxr_8x",
            "id": "l25r_8x",
            "neuronpedia_id": "llama3.1-8b/25-llamascope-res-32k",
            "architecture": "jumprelu",
            "d_in": 4,
            "d_sae": 6,
            "hook": "25.resid_post",
        }
    ]


def test_llama_scope_gets_its_threshold_and_its_norm_folded_in(session, registry):
    weights = session["weights"]
    factor = registry["llama_scope_lxr_8x"].norm_scaling_factor["l25r_8x"]
    assert weights["threshold"] == pytest.approx([0.5 * 4**0.5 / 8.0] * 6)
    assert weights["W_enc"] == pytest.approx([factor] * 24)
    assert weights["b_enc"] == pytest.approx([0] * 6)
    assert weights["normalize_activations"] == "none"
    assert weights["dtype"] == "torch.float32"


def test_folders_of_a_repository_load_in_the_format_that_is_named(session):
    assert session["sparsify"] == [
        {
            "release": "EleutherAI/sae-tiny",
            "id": "layers.3",
            "neuronpedia_id": None,
            "architecture": "topk",
            "d_in": 4,
            "d_sae": 6,
            "hook": "3.resid_post",
        }
    ]
    assert "layers.4 holds no SAE: neither cfg.json and sae.safetensors (sparsify)" in session["sparsify, damaged"]
    assert session["sparsify, none"] == "EleutherAI/sae-tiny has no folder layers.9; close to it: layers.4, layers.3"
    assert len(session["sparsify, all"]) == 1
    assert "the hub has no repository somebody/L28R, or it is private" in session["sparsify, nobody's"]


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("gated", ("is gated", "accept its licence on https://huggingface.co/fnlp/", "HF_TOKEN", "hf auth login")),
        ("missing", ("does not hold the file (404)",)),
        ("private", ("has no repository fnlp/Llama3_1-8B-Base-LXR-8x, or it is private",)),
        ("failing", ("answered 500", "try again later")),
        ("network down", ("not in the local cache", "cannot be reached")),
    ],
)
def test_what_the_hub_refuses_is_told_in_one_line(session, case, says):
    message = session[case]
    assert message.startswith("cannot load l")
    assert all(words in message for words in says), message
    assert "\n" not in message


def test_what_is_in_the_cache_needs_no_network(session):
    assert session["network down, in the cache"] == session["loaded"]


def test_the_hub_session_leaves_the_terminal_empty(session):
    assert session["stderr"] == ""


def test_importing_the_package_does_not_import_sae_lens():
    code = "import sys, depass_sae.saes; sys.exit('sae_lens' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
