"""Every answer is what it was: documents of tiny models in float64, number by number, against those that are stored.

``python -m tests.test_documents`` stores today's answers as what is right. A change that is meant is better named in
CHANGED or ADDED first, so that the net still holds everything else.
"""

from __future__ import annotations

import json
import lzma
import math
import re
import warnings
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import cache, partial
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import networkx as nx
import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM

import depass_sae as ds
from depass_sae.graph.build import GraphSettings

from .attribution.tiny import VOCAB, random_sae, tokenizer
from .compare_documents import differences, folders, largest
from .passes.models import CONFIGS, D_MODEL
from .questions import QUESTIONS

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")  # random SAEs fit nothing

CHANGED: dict[str, str] = {
    "/*/graph/graph/scores/*/shares/*": "a graph's page writes shares as percents",
    "/*/graph/graph/target/*/name": "the tokens are named by id here",
    "*/sentence": "a case study's is its answer and its points, one line each",
    "/*/case study/features/*/findings/*/table/*": "the page shows these numbers as the token attribution has them",
    "/*/case study/features/*/findings/*/layers/*": "the page shows these numbers as the heads' attribution has them",
    "/*/case study/features/*/findings/*/ledger/*": "the page shows these numbers as the heads' attribution has them",
    "/*/case study/features/*/findings/*/graph/*": "a graph's counts and shares are told in words, without pointers",
    "/*/case study/settings/*": "told in words, without pointers",
    "/*/c*/sae/d_sae": "told in words, without pointers",
    "/*/card/prompts/*/fit/explained_variance": "told in words, without pointers",
    "/*/c*/n_[fp]*": "told in words, without pointers",
    "/*/c*/sources/firings/*/activation": "told where it is not the pre-activation",
    "/*/c*/firings/0/*": "told in words, without pointers",
    "*/rank_correlation": "of ten sources and more, the target's own left out",
    "*/verification/rank_correlation/*": "of ten nodes and more, the target's own token left out",
    "*/verification/together/*": "random sets are of the same cells; a feature is read before its own SAE is edited",
    "/*/c*/flow/previous/total": "its parts stand on the page: the features named, and the others' sum",
}
"""What is another value now, or gone, on purpose: a pattern of "/MODEL/QUESTION" and a JSON pointer, and why."""
ADDED: dict[str, str] = {
    "*/graph/settings/grow": "by what nodes join",
    "*/graph/settings/pairs": "of how many nodes pairs of a query and a key were asked for",
    "*/special": "the positions of special tokens, which stand apart from what a reader can change",
    "/*/case study*/answer": "what was found, in a line",
    "/*/case study*/points": "what else was found, a line each",
    "/*/case study*/downstream": "what the feature goes on to do",
    "/*/case study*/no_downstream": "why nothing is said of that",
    "*/name": "of the target, as tables and pages call it",
    **dict.fromkeys(
        ("/*/heads*/sort", "/*/modules*/sort", "/*/neurons*/sort", "/*/case study*/heads/sort"),
        "what parts are ranked by",
    ),
    **dict.fromkeys(
        (
            "*/measured/error",
            *(
                f"*/targets/*/measured/{key}"
                for key in (
                    "kind",
                    "whole",
                    "baseline",
                    "baseline_error",
                    "values*",
                    "removal",
                    "enumerated",
                    "stopped",
                    "asked",
                    "agreement",
                )
            ),
        ),
        "what was measured, by which measure, and how well contributions agree with it",
    ),
    "*/sufficiency": "what is left of the target where only the graph's features are kept",
    "*/verification/together/*": "what keeping can reach, random sets with their interval, and all in shares",
    "/*/case study*/facts/together": "what the target loses without the graph's features, beside random ones",
    "*/verification/rank_*": "with its interval, of ten nodes and more",
    "*/verification/ranked": "of how many nodes: the target's own token is left out",
    "*/facts/agreement": "the rank correlation with its interval and ceiling",
    "/*/case study*/heads/targets/*/effect": "what the target loses without a head, to first order",
    "/*/card*/flow/previous/features/*/effect": "the same of a feature",
    "/*/case study*/flow/previous/features/*/effect": "the same of a feature",
}
"""What documents have besides, on purpose."""

