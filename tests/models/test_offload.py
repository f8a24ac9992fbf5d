"""Models bigger than one device: weights that accelerate keeps elsewhere are fetched a layer at a time, and let go."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor

import depass_sae as ds
from depass_sae.models import weights

from ..attribution.tiny import random_sae
from ..passes.models import EVERY, fresh

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
IDS = [0, 5, 9, 17, 3, 11]
SHAPES = ("llama", "gpt2", "qwen3_moe", "gpt_oss", "gemma2")
LAYERS = {"gpt2": "transformer.h"}


def placed(model: Any, folder: Path, where: str) -> Any:
    """One layer in memory, the others on the disk; or all of it on the disk, or in a processor's memory."""
    if where == "cpu":
        return accelerate.cpu_offload(model, execution_device="cpu")  # type: ignore[arg-type]
    if where == "disk":
        return accelerate.disk_offload(model, folder, execution_device="cpu")  # type: ignore[arg-type]
    layers = LAYERS.get(model.config.model_type, "model.layers")
    whole, _, _ = layers.rpartition(".")
    parts = {f"{whole}.{name}": "cpu" for name, _ in model.get_submodule(whole).named_children()} | {"lm_head": "cpu"}
    del parts[layers]
    for i in range(len(model.get_submodule(layers))):
        parts[f"{layers}.{i}"] = "cpu" if i == 0 else "disk"
    return accelerate.dispatch_model(model, parts, main_device="cpu", offload_dir=folder, force_hooks=True)


def lay_of(model: Any) -> dict[str, tuple]:
    """What there is to change of a model object."""
    kept = {name: (p.device, p.dtype, p.shape, p.data_ptr()) for name, p in model.named_parameters()}
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    return {**kept, **hooks, "": (model.training, model.config._attn_implementation)}


def both(shape: str, folder: Path, where: str = "a map", **settings: Any) -> tuple[Any, Any]:
    """The model with its weights elsewhere, and as it is."""
    saes = [random_sae(hook=hook, seed=i) for i, hook in enumerate(("0.resid_post", "1.resid_post"))]
    return tuple(ds.load(m, saes=saes, **settings) for m in (placed(fresh(shape), folder, where), fresh(shape)))  # type: ignore[return-value]


def numbers(thing: Any) -> list[float]:
    if isinstance(thing, dict):
        return [x for key, value in thing.items() if key != "completeness_error" for x in numbers(value)]
    if isinstance(thing, list | tuple):
        return [x for value in thing for x in numbers(value)]
    return [float(thing)] if isinstance(thing, float | int) else []


QUESTIONS: dict[str, Callable[[Any], Any]] = {
    "tokens by half": lambda lm: lm.attribute_tokens(IDS, logit=7, rule="half").to_dict(),
    "tokens by softmax": lambda lm: lm.attribute_tokens(IDS, feature="1/3", pos=4, rule="softmax").to_dict(),
    "heads": lambda lm: lm.attribute_heads(IDS, logit=7).to_dict(),
    "neurons": lambda lm: lm.attribute_neurons(IDS, logit=7).to_dict(),
    "replacement": lambda lm: lm.attribute_tokens(IDS, logit=7, ablate=2).to_dict(),
}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_answer_does_not_depend_on_where_the_weights_lie(shape: str, question: str, tmp_path: Path) -> None:
    away, plain = both(shape, tmp_path)
    before = lay_of(away.model)
    found, expected = (numbers(QUESTIONS[question](lm)) for lm in (away, plain))
    assert len(found) == len(expected) > 10
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert lay_of(away.model) == before


@pytest.mark.parametrize("shape", sorted({*EVERY} - {*SHAPES}))
def test_every_family_is_read_from_the_disk(shape: str, tmp_path: Path) -> None:
    models = placed(fresh(shape), tmp_path, "disk"), fresh(shape)
    found, expected = (ds.load(model).attribute_tokens(IDS, logit=7, rule="half") for model in models)
    torch.testing.assert_close(found.contributions, expected.contributions, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_a_graph_and_its_check_do_not_depend_on_it(where: str, tmp_path: Path) -> None:
    found = []
    for lm in both("llama", tmp_path, where):
        graph = lm.graph(IDS, target="1/3@4", max_nodes=30)
        edges = {(u, v): data["weight"] for u, v, data in graph.edges(data=True)}
        found.append((edges, lm.verify(graph).graph["verification"]))
    (edges, checked), (expected, expected_check) = found
    assert edges == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert numbers(checked) == pytest.approx(numbers(expected_check), rel=1e-3, abs=1e-5)


def test_a_trace_in_a_higher_dtype_brings_each_layer_up_alone_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    given = placed(fresh("llama").to(torch.bfloat16), tmp_path, "a map")
    before = lay_of(given)
    lm, plain = ds.load(given, trace_dtype="float32"), ds.load(fresh("llama").to(torch.bfloat16).float())
    assert lay_of(lm.model) == before
    found, expected = (x.attribute_tokens(IDS, logit=7, rule="half") for x in (lm, plain))
    assert numbers(found.to_dict()) == pytest.approx(numbers(expected.to_dict()), rel=1e-5, abs=1e-6)
    assert lay_of(lm.model) == before
    with torch.no_grad():
        assert given(torch.tensor([IDS])).logits.dtype == torch.bfloat16


class Alive:
    """How many bytes of fetched weights there are at once, at most; of what is got through accelerate's maps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most, self.there = 0, {}  # type: ignore[var-annotated]
        real = weights.without_gradient

        def noted(tensor: Tensor) -> Tensor:
            found = real(tensor).clone()
            self.there[id(found)] = (weakref.ref(found), found.nbytes)
            self.there = {key: kept for key, kept in self.there.items() if kept[0]() is not None}
            self.most = max(self.most, self.now)
            return found

        monkeypatch.setattr(weights, "without_gradient", noted)

    @property
    def now(self) -> int:
        return sum(size for ref, size in self.there.values() if ref() is not None)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("shape", ["llama", "gpt2", "qwen3_moe"])
def test_one_layers_weights_are_there_at_a_time_and_none_afterwards(
    shape: str, question: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = ds.load(placed(fresh(shape), tmp_path, "disk"), saes=[random_sae(hook="1.resid_post")])
    layers = lm.model.get_submodule(LAYERS.get(lm.model.config.model_type, "model.layers"))
    layer = max(sum(p.nbytes for p in one.parameters()) for one in layers)
    unembedding = sum(p.nbytes for p in lm.model.get_output_embeddings().parameters())
    gc.disable()  # nothing waits for it
    try:
        alive = Alive(monkeypatch)
        answer = QUESTIONS[question](lm)
        assert 0 < alive.most <= max(layer, unembedding) * 1.1
        assert alive.now == 0
    finally:
        gc.enable()
    assert answer


def test_a_pass_that_is_left_early_leaves_no_weights_behind(tmp_path: Path) -> None:
    lm = ds.load(placed(fresh("gpt_oss"), tmp_path, "disk"), saes=[random_sae(hook="1.hook_z", d_in=48)])
    lm.attribute_tokens(IDS, feature="1/3", pos=4)
    assert all(p.is_meta for p in lm.model.parameters())
