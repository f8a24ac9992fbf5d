"""docs/models.md: which models and which public SAEs can be used (``make models-table``)."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..files import write_text
from ..models.load import FAMILIES
from ..report.releases import Tally, hook_kinds
from ..saes.registry import registry, why_no_layer

QUESTIONS = ("tokens", "heads", "neurons", "modules", "subspace", "attention scores", "graph layer", "intervene")
# transformers' model_type: what it is called, and what does not work as everywhere else, by question.
FAMILY_ROWS: dict[str, tuple[str, dict[str, str]]] = {
    "llama": ("Llama 2 and 3, SmolLM2, DeepSeek-R1-Distill-Llama", {}),
    "mistral": ("Mistral", {}),
    "qwen2": ("Qwen2, Qwen2.5", {}),
    "qwen3": ("Qwen3", {}),
    "qwen3_moe": ("Qwen3 with experts", {}),
    "gemma": ("Gemma", {}),
    "gemma2": ("Gemma 2", {}),
    "gemma3_text": ("Gemma 3, text alone (270m, 1b)", {}),
    "gemma3": ("Gemma 3, with images (4b to 27b)", {}),
    "gpt2": ("GPT-2", {}),
    "gpt_neox": ("GPT-NeoX, Pythia", {"graph layer": "yes, but at resid_mid"}),
    "gpt_oss": ("gpt-oss", {}),
    "qwen3_5_text": ("Qwen3.5", {"attention scores": "full layers"}),
    "qwen3_5_moe_text": ("Qwen3.5 with experts", {"attention scores": "full layers"}),
    "qwen3_5": ("Qwen3.5, with images", {"attention scores": "full layers"}),
    "qwen3_5_moe": ("Qwen3.5 with experts and images", {"attention scores": "full layers"}),
}

HEAD = """# Which models and SAEs can be used

Made by `make models-table`. `depass-sae models` says the same of the sae-lens that is installed, and with a release's
name which SAEs that has; it needs no network.

## Models

A model is known by the `model_type` of its configuration. *Attention scores*: why a head looked where it did; *graph
layer*: whether SAEs and transcoders at its places are layers of feature-flow graphs; *intervene*: whether graphs can be
verified, and sources replaced, in it.

"""

SAES = """## Public SAEs

{works} of the {total} SAEs in sae-lens's registry ({releases} releases) can be used, {layers} of them as layers of
feature-flow graphs. *hooks* are the read points: the
residual stream before, within and after a layer, what attention and MLP add to it (after a norm on their outputs, where
the model has one), the heads' outputs side by side (`hook_z`), and the MLP's normed input with the norm's gain
(`mlp_in`) or without (`ln2_normalized`). What only a file on the hub says of a release stands in
[assumed.yaml](../depass_sae/saes/assumed.yaml), with where it is from.

"""


def page() -> str:
    """The page, as it is committed."""
    releases = list(registry().values())
    tally = Tally.of(sae for release in releases for sae in release.saes)
    families = [
        [f"`{model_type}`", name, *(unlike.get(question, "yes") for question in QUESTIONS)]
        for family in FAMILIES
        for model_type in family.model_types
        for name, unlike in [FAMILY_ROWS[model_type]]
    ]
    rows = []
    for release in releases:
        of_release = Tally.of(release.saes)
        hooks = ", ".join(f"`{hook}`" for hook in hook_kinds(release))
        layer = Tally.of(release.saes, why_no_layer)
        rows.append([release.name, release.model, str(of_release.total), hooks, of_release.said, layer.said])
    layers = Tally.of((sae for release in releases for sae in release.saes), why_no_layer)
    head = SAES.format(works=tally.works, total=tally.total, releases=len(releases), layers=layers.works)
    return (
        HEAD
        + _table(["`model_type`", "models", *QUESTIONS], families)
        + "\n"
        + head
        + _table(["release", "model", "SAEs", "hooks", "works", "graph layer"], rows)
    )


def _table(columns: list[str], rows: list[list[str]]) -> str:
    """In Markdown; a bar in a cell would end it."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write which models and SAEs can be used.")
    parser.add_argument("--out", type=Path, default=Path("docs/models.md"))
    write_text(parser.parse_args().out, page())


if __name__ == "__main__":
    main()
