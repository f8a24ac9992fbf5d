"""Run by test_llama_scope.py in a process of its own: the command, on stand-ins that a local hub hands out.

huggingface_hub reads HF_ENDPOINT when it is imported, so the server is up before that. Prints one JSON object: status,
stdout and stderr of each call by its name, and what the hub was asked for.
"""

import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path

from tests.local_hub import serve


def call(*arguments: str) -> dict:
    """What the command does with some arguments."""
    from depass_sae.evaluation.llama_scope import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


def run(folder: Path, families: list[str]) -> dict:
    with serve() as hub:
        os.environ["HF_ENDPOINT"] = hub.address
        import huggingface_hub.constants

        from tests import llama_stand_in
        from tests.evaluation import scope_stand_ins

        huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 2**16  # else what broke off before 10 MiB begins anew
        time.sleep = lambda seconds: None  # huggingface_hub waits longer and longer between its retries
        if "llama" in families:
            llama_stand_in.fill(hub, folder / "llama")
            # A model with another tokenizer, and one with the start token missing.
        for family in families:
            if family != "llama":
                scope_stand_ins.fill(hub, family, folder / family)
        hub.refused["owner/gated"] = (403, "GatedRepo")
        hub.refused["google/gemma-2-2b"] = (401, "GatedRepo")
        heavy = [path for path in hub.files if path.endswith(("model.safetensors", "L25R-8x/checkpoints/final.safetensors"))]
        hub.broken |= set(heavy)
        results = {}
        if "llama" in families:
            outs = [word for suffix in ("html", "md", "json", "csv") for word in ("--out", f"{folder}/all.{suffix}")]
            results["all"] = call(*outs)
            results["one"] = call("--cases", "economics", "--out", f"{folder}/one.json", "--trace-dtype", "float32")
            results["no such case"] = call("--cases", "weather")
            results["no such option"] = call("--prompt", "x")
            results["no such format"] = call("--out", f"{folder}/all.docx")
            results["gated"] = call("--model", "owner/gated")
            results["missing"] = call("--sae", "llama_scope_lxr_32x", "--cases", "economics")
        for family in families:
            if family != "llama":
                results[family] = call("--family", family, "--out", f"{folder}/{family}.json")
        results["asked again"] = hub.ranges
        results["broken"] = heavy
    results["no network"] = call("--model", "owner/elsewhere")
    return results


if __name__ == "__main__":
    json.dump(run(Path(sys.argv[1]), sys.argv[2:]), sys.stdout)
