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

GATED = "owner/gated"
WEIGHTS = ("model.safetensors", "final.safetensors", "params.npz", "sae.pt")
"""How the names of those files end whose first transfer breaks off."""


def call(*arguments: str) -> dict:
    """What the command does with some arguments."""
    from depass_sae.evaluation.llama_scope import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


def llama(folder: Path) -> dict:
    """What the paper's family answers, and what is refused."""
    outs = [word for suffix in ("html", "md", "json", "csv") for word in ("--out", f"{folder}/all.{suffix}")]
    return {
        "all": call(*outs),
        "one": call("--cases", "economics", "--out", f"{folder}/one.json", "--trace-dtype", "float32"),
        "no such case": call("--cases", "weather"),
        "no such option": call("--prompt", "x"),
        "no such format": call("--out", f"{folder}/all.docx"),
        "gated": call("--model", GATED),
        "no start token": call("--model", str(folder / "no start token"), "--cases", "economics"),
        "another width": call("--model", str(folder / "wide"), "--cases", "economics"),
        "SAEs missing": call("--sae", "llama_scope_lxr_32x", "--cases", "economics"),
    }


def alone() -> dict:
    """The first case's second target, asked of the package by itself, under the paper's rule."""
    import depass_sae as ds
    from depass_sae.evaluation.paper_cases import FAMILIES, PAPER_CASES

    case, family = PAPER_CASES[0], FAMILIES["llama"]
    lm = ds.load(family.model, saes=family.saes, layers=[case.layer])
    answer = lm.attribute_tokens(case.prompt, f"{case.layer}/{case.index}@{case.targets[1].pos}", rule="softmax")
    return answer.to_dict()


def others(folder: Path, llama_stand_in) -> None:
    """Models that are not the paper's: texts begin without a start token, or the stream is wider."""
    for name, changed in (("no start token", {}), ("wide", {"width": 32})):
        llama_stand_in.write_model(folder / name, **changed)
    llama_stand_in.tokenizer(adds_bos=False).save_pretrained(folder / "no start token")


def run(folder: Path, family: str) -> dict:
    with serve() as hub:
        os.environ["HF_ENDPOINT"] = hub.address
        import huggingface_hub.constants

        from tests import llama_stand_in
        from tests.evaluation import scope_stand_ins

        huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 2**16  # else what broke off before 10 MiB begins anew
        time.sleep = lambda seconds: None  # huggingface_hub waits longer and longer between its retries
        if family == "llama":
            llama_stand_in.fill(hub, folder / "llama")
            others(folder, llama_stand_in)
        else:
            scope_stand_ins.fill(hub, family, folder / family)
        hub.refused[GATED] = (403, "GatedRepo")
        broken = [path for path in hub.files if path.endswith(WEIGHTS)]
        hub.broken |= set(broken)
        if family == "llama":
            results, asked = llama(folder), alone()
        else:
            results, asked = {"all": call("--family", family, "--out", f"{folder}/all.json")}, None
    if family == "llama":
        results["no network"] = call("--model", "owner/elsewhere")
    return {"calls": results, "alone": asked, "broken": broken, "ranges": hub.ranges}


if __name__ == "__main__":
    json.dump(run(Path(sys.argv[1]), sys.argv[2]), sys.stdout)
