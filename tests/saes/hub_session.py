"""Run by test_release.py in a process of its own: loads SAEs from a local server that plays the Hugging Face hub.

huggingface_hub reads HF_ENDPOINT when it is imported, so the server is up before that. The server answers as the hub
does, by the folder that is asked for: layer 25 is there, layer 26 is gated, 27 is missing, 28 private, 29 out of order.
Prints one JSON object: what came back of each attempt.
"""

import json
import os
import sys
import time

import torch
from safetensors.torch import save

from tests.local_hub import serve

D_MODEL, D_SAE, THRESHOLD, AVERAGE_NORM = 4, 6, 0.5, 8.0

generator = torch.Generator().manual_seed(0)
weights = {
    "encoder.weight": torch.randn(D_SAE, D_MODEL, generator=generator),
    "encoder.bias": torch.randn(D_SAE, generator=generator),
    "decoder.weight": torch.randn(D_MODEL, D_SAE, generator=generator),
    "decoder.bias": torch.randn(D_MODEL, generator=generator),
}
config = {
    "d_model": D_MODEL,
    "d_sae": D_SAE,
    "jump_relu_threshold": THRESHOLD,
    "dataset_average_activation_norm": {"in": AVERAGE_NORM},
    "hook_point_in": "blocks.25.hook_resid_post",
}
REPOSITORY = "fnlp/Llama3_1-8B-Base-LXR-8x"
FILES = {
    "Llama3_1-8B-Base-L25R-8x/hyperparams.json": json.dumps(config).encode(),
    "Llama3_1-8B-Base-L25R-8x/checkpoints/final.safetensors": save(weights),
}
SPARSIFY = "EleutherAI/sae-tiny"
WHOLE = {  # that repository
    "config.json": json.dumps({"model": "EleutherAI/pythia-160m"}).encode(),
    "layers.3/cfg.json": json.dumps({"d_in": D_MODEL, "num_latents": D_SAE, "k": 2}).encode(),
    "layers.3/sae.safetensors": save(
        {
            "encoder.weight": weights["encoder.weight"],
            "encoder.bias": weights["encoder.bias"],
            "W_dec": weights["decoder.weight"].T.contiguous(),
            "b_dec": weights["decoder.bias"],
        }
    ),
    "layers.4/cfg.json": b"{",
}
REFUSALS = {
    f"{REPOSITORY}/resolve/main/Llama3_1-8B-Base-L26R-8x": (403, "GatedRepo"),
    f"{REPOSITORY}/resolve/main/Llama3_1-8B-Base-L28R-8x": (401, "RepoNotFound"),
    f"{REPOSITORY}/resolve/main/Llama3_1-8B-Base-L29R-8x": (500, ""),
    "somebody/L28R": (401, "RepoNotFound"),
}


def attempt(release="llama_scope_lxr_8x", **arguments):
    from depass_sae.errors import UserError
    from depass_sae.saes import describe, load_saes

    try:
        return [describe(sae) for sae in load_saes(release, **arguments).values()]
    except UserError as error:
        return str(error)


def as_numbers(sae):
    return {
        "threshold": sae.threshold.tolist(),
        "W_enc": (sae.W_enc / weights["encoder.weight"].T).flatten().tolist(),
        "b_enc": (sae.b_enc - weights["encoder.bias"]).tolist(),
        "normalize_activations": sae.cfg.normalize_activations,
        "dtype": str(sae.W_enc.dtype),
    }


def main():
    with serve() as hub:
        os.environ["HF_ENDPOINT"] = hub.address
        time.sleep = lambda seconds: None  # huggingface_hub waits longer and longer between its retries
        hub.add(REPOSITORY, FILES)
        hub.add(SPARSIFY, WHOLE)
        hub.refused |= REFUSALS
        results = ask()
    results["network down"] = attempt(layers=[30])
    results["network down, in the cache"] = attempt(layers=[25])
    json.dump(results, sys.stdout)


def ask():
    from depass_sae.saes import load_saes

    results = {"loaded": attempt(layers=[25]), "by id": attempt(sae_ids=["l25r_8x"])}
    results["weights"] = as_numbers(*load_saes("llama_scope_lxr_8x", layers=[25]).values())
    for name, layer in {"gated": 26, "missing": 27, "private": 28, "failing": 29}.items():
        results[name] = attempt(layers=[layer])
    sparsify = {"release": SPARSIFY, "sae_format": "sparsify"}
    results["sparsify"] = attempt(**sparsify, sae_ids="layers.3")
    results["sparsify, damaged"] = attempt(**sparsify, sae_ids="layers.4")
    results["sparsify, none"] = attempt(**sparsify, sae_ids="layers.9")
    results["sparsify, all"] = attempt(**sparsify)
    results["sparsify, nobody's"] = attempt("somebody/L28R", sae_ids="layers.3", sae_format="sparsify")
    return results


if __name__ == "__main__":
    main()