STORED = Path(__file__).parent / "documents"
TOLERANCE = 1e-9
"""Of the largest number in a document: far above what threads and libraries change in float64."""
MODELS = ("llama", "gemma2", "qwen3_5_moe_text")
"""One as plain as they are; one with norms behind its sublayers, caps and windows; one of delta rules and experts."""
TEXT = "In economics, supply and demand. Mary gave John a mark."
OTHER = "The price of supply, set in Rome."
SHORT = "In economics, supply"
SHORT_FOR = ("parts", "vectors", "parts of words")
"""Questions whose answers are long."""


# ------------------------------------------------------------------------------------------------------ what is asked


class InFloat64(TorchFunctionMode):
    """Float64 throughout. Norms, softmaxes and rotations of transformers go through float32 in a float64 model,
    too, and processors and threads differ in its last digits.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = torch.Tensor.double if func is torch.Tensor.float else func
        given = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return func(*[torch.float64 if value is torch.float32 else value for value in args], **given)


def noise(parameters: Iterable[tuple[str, torch.Tensor]]) -> Iterable[tuple[str, torch.Tensor, torch.Tensor]]:
    """Every parameter with numbers of variance 1 for it: the same on every processor, which normal ones are not."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(parameters, key=lambda named: named[0]):
        uniform = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
        yield name, parameter.data, 3**0.5 * (2 * uniform - 1)


def random_model(shape: str) -> Any:
    config = CONFIGS[shape]()
    config.vocab_size = VOCAB
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    for name, parameter, values in noise(model.named_parameters()):
        if parameter.dim() > 1:
            parameter.copy_(values if "embed" in name else 1.5 * values / parameter.shape[-1] ** 0.5)
        else:
            parameter.copy_(0.5 * values + (1 if "norm" in name else 0))
    return model


def random_sae_of_float64(kind: str, hook: str) -> Any:
    sae = random_sae(kind, hook, d_in=D_MODEL, dtype="float64")
    for name, parameter, values in noise(sae.named_parameters()):
        parameter.copy_(values.abs() * 0.2 if name == "threshold" else values * (0.4 if name[0] == "W" else 0.2))
    return sae


@cache
def handle(shape: str) -> ds.LM:
    with InFloat64():
        saes = [random_sae_of_float64("jumprelu", "0.resid_post"), random_sae_of_float64("gated", "1.resid_post")]
        return ds.load(random_model(shape), tokenizer(), saes=saes)


def grown(lm: ds.LM, text: str, target: str | None = "1/3", **settings: Any) -> nx.DiGraph:
    return lm.graph(text, target, **({"max_nodes": 60, "node_threshold": 0.9, "grow": "weight"} | settings))


def file_of(g: nx.DiGraph, suffix: str) -> str:
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"graph{suffix}"
        ds.write_graph(g, path)
        return path.read_text(encoding="utf-8")


def in_file(g: nx.DiGraph) -> Any:
    return json.loads(file_of(g, ".json"))


@cache
def checked(lm: ds.LM, text: str) -> nx.DiGraph:
    return lm.verify(grown(lm, text, errors="through"), max_nodes=8)


@cache
def carded(lm: ds.LM, text: str) -> Any:
    return lm.card("1/3", [text, OTHER], labels=LABELS)


@cache
def studied(lm: ds.LM, text: str) -> Any:
    places = ["1/3@7", "1/3@9", "0/2@11"]
    with patch("depass_sae.report.case.making.GraphSettings", partial(GraphSettings, grow="weight")):
        return lm.case_study(text, places, max_nodes=40, verify=3, ablate=2, top=4, labels=LABELS)


def studied_shortly(lm: ds.LM, text: str) -> Any:
    with patch("depass_sae.report.case.making.GraphSettings", partial(GraphSettings, grow="weight")):
        return lm.case_study(text, "1/3", max_nodes=10, verify=3, ablate=1)


