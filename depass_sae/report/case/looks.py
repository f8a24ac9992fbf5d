"""A case study as blocks, made of its document (:meth:`.CaseStudy.to_dict`) and its graphs alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...attribution.looks import (
    Document,
    fit_sentence,
    ledger_map,
    noted,
    part_maps,
    part_table,
    rule_of,
    token_caption,
    token_columns,
    token_rows,
    token_table,
)
from ...graph.looks import between, downstream_blocks, graph_block
from ...graph.told import together_lines
from ...view import words
from ...view.blocks import Beside, Block, Column, Feature, Graph, Mark, Note, Page, Row, Section, Strip, Table, Token
from ...view.pointer import At
from ..card.looks import card_parts

if TYPE_CHECKING:
    import networkx as nx

LEDGER = 40
"""So many source tokens stand beside a head at most."""

Graphs = Mapping[str, "nx.DiGraph"]
"""By the names of their findings."""


def case_page(document: Document, graphs: Graphs) -> Page:
    c: Any = At(document)
    one = _feature(c["features"][0]) if len(c["features"]) == 1 else None
    return Page(
        c["title"],
        case_blocks(document, graphs),
        kicker="Case study",
        byline=(c["model"], *(f"feature {f['name']}" for f in c["features"] if one is None), rule_of(c)),
        contents=True,
        feature=one,
    )


def case_blocks(document: Document, graphs: Graphs, top: int | None = None) -> tuple[Block, ...]:
    c: Any = At(document)
    features = (_feature_section(c, f, i, graphs, top) for i, f in enumerate(c["features"], start=1))
    found = tuple(found_note(finding) for f in c["features"] for finding in f["findings"])
    made = Section("How it was made", _made(c, document["versions"]), id="settings")
    return (Section("What was found", found, id="found"), *features, made)


def found_note(finding: Document) -> Note:
    """What was found, in a line, and more of it below."""
    return Note(finding["answer"], "answer", tuple(finding["points"]))


def _feature(f: Document) -> Feature:
    return Feature(f["name"], f["label"], f["neuronpedia"])


def _feature_section(c: Document, f: Document, i: int, graphs: Graphs, top: int | None) -> Section:
    sae, rows = f["sae"], int(c["settings"]["top"]) if top is None else top
    which = f", {sae['release']} {sae['id']}" if sae["release"] else ""
    of = f"The SAE at {sae['hook']}{which}, {sae['architecture']}, {words.count(sae['d_sae'])} features."
    warning = f["fit"] and f["fit"]["warning"]
    parts = (
        Section("Where it fires", (_strip(c, f),), id=f"fires-{i}"),
        Section("Which tokens", _tokens(f, rows), id=f"tokens-{i}"),
        Section("Through which heads", _heads(f, rows), id=f"heads-{i}"),
        Section("From which features", _flow(f, graphs), id=f"flow-{i}"),
        Section("What it goes on to do", _onwards(f, rows), id=f"onwards-{i}"),
        Section("The feature’s card", card_parts(f["card"], top), id=f"card-{i}"),
    )
    warned = [Note(warning, "warning")] if warning else []
    return Section(
        f"Feature {f['name']}", (Note(of, "quiet"), *noted(f), *warned, *parts), id=f"feature-{i}", feature=_feature(f)
    )


def _onwards(f: Document, top: int) -> tuple[Block, ...]:
    return tuple(
        block
        for finding in f["findings"]
        for block in (
            (Note(finding["no_downstream"], "quiet"),)
            if finding["downstream"] is None
            else downstream_blocks(finding["downstream"], top)
        )
    )


# ------------------------------------------------------------------------------------------------- where, and which


def strip_title(feature: str) -> str:
    return f"activation of {feature}"


def _strip(c: Document, f: Document) -> Strip:
    aimed = {int(finding["pos"]) for finding in f["findings"]}
    marks = tuple(
        Mark(a["token"], a["pos"], a["activation"], _line(c, f, a), a["pos"] in aimed) for a in f["activations"]
    )
    caption = "The feature’s activation at each token of the prompt. Underlined: what is asked about."
    return Strip(strip_title(f["name"]), marks, "activation", caption, numbers=True)


def _line(c: Document, f: Document, at: Document) -> str:
    """What a token does here: its activation, and its contribution to each position that is asked about."""
    nothing = "a special token" if at["pos"] in list(c["special"]) else "an attention sink"
    parts = [nothing if at["activation"] is None else f"activation {words.number(at['activation'])}"]
    for finding in f["findings"]:
        target = finding["tokens"]["targets"][0]
        for source in target["contributions"]:
            if source["pos"] == at["pos"]:
                part = f"contributes {words.signed(source['value'])} to {words.place(target['token'], target['pos'])}"
                lost = source.get("measured")
                parts.append(
                    f"{part}, which loses {words.number(lost['mean'])} when this one is replaced" if lost else part
                )
    return f"{words.place(at['token'], at['pos'])}: {'; '.join(parts)}"


def _tokens(f: Document, top: int) -> tuple[Block, ...]:
    """The paper's table: all rows of a block sum to its last."""
    documents = [finding["tokens"] for finding in f["findings"]]
    if len(documents) == 1:
        return (token_table(documents[0], documents[0]["targets"][0], top),)
    targets = [document["targets"][0] for document in documents]
    rows = tuple(
        row
        for document, t in zip(documents, targets, strict=True)
        for row in token_rows(document, t, top, Token(t["token"], t["pos"]))
    )
    columns = token_columns(documents[0], targets[0])
    captions = [
        f"{words.place(t['token'], t['pos'])}: {token_caption(document, t)}."
        for document, t in zip(documents, targets, strict=True)
    ]
    return (Table(f"{documents[0]['name']}, by source token", columns, rows, " ".join(captions)),)


