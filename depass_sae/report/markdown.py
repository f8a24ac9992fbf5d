"""A case study as a folder: the page, Markdown with pictures, the JSON of all numbers, graphs and labels.

The Markdown is made of the study's document, as the page is. Pictures are drawn by matplotlib as the graph's are; the
same study gives the same bytes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..attribution.render import NEGATIVE, POSITIVE, fit_sentence, named, place, shown
from ..files import check_place, write_files
from ..graph.export import graph_bytes
from ..texts import visible
from ..view.figures import check_matplotlib, rendered
from .html import written
from .study import LABELS_FILE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .case import CaseStudy, FeatureStudy, Finding

LEDGER_SOURCES = 4
"""So many sources are named for a head in the Markdown; the page and the JSON have them all."""
CARD_ROWS = 6
_SPECIAL = re.compile(r"([\\`*_\[\]|~$#@!]|:(?=\S))")
DPI = 140.0


def write_case(study: CaseStudy, folder: str | os.PathLike[str]) -> list[Path]:
    """Everything of a case study: all of its files, or none."""
    check_folder(folder)
    files = {}
    for feature in study.features:
        files[f"activations-{slug(feature.name)}.png"] = rendered(activations_figure(study, feature), "png", DPI)
        for finding in feature.findings:
            if finding.heads.target.rows:
                files[f"heads-{finding.slug}.png"] = rendered(heads_figure(finding), "png", DPI)
            if finding.graph is not None:
                for format in ("json", "png"):
                    files[f"graph-{finding.slug}.{format}"] = graph_bytes(finding.graph, format)
    texts = {  # last, so that a page that is there has its pictures
        "index.html": study.to_html(),
        "README.md": markdown(study),
        "case.json": json.dumps(study.to_dict(), indent=1, allow_nan=False) + "\n",
    }
    if study.labels:
        texts[LABELS_FILE] = json.dumps(study.labels, indent=1) + "\n"
    files |= {name: text.encode("utf-8") for name, text in texts.items()}
    contents = {Path(folder) / name: content for name, content in files.items()}
    write_files(contents)
    return list(contents)


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Raises UserError where the folder cannot be written, or where pictures cannot be drawn: before any work."""
    check_matplotlib()
    check_place(folder, folder=True)


# ------------------------------------------------------------------------------------------------------------ markdown


def markdown(study: CaseStudy) -> str:
    """The study as Markdown that GitHub shows; token texts in it are escaped."""
    c = study.document
    parts = [f"# {escaped(c['title'])}"]
    parts += [escaped(finding["sentence"]) for feature in c["features"] for finding in feature["findings"]]
    for feature, document in zip(study.features, c["features"], strict=True):
        parts += _feature(feature, document, c["settings"])
    parts += ["## How it was made", _settings(study, c)]
    if c["command"]:
        longest = max(map(len, re.findall("`+", c["command"])), default=0)
        fence = "`" * max(3, longest + 1)
        parts.append(f"{fence}sh\n{c['command']}\n{fence}")
    parts.append("The page is [index.html](index.html), and all numbers in full are in [case.json](case.json).")
    return "\n\n".join(parts) + "\n"