def difference(lm: ds.LM, text: str) -> Any:
    d = ds.diff_graphs(grown(lm, text), grown(lm, text, rule="softmax"))
    return nx.node_link_data(d, edges="edges")


LABELS = {"1/3": "prices", "0/2": "amounts"}


def of_plain_logits(lm: ds.LM, text: str, **settings: Any) -> nx.DiGraph:
    """What a graph without a target was before: of the same tokens' logits as they are."""
    targets = lm.graph(text, max_nodes=60).graph["target"]
    return lm.graph(text, [target["node"].replace("-mean", "") for target in targets], **settings)


GROWN_AS_BEFORE: dict[str, Callable[[ds.LM, str], Any]] = {
    "graph": lambda lm, text: in_file(of_plain_logits(lm, text, max_nodes=20, grow="weight")),
    "graph without a target": lambda lm, text: in_file(lm.graph(text, max_nodes=20, grow="weight")),
    "graph, softmax": lambda lm, text: in_file(lm.graph(text, "1/3", rule="softmax", max_nodes=20, grow="weight")),
    "verified graph": lambda lm, text: in_file(
        lm.verify(lm.graph(text, "1/3", max_nodes=20, heads=True, grow="weight"))
    ),
    "case study": lambda lm, text: studied_shortly(lm, text).to_dict(),
}
"""By default nodes join by their effects and by where heads looked, too, and a graph without a target is of logits over
the vocabulary's mean.
"""
ASKED: dict[str, Callable[[ds.LM, str], Any]] = QUESTIONS | GROWN_AS_BEFORE | {
    "features, specific first": lambda lm, text: lm.features(text, layer=1, sort="specific").to_dict(),
    "tokens, sentences": lambda lm, text: lm.attribute_tokens(text, "1/3@9", by="sentence", ablate=2).to_dict(),
    "tokens, first competes": lambda lm, text: lm.attribute_tokens(text, "1/3@9", first_token="compete").to_dict(),
    "tokens of a logit, softmax": lambda lm, text: lm.attribute_tokens(text, logit=7, rule="softmax").to_dict(),
    "heads": lambda lm, text: lm.attribute_heads(text, "0/2", pos="all").to_dict(),
    "heads of a logit": lambda lm, text: lm.attribute_heads(text, logit=7, by_token=True).to_dict(),
    "modules, softmax": lambda lm, text: lm.attribute_modules(text, "1/3", rule="softmax").to_dict(),
    "neurons of a logit": lambda lm, text: lm.attribute_neurons(text, logit_diff=(7, 8)).to_dict(),
    "votes of heads": lambda lm, text: lm.decode(text, ds.Heads(1), pos=9, top=3).to_dict(),
    "attention against mean": lambda lm, text: lm.attribute_attention(text, 1, 0, 6, 2, against="mean").to_dict(),
    "attention against uniform": lambda lm, text: lm.attribute_attention(text, 1, 1, 6, 2, against="uniform").to_dict(),
    "attention against a position": lambda lm, text: lm.attribute_attention(
        text, 1, 0, 6, 2, against=4, rule="softmax"
    ).to_dict(),
    "contrast, one for another": lambda lm, text: lm.contrast(
        text, text.replace("John", "Mary"), "1/3@9", by="word"
    ).to_dict(),
    "parts of words": lambda lm, text: lm.decompose(
        text, "words", layer=1, read="hook_z", rule="softmax"
    ).parts.tolist(),
    "card, labelled": lambda lm, text: carded(lm, text).to_dict(),
    "case study, several places": lambda lm, text: studied(lm, text).to_dict(),
    "graph of a logit": lambda lm, text: in_file(grown(lm, text, None, logit=7, edge_threshold=0.9)),
    "graph with heads": lambda lm, text: in_file(grown(lm, text, heads=True)),
    "graph through errors": lambda lm, text: in_file(checked(lm, text)),
    "graph, softmax, pruned": lambda lm, text: in_file(grown(lm, text, ["1/3", "0/2"], rule="softmax")),
    "graphs compared": difference,
}  # fmt: skip
PAGES: dict[str, Callable[[ds.LM, str], tuple[Any, str]]] = {
    "card": lambda lm, text: ((made := carded(lm, text)).to_dict(), made.to_html()),
    "case study": lambda lm, text: ((made := studied(lm, text)).to_dict(), made.to_html()),
    "graph": lambda lm, text: (in_file(made := checked(lm, text)), file_of(made, ".html")),
}