# ------------------------------------------------------------------------------------- through what, and from what


def _heads(f: Document, top: int) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for finding in f["findings"]:
        document = finding["heads"]
        target = document["targets"][0]
        if not len(target["heads"]):
            return (Note("No attention lies before this SAE.", "quiet"),)
        ledger = ledger_map(document, target, columns=LEDGER)
        maps = (*part_maps(document, target), *([ledger] if ledger is not None else []))
        blocks += [Beside(maps), part_table(document, target, top)]
    return tuple(blocks)


def _flow(f: Document, graphs: Graphs) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for finding in f["findings"]:
        if finding["name"] not in graphs:
            blocks.append(Note(finding["no_graph"], "quiet"))
            continue
        blocks.append(_graph(finding, graphs[finding["name"]]))
        found = finding["graph"]["verification"]
        blocks += [] if found is None else [_verified(found)]
    return tuple(blocks)


def _graph(finding: Document, g: nx.DiGraph) -> Graph:
    about = finding["graph"]
    shares = about["scores"]["pruned"]["shares"]
    names = {
        "token": "tokens", "error": "SAE errors", "constant": "constants", "remainder": "what the graph leaves out"
    }  # fmt: skip
    ends = ", ".join(f"{words.percent(shares[kind])} in {name}" for kind, name in names.items())
    caption = (
        f"{words.count(about['nodes'])} nodes, {words.count(about['edges'])} edges. An edge is a contribution, and "
        f"what flows into a feature sums to its pre-activation. Of the target’s influence {ends}."
    )
    return graph_block(g, f"Feature-flow graph to {finding['name']}", about["file"].removesuffix(".json"), caption)


def _verified(found: Document) -> Table:
    together, ranks = found["together"], found["rank_correlation"]
    features, active = (words.count(together[key]) for key in ("features", "active"))
    by = ", ".join(
        f"{words.number(ranks[of], 2)}{between(found, of)} by {of}s"
        for of in ("weight", "effect")
        if ranks[of] is not None
    )
    more = (("all of them, no SAE errors", "all_without_errors"), ("none of them", "no_features"))
    return Table(
        "Against the model: the target when features are taken out",
        (Column("features"), Column("with these alone", "number", 2), Column("without them", "number", 2)),
        (
            Row((f"the graph’s {features} of {active}", together["only_graph"], together["without_graph"])),
            Row(
                ("as many random ones, layer by layer and position by position", together["only_random"],
                 together["without_random"]),
                "aside",
            ),
            *(Row((name, together[key], None), "aside") for name, key in more if together.get(key) is not None),
            Row(("all of the model", found["target"], None), "total"),
        ),
        (f"{'. '.join(map(words.capital, together_lines(found)))}. " if together.get("shares") else "")
        + f"{words.count(len(found['nodes']))} nodes were taken out one at a time, too"
        + (f": rank correlation of the target’s loss with what the graph says {by}." if by else "."),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------ how it was made


def _made(c: Document, versions: Mapping[str, str]) -> tuple[Block, ...]:
    settings, tokens = c["settings"], c["tokens"]
    made = (
        f"Prompt: {c['prompt'] or ' '.join(tokens)}",
        f"{words.count(len(tokens))} tokens, position 0 is {words.shown(tokens[0])}",
        f"Model: {c['model']}, {c['dtype']}",
        f"{rule_of(c).capitalize()}, first token: {c['first_token']}",
        f"Replacements: {words.count(settings['ablate'])} for each source, seed {settings['seed']}",
        f"Graph: at most {words.count(settings['max_nodes'])} nodes; the {words.count(settings['verify'])} most "
        "influential are tried",
        *(f"SAE at {f['sae']['hook']}: {fit_sentence(f['fit'])}" for f in c["features"] if f["fit"] is not None),
        f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}",
    )
    names = [finding["name"] for f in c["features"] for finding in f["findings"]]
    again = (
        Note(c["command"], "code")
        if c["command"]
        else Note(f"The model or its SAEs were made in Python: lm.case_study(prompt, {names}) makes it again.", "quiet")
    )
    numbers = Note("All numbers, in full, are in case.json.", "quiet")
    return (Note("", points=tuple(dict.fromkeys(made))), Section("To make it again", (again,)), numbers)