def _feature(feature: FeatureStudy, f: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    label = f" “{escaped(f['label'])}”" if f["label"] else ""
    parts = [f"## Feature {f['name']}{label}"]
    if f["neuronpedia"]:
        parts.append(f"[On Neuronpedia]({f['neuronpedia']})")
    if f["note"]:
        parts.append(f"{escaped(f['note'])}.")
    parts += ["### Where it fires", f"![activation at each token](activations-{slug(f['name'])}.png)"]
    parts += ["### Which tokens", token_table(f, settings)]
    parts += ["### Through which heads"]
    for finding, d in zip(feature.findings, f["findings"], strict=True):
        if d["layers"]:
            parts.append(f"![heads by layer](heads-{finding.slug}.png)")
        if d["ledger"]:
            parts.append(ledger_table(d["ledger"]))
    parts.append("### From which features")
    for finding, d in zip(feature.findings, f["findings"], strict=True):
        if d["graph"]:
            parts.append(f"![feature-flow graph](graph-{finding.slug}.png)")
            parts.append(_graph_line(d["graph"]))
        else:
            parts.append(escaped(d["no_graph"]))
    return [*parts, "### The feature’s card", *_card(f["card"])]


def token_table(f: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The paper's table: all rows of a block sum to its last."""
    replaced = ["When replaced"] if settings["ablate"] else []
    rows = []
    for finding in f["findings"]:
        table = finding["table"]
        first = [escaped(place(table["token"], table["pos"])), _activation(table["activation"])]
        for s in table["sources"]:
            measured = s["measured"]
            lost = (
                "kept"
                if measured is None
                else f"{written(measured['mean'], '+', 2)} ± {written(measured['std'], '', 2)}"
            )
            source = escaped(place(s["token"], s["pos"]))
            rows.append([*first, source, written(s["value"], "+"), *([lost] if replaced else [])])
            first = ["", ""]
        for r in table["remainder"]:
            if r["value"]:
                name = f"{r['tokens']} other tokens" if r["tokens"] else r["name"]
                rows.append([*first, name, written(r["value"], "+"), *([""] if replaced else [])])
                first = ["", ""]
        whole = f"**{written(table['pre_activation'], '+')}**"
        rows.append(["", "", "**= pre-activation**", whole, *([""] if replaced else [])])
    heading = ["Token analysed", "Activation", "Source token", "Contribution", *replaced]
    return _table(heading, rows, right={1, 3, 4})


def ledger_table(ledger: Mapping[str, Any]) -> str:
    """The largest heads with the source tokens that most of each came from."""
    rows = []
    for row in ledger["rows"]:
        entries = sorted(zip(ledger["columns"], row["values"], strict=True), key=lambda entry: -abs(entry[1]))
        of = ", ".join(
            f"{escaped(place(at['token'], at['pos']))} {written(v, '+')}" for at, v in entries[:LEDGER_SOURCES]
        )
        rows.append([row["head"], written(row["value"], "+"), of])
    return _table(["Head", "Contribution", "Of which from"], rows, right={1})


def _graph_line(g: Mapping[str, Any]) -> str:
    line = f"{g['nodes']} nodes, {g['edges']} edges: [{g['file']}]({g['file']})."
    found = g["verification"]
    if found is None:
        return line
    by = ", ".join(f"{written(v, '', 2)} by {of}s" for of, v in found["rank_correlation"].items() if v is not None)
    tried = f" {len(found['nodes'])} nodes were taken out of the model one at a time"
    return line + tried + (f": rank correlation {by} with what the target really loses." if by else ".")


def _card(card: Mapping[str, Any]) -> list[str]:
    parts = [f"Fires at {card['n_firings']} of {card['n_positions']} positions of this prompt."]
    if card["logits"] is not None:
        rows = [
            [
                escaped(named(up["token"])),
                written(up["logit"], "+"),
                escaped(named(down["token"])),
                written(down["logit"], "+"),
            ]
            for up, down in list(zip(card["logits"]["top"], card["logits"]["bottom"], strict=True))[:CARD_ROWS]
        ]
        parts.append(_table(["Raises", "logit", "Lowers", "logit"], rows, right={1, 3}))
    lists = [("Nearest by decoder cosine", card["nearest"], "cosine")]
    for key, name in (("previous", "Flows in from"), ("next", "Flows on to")):
        if card["flow"][key] is not None:
            lists.append((f"{name} layer {card['flow'][key]['layer']}", card["flow"][key]["features"], "contribution"))
    for name, features, value in lists:
        listed = ", ".join(_near(other, value) for other in features[:CARD_ROWS])
        if listed:
            parts.append(f"{name}: {listed}.")
    return parts


def _near(other: Mapping[str, Any], value: str) -> str:
    label = f" “{escaped(other['label'])}”" if other["label"] else ""
    return f"{other['feature']}{label} ({written(other[value], '+', 2)})"


def _settings(study: CaseStudy, c: Mapping[str, Any]) -> str:
    made = ", ".join(f"{package} {number}" for package, number in c["versions"].items())
    temperature = f" (T = {c['temperature']:g})" if c["rule"] == "softmax" else ""
    settings = c["settings"]
    lines = [
        f"Prompt: {escaped(shown(c['prompt']))}",
        f"Model {escaped(c['model'])}, {c['dtype']}; rule {c['rule']}{temperature}; "
        f"{settings['ablate']} replacements for each source, seed {settings['seed']}; "
        f"graphs of at most {settings['max_nodes']} nodes.",
    ]
    for feature in study.features:
        if feature.fit is not None:
            warning = f" **{escaped(feature.fit.warning)}**" if feature.fit.warning else ""
            lines.append(f"SAE at {feature.sae['hook']}: {escaped(fit_sentence(feature.fit))}{warning}")
    return "\n\n".join([*lines, f"Made with {escaped(made)}."])


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]], right: set[int]) -> str:
    rule = ["---:" if i in right else "---" for i in range(len(heading))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heading, rule, *rows))