@cache
def answer(shape: str, question: str) -> Any:
    with InFloat64():
        return plain(ASKED[question](handle(shape), SHORT if question in SHORT_FOR else TEXT))


@cache
def page(shape: str, name: str) -> tuple[Any, str]:
    with InFloat64():
        found, html = PAGES[name](handle(shape), TEXT)
    return plain(found), html


def plain(found: Any) -> Any:
    return json.loads(json.dumps(found, allow_nan=False))


# --------------------------------------------------------------------------------------------------- what a page shows


class Shown(HTMLParser):
    """The pointers that a page's numbers carry, and the numbers in its text with half their last digit."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.pointers: set[str] = set()
        self.text = ""
        self._hidden = False
        self.feed(html)

    @property
    def numbers(self) -> list[tuple[float, float]]:
        """Those with decimals."""
        found = re.findall(r"(\d+)\.(\d+)(?:e([+\-]\d+))?( %)?", self.text.replace("\u2212", "-"))
        return [
            (float(f"{whole}.{part}e{power or 0}") / (percent := 100 if sign else 1),
             0.501 * 10 ** (int(power or 0) - len(part)) / percent)
            for whole, part, power, sign in found
        ]  # fmt: skip

    def shows(self, pointer: str, value: float) -> bool:
        """Whether a number is on the page; one whose pages say no pointers, by its value."""
        if self.pointers:
            return pointer in self.pointers
        return any(abs(abs(value) - number) <= digit for number, digit in self.numbers)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.pointers.update(value or "" for key, value in attrs if key == "data-at")
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._hidden else f"{data}\n"


ON_A_GRAPH_S_PAGE = re.compile(
    r"/nodes/\d+/(influence|pre_activation)|/edges/\d+/(weight|effect)|/graph/scores/.*"
    r"|/graph/verification/(rank_correlation|sign_agreement)/.*"
)
"""What it shows as text. Its numbers say no pointers."""


def shown(shape: str, name: str) -> list[str]:
    """The pointers of the numbers that a page shows."""
    found, html = page(shape, name)
    told = Shown(html)
    if told.pointers:
        return sorted(told.pointers)
    return sorted(at for at, value in pointed(found) if ON_A_GRAPH_S_PAGE.fullmatch(at) and told.shows(at, value))


def pointed(found: Any, at: str = "") -> Iterable[tuple[str, float]]:
    """The fractions of a document with their pointers."""
    if isinstance(found, float):
        yield at, found
    for key, inner in found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ():
        yield from pointed(inner, f"{at}/{str(key).replace('~', '~0').replace('/', '~1')}")


# ------------------------------------------------------------------------------------------------------- what is stored


def rounded(found: Any) -> Any:
    """A document without the digits that no comparison reads."""
    size = largest(found)
    digits = 11 - math.ceil(math.log10(size)) if size else 0

    def inside(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: inside(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [inside(inner) for inner in value]
        return round(value, digits) if isinstance(value, float) else value

    return inside(found)


@cache
def stored(shape: str) -> Any:
    return json.loads(lzma.decompress((STORED / f"{shape}.json.xz").read_bytes()))


def store() -> None:
    STORED.mkdir(exist_ok=True)
    for shape in MODELS:
        made = {
            "answers": {question: rounded(answer(shape, question)) for question in ASKED},
            "pages": {name: shown(shape, name) for name in PAGES},
        }
        text = json.dumps(made, separators=(",", ":"))
        (STORED / f"{shape}.json.xz").write_bytes(lzma.compress(text.encode(), preset=9))


def meant(at: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(at, pattern) for pattern in patterns)


@pytest.mark.parametrize("question", ASKED)
@pytest.mark.parametrize("shape", MODELS)
def test_an_answer_is_what_it_was(shape: str, question: str) -> None:
    found = differences(stored(shape)["answers"][question], answer(shape, question), TOLERANCE, f"/{shape}/{question}")
    told = [str(one) for one in found if not meant(one.at, ADDED if one.is_new else CHANGED)]
    assert not told, "\n".join(told[:20])


@pytest.mark.parametrize("shape", MODELS)
def test_no_question_and_no_page_is_gone(shape: str) -> None:
    assert stored(shape)["answers"].keys() == ASKED.keys()
    assert stored(shape)["pages"].keys() == PAGES.keys()


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("shape", MODELS)
def test_every_number_of_before_is_on_the_page(shape: str, name: str) -> None:
    found, html = page(shape, name)
    told, values = Shown(html), dict(pointed(found))
    before = [at for at in stored(shape)["pages"][name] if not meant(f"/{shape}/{name}{at}", CHANGED)]
    assert len(before) > 50
    assert not [at for at in before if not told.shows(at, values.get(at, math.nan))]


# ------------------------------------------------------------------------------------------------------ the comparison

DOCUMENT = {"a/b": [{"value": 1.0}, {"value": -8.0}], "n": 3, "same": True, "name": "x", "versions": {"torch": "1"}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"a/b": [{"value": 1.0 + 9e-9}, {"value": -8.0}]}, ["/a~1b/0/value: 1.0 became 1.000000009"]),
        ({"a/b": [{"value": 1.0 + 7e-9}, {"value": -8.0}]}, []),
        ({"a/b": [{"value": math.nan}, {"value": -8.0}]}, ["/a~1b/0/value: 1.0 became nan"]),
        ({"a/b": [{"value": -8.0}, {"value": 1.0}]}, ["/a~1b/0/value: 1.0 bec", "/a~1b/1/value: -8.0 became 1.0"]),
        ({"a/b": [{"value": 1.0}]}, ["/a~1b/1 is gone"]),
        ({"a/b": [{"value": 1.0}, {}]}, ["/a~1b/1/value is gone"]),
        ({"n": 4}, ["/n: 3 became 4"]),
        ({"n": 3.0}, ["/n: 3 became 3.0"]),
        ({"same": 1}, ["/same: True became 1"]),
        ({"name": "y"}, ["/name: 'x' became 'y'"]),
        ({"more": None}, ["/more is new: None"]),
        ({"versions": {"torch": "2"}}, []),
    ],
)
def test_what_changed_is_told_by_its_pointer(change: dict[str, Any], told: list[str]) -> None:
    found = [str(one) for one in differences(DOCUMENT, DOCUMENT | change, TOLERANCE)]
    assert len(found) == len(told)
    assert all(line.startswith(start) for line, start in zip(found, told, strict=True))


def test_two_folders_are_compared_file_by_file_and_key_by_key(tmp_path: Path) -> None:
    changed = DOCUMENT | {"a/b": [{"value": 1.1}, {"value": -8.1}]}
    for folder, files in (("old", {"a": DOCUMENT, "b": DOCUMENT}), ("new", {"a": changed, "c": DOCUMENT})):
        for name, held in files.items():
            (tmp_path / folder / "of").mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / "of" / f"{name}.json").write_text(json.dumps(held))
    old, new = tmp_path / "old", tmp_path / "new"
    assert list(folders(old, new)) == [
        "of/a.json: /a~1b/*/value, 2 times: /a~1b/0/value: 1.0 became 1.1",
        f"of/b.json is only in {old}",
        f"of/c.json is only in {new}",
    ]
    assert not list(folders(new, new))


def test_what_is_stored_is_near_enough() -> None:
    tiny = {"values": [1e-17, 123.456789012345678, 1e-5 / 3, 7]}
    assert not list(differences(rounded(tiny), tiny, TOLERANCE / 5))
    assert len(json.dumps(rounded(tiny))) < len(json.dumps(tiny))


if __name__ == "__main__":
    with warnings.catch_warnings(category=ds.SAEFitWarning, action="ignore"):
        store()
