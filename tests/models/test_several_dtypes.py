"""Models that run with a dtype per layer: upper layers in a higher one, or casts between the layers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import depass_sae as ds
from depass_sae.errors import UserError

from ..attribution.tiny import random_sae
from ..passes.models import LAYERS, fresh
from .test_offload import lay_of

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
IDS = [0, 5, 9, 17, 3, 11]
BFLOAT16 = 3 * 2**-8 * (2 * LAYERS) ** 0.5
"""How far bfloat16's rounding may be seen, relative to the largest part."""


def upper(shape: str) -> Any:
    """Blocks in bfloat16 and the last one in float32: in Llama's shape whatever follows rounds up by itself."""
    model = fresh(shape).to(torch.bfloat16)
    for part in (model.model.layers[-1], model.model.norm, model.lm_head):
        part.float()
    return model


def lower(shape: str) -> Any:
    """The embeddings and blocks 0 and 1 in float32, the rest in bfloat16; what each is given is cast to its own."""
    model = fresh(shape).to(torch.bfloat16)
    inside = next(model.children())
    blocks = next(part for part in inside.children() if isinstance(part, nn.ModuleList) and len(part) == LAYERS)
    for part in (*(p for p in inside.children() if isinstance(p, nn.Embedding)), *blocks[:2]):
        part.float()
    for part in (*blocks, [p for p in inside.children() if "norm" in type(p).__name__.lower()][-1], model.lm_head):
        part.register_forward_pre_hook(in_its_own, with_kwargs=True)
    return model


def in_its_own(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    dtype = next(module.parameters()).dtype

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.to(dtype)
        return tuple(map(cast, value)) if isinstance(value, tuple) else value

    return cast(args), {name: cast(value) for name, value in kwargs.items()}


CASES = [(upper, "llama"), (upper, "qwen2"), *((lower, shape) for shape in ("llama", "gpt2", "gemma2", "qwen3_moe"))]
ALL = pytest.mark.parametrize(("made", "shape"), CASES)
SAES = ("1.resid_post", "2.resid_post")


def loaded(model: Any, **options: Any) -> ds.LM:
    return ds.load(model, saes=[random_sae(hook=hook, seed=i) for i, hook in enumerate(SAES)], **options)


def values(answer: Any) -> Tensor:
    """What a target got from each token, or from each head."""
    (target,) = answer.to_dict()["targets"]
    return torch.tensor([entry["value"] for entry in target.get("contributions") or target["heads"]])


def off(found: Tensor, expected: Tensor) -> float:
    """Relative to the largest part."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@ALL
def test_it_runs_and_its_answers_are_those_in_float32_within_bfloat16_s_rounding(
    made: Callable[[str], Any], shape: str
) -> None:
    model = made(shape)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16, torch.float32}
    with torch.no_grad():
        assert model(torch.tensor([IDS])).logits.isfinite().all()
    before = lay_of(model)
    mixed, whole = loaded(model), loaded(made(shape).float())
    for ask in (
        lambda lm: lm.attribute_tokens(IDS, logit=7, rule="half"),
        lambda lm: lm.attribute_tokens(IDS, feature="2/3", pos=4, rule="softmax"),
        lambda lm: lm.attribute_heads(IDS, logit=7),
    ):
        found, expected = (ask(lm) for lm in (mixed, whole))
        assert 1e-6 < found.completeness_error < BFLOAT16
        assert off(values(found), values(expected)) < 3 * BFLOAT16  # where heads look is rounded, too
    g = mixed.graph(IDS, target="2/3@4", max_nodes=20)
    reached = [node for node in g if g.nodes[node]["kind"] in ("feature", "logit")]
    assert len(reached) > 1
    for node in reached:
        weights = [weight for *_, weight in g.in_edges(node, data="weight")]
        size = max(map(abs, (*weights, g.nodes[node]["pre_activation"])))
        assert abs(sum(weights) + g.nodes[node]["constant"] - g.nodes[node]["pre_activation"]) < BFLOAT16 * size
    assert lay_of(model) == before


@ALL
def test_a_trace_in_float32_takes_all_of_the_rounding_away(made: Callable[[str], Any], shape: str) -> None:
    model = made(shape)
    before = lay_of(model)
    raised, whole = loaded(model, trace_dtype="float32"), loaded(made(shape).float())
    for rule in ("half", "softmax"):
        found, expected = (lm.attribute_tokens(IDS, logit=7, rule=rule) for lm in (raised, whole))
        assert found.completeness_error < 1e-5
        assert off(values(found), values(expected)) < 1e-5
    assert lay_of(model) == before


def test_its_dtype_is_the_coarsest_whichever_comes_first() -> None:
    for made in (upper, lower):
        lm = loaded(made("llama"))
        assert lm.attribute_tokens(IDS, logit=7).to_dict()["dtype"] == "bfloat16"
    with pytest.raises(UserError, match=r"^trace_dtype bfloat16 is lower than the model's float32$"):
        loaded(lower("llama"), trace_dtype="bfloat16")


@pytest.mark.parametrize("shape", ["llama", "gpt2", "gemma2"])
def test_weights_that_do_not_run_together_are_told_in_one_line(shape: str) -> None:
    model = fresh(shape).to(torch.bfloat16)
    next(model.children()).get_submodule("h" if shape == "gpt2" else "layers")[0].float()
    with pytest.raises(UserError, match=r"^the model does not run: its weights are in bfloat16 and float32; put them "):
        loaded(model)
