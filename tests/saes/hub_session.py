"""Run by test_release.py in a process of its own: loads SAEs from a local server that plays the Hugging Face hub.

huggingface_hub reads HF_ENDPOINT when it is imported, so the server is up before that. The server answers as the hub
does, by the folder that is asked for: layer 25 is there, layer 26 is gated, 27 is missing, 28 private, 29 out of order.
Prints one JSON object: what came back of each attempt.
"""

import json
import os
import sys
import time
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import torch
from safetensors.torch import save

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
REPOSITORY = "/fnlp/Llama3_1-8B-Base-LXR-8x/resolve/main"
FILES = {
    f"{REPOSITORY}/Llama3_1-8B-Base-L25R-8x/hyperparams.json": json.dumps(config).encode(),
    f"{REPOSITORY}/Llama3_1-8B-Base-L25R-8x/checkpoints/final.safetensors": save(weights),
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
COMMIT = "a" * 40
FILES |= {f"/{SPARSIFY}/resolve/{COMMIT}/{name}": body for name, body in WHOLE.items()}
TREE = [{"type": "file", "path": name, "size": len(body), "oid": "0" * 40} for name, body in WHOLE.items()]
LISTED = {"id": SPARSIFY, "sha": COMMIT, "siblings": [{"rfilename": name} for name in WHOLE]}
FILES |= {
    f"/api/models/{SPARSIFY}/revision/main": json.dumps(LISTED).encode(),
    f"/api/models/{SPARSIFY}/tree/{COMMIT}?recursive=true&expand=false": json.dumps(TREE).encode(),
}
REFUSALS = {
    "L26R": (403, "GatedRepo"),
    "L27R": (404, "EntryNotFound"),
    "L28R": (401, "RepoNotFound"),
    "L29R": (500, ""),
}


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self):
        if self.path in FILES:
            body = FILES[self.path]
            etag = sha256(body).hexdigest()  # the cache keeps one file per tag
            self.answer(200, {"ETag": f'"{etag}"', "X-Repo-Commit": "a" * 40, "Content-Length": len(body)})
        else:
            status, code = next(
                (why for folder, why in REFUSALS.items() if folder in self.path), (404, "EntryNotFound")
            )
            self.answer(status, {"X-Error-Code": code, "Content-Length": 0})

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(FILES.get(self.path, b""))

    def answer(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, *args):
        pass


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
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"

    time.sleep = lambda seconds: None  # huggingface_hub waits longer and longer between its retries

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
    server.shutdown()
    server.server_close()
    results["network down"] = attempt(layers=[30])
    results["network down, in the cache"] = attempt(layers=[25])
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
