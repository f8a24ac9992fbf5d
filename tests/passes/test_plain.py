"""The method on one page, and the pass that is used: every rule, on every architecture that the page knows."""

import ast
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depass_sae.models.place import STREAM, Place
from depass_sae.passes import plain
from depass_sae.passes.forward import Allocation, propagate
from depass_sae.passes.record import Trace, trace
from depass_sae.passes.rules import RULES as ALL
from depass_sae.passes.sources import Source, Vectors, tokens

from .models import LAYERS, VOCAB, tiny

SHAPES = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox_serial", "gemma")
PLACES = [Place(layer, hook) for layer in range(LAYERS) for hook in STREAM]
IDS = [0, 17, 5, 33, 5, 40, 21, 9]
PAGE = 80
"""Lines."""
RULES = [name for name, rule in ALL.items() if not rule.shares_scores]


def seen_by(shape: str, ids: list[int]) -> Trace:
    return trace(tiny(shape, torch.float64), torch.tensor(ids))


def assert_one(seen: Trace, source: Source, rule: str, temperature: float, first_token: str) -> None:
    """The components at every stream place from the start on, and where each is present."""
    start = source.start(seen)
    page = plain.decompose(seen, start, rule, temperature, first_token == "skip")
    reads = dict.fromkeys(
        [place for place in PLACES if place.depth >= start.at.depth], torch.arange(len(seen.streams[0]))
    )
    found = propagate(seen, start, reads, Allocation(rule, temperature, first_token))  # type: ignore[arg-type]
    depths = {place.depth: parts for place, parts in page.items()}
    assert depths.keys() == {place.depth for place in reads}
    for place, rows in found.items():
        x, present = depths[place.depth]
        size = x.abs().max()
        assert torch.allclose(rows.dense(), x, rtol=0, atol=1e-5 * float(size)), place
        assert torch.equal(rows.present, present), place
        assert torch.allclose(x.sum(1), seen.at(place), rtol=0, atol=1e-5 * float(size)), place


@pytest.mark.parametrize("first_token", ["skip", "compete"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_are_carried_as_the_page_says(shape: str, rule: str, first_token: str) -> None:
    assert_one(seen_by(shape, IDS), tokens(list(map(str, IDS))), rule, 0.1, first_token)


@given(
    shape=st.sampled_from(SHAPES),
    rule=st.sampled_from(list(RULES)),
    at=st.sampled_from(PLACES),
    ids=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=7),
    comps=st.integers(0, 4),
    temperature=st.sampled_from([0.02, 0.1, 1.0]),
    first_token=st.sampled_from(["skip", "compete"]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=150)
def test_vectors_that_start_anywhere_and_are_absent_here_and_there_are_carried_as_the_page_says(
    shape: str, rule: str, at: Place, ids: list[int], comps: int, temperature: float, first_token: str, seed: int
) -> None:
    seen = seen_by(shape, ids)
    generator, x = torch.Generator().manual_seed(seed), seen.at(at)
    present = torch.rand(len(x), comps, generator=generator) < 0.6
    parts = torch.randn(len(x), comps, x.shape[1], generator=generator).to(x) * present[..., None]
    first_only = torch.rand(comps, generator=generator) < 0.3
    source = Vectors(parts, [f"part {m}" for m in range(comps)], at, present, first_only)
    assert_one(seen, source, rule, temperature, first_token)


def test_it_is_one_page_and_asks_the_pass_for_nothing() -> None:
    source = Path(plain.__file__).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= PAGE
    tree = ast.walk(ast.parse(source))
    imported = {node.module for node in tree if isinstance(node, ast.ImportFrom) if node.level}
    assert imported == {"models.parts", "models.place", "record", "sources"}
    # Of a trace it takes what was recorded, and of a start its components: no arithmetic of either.
    names = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    assert not names & {"sublayers", "scale", "frozen", "centre", "inside", "written", "split", "project"}