def escaped(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no cell that ends early, all on one line."""
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return visible(" ".join(_SPECIAL.sub(r"\\\1", text).split()))


def _activation(value: float | None) -> str:
    return "" if value is None else written(value)


def slug(name: str) -> str:
    """For file names."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name)


# ------------------------------------------------------------------------------------------------------------ pictures


def activations_figure(study: CaseStudy, feature: FeatureStudy) -> Figure:
    """A bar per token of the prompt."""
    from matplotlib.figure import Figure

    tokens = study.heading.prompt.tokens
    values = [0.0 if a is None else a for a in feature.activations]
    picture = Figure(figsize=(max(4.0, 0.26 * len(tokens) + 0.9), 2.5), facecolor="white", layout="constrained")
    axes = picture.add_subplot()
    asked = {finding.target.pos for finding in feature.findings}
    colours = [_colour(value) for value in values]
    axes.bar(range(len(tokens)), values, color=colours, width=0.8)
    axes.axhline(0, color="#777777", linewidth=0.6)
    axes.set_xlim(-0.7, len(tokens) - 0.3)
    axes.set_xticks(range(len(tokens)), [""] * len(tokens))
    for pos, token in enumerate(tokens):
        text = place(token, pos) if pos in asked else shown(token)
        axes.annotate(
            _short(text), (pos, 0), xycoords=("data", "axes fraction"), xytext=(0, -6), textcoords="offset points",
            rotation=90, ha="center", va="top", fontsize=8, fontweight="bold" if pos in asked else "normal",
            parse_math=False,
        )  # fmt: skip
    axes.set_ylabel(f"activation of {feature.name}", fontsize=8)
    _quiet(axes)
    return picture


def heads_figure(finding: Finding) -> Figure:
    """The heat map: heads across, layers upwards."""
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    matrix = np.array(finding.heads.target.matrix.tolist())
    largest = float(np.nanmax(abs(matrix))) or 1.0
    layers = [row.layer for row in finding.heads.target.rows]
    colours = LinearSegmentedColormap.from_list("blue and orange", [_rgb(NEGATIVE), (1, 1, 1), _rgb(POSITIVE)])
    size = (0.24 * matrix.shape[1] + 1.9, 0.2 * len(layers) + 1.1)
    picture = Figure(figsize=size, facecolor="white", layout="constrained")
    axes = picture.add_subplot()
    image = axes.imshow(matrix, cmap=colours, vmin=-largest, vmax=largest, origin="lower", aspect="auto")
    axes.set_xticks(range(matrix.shape[1]), [str(i) for i in range(matrix.shape[1])])
    axes.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_xlabel("head", fontsize=8)
    axes.set_ylabel("layer", fontsize=8)
    bar = picture.colorbar(image, ax=axes, shrink=0.8)
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(labelsize=7)
    _quiet(axes)
    return picture


def _quiet(axes: Any) -> None:
    axes.tick_params(labelsize=7, length=2, width=0.4)
    for spine in axes.spines.values():
        spine.set_linewidth(0.4)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _short(text: str, length: int = 18) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _colour(value: float) -> tuple[float, ...]:
    return _rgb(POSITIVE if value >= 0 else NEGATIVE)


def _rgb(colour: tuple[int, int, int]) -> tuple[float, ...]:
    return tuple(c / 255 for c in colour)
