"""The paper's three case studies on SmolLM2: ``python -m depass_sae.demo``, or ``make demo``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ..errors import UserError
from ..models.smollm2 import prepare
from .cases import CASES


def main() -> None:
    """Which features fire; for each case, which tokens made its feature fire; and the first one's graph and page."""
    parser = argparse.ArgumentParser(description="Which tokens activate three features of SmolLM2-135M.")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="where the JSON and HTML go")
    out = parser.parse_args().out
    try:
        show(Console(highlight=False), out)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def show(console: Console, out: Path) -> None:
    """The demo on a console; one JSON document and one page per case in ``out``."""
    prepare(say=lambda what: print(what, file=sys.stderr))
    from transformers.utils import logging

    logging.disable_progress_bar()
    from ..api import load
    from ..graph.looks import graph_blocks
    from ..index.index import open_index
    from ..report.case.folder import check_folder
    from ..view.terminal import print_on
    from .gallery import case_study, write_study

    first = CASES[0]
    page = out / f"{first.name}-case-study"
    check_folder(page)
    lm = load("smollm2")
    console.rule(Text("Which features fire on a prompt?", style="bold"))
    index = open_index("smollm2")
    fires = lm.features(first.prompt, layer=int(first.feature.partition("/")[0]), sort="specific", index=index)
    print_on(console, fires.blocks(2))
    console.rule(Text(f"Where does feature {first.feature} fire in other text?", style="bold"))
    print_on(console, index.feature(first.feature).blocks(5)[:2])
    for case in CASES:
        answer = lm.attribute_tokens(case.prompt, feature=f"{case.feature}@{case.position}")
        console.rule(Text(f"Which tokens activate feature {case.feature}? ({case.name})", style="bold"))
        console.print(Text(f"{case.meaning}\n", style="italic"))
        print_on(console, answer.blocks(8))
        for suffix in ("json", "html"):
            answer.write(out / f"{case.name}.{suffix}")
    console.rule(Text(f"From which upstream features? ({first.name})", style="bold"))
    study = case_study(lm, first)
    (finding,) = study.findings
    print_on(console, graph_blocks(finding.graph, top=10))
    console.rule(Text(f"What is there to say of it? ({first.name})", style="bold"))
    print_on(console, study.blocks(8)[:1])
    write_study(study, page)
    console.rule(Text("The same as JSON", style="bold"))
    document = answer.to_dict()
    target = document["targets"][0]
    target["contributions"] = sorted(target["contributions"], key=lambda entry: -abs(entry["value"]))[:3]
    shown = {"feature": document["feature"], "rule": document["rule"], "targets": [target]}
    console.print(Text(json.dumps(shown, ensure_ascii=False, indent=2)))
    console.print(Text(f"(cut short; all of it, and a page for each case, is in {out}/)"))
    console.print(Text(f"Open {page}/index.html in a browser: the first case on one page."), soft_wrap=True)


if __name__ == "__main__":
    main()
