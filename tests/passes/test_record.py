"""The recorded pass: what it sees is what transformers computes, and the model is left as it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from depass_sae.errors import UserError
from depass_sae.models.adapter import Adapter
from depass_sae.models.load import adapter_for
from depass_sae.models.place import Place
from depass_sae.passes.record import read_batch, trace

from .models import CONFIGS, DTYPES, LAYERS, SHAPES, VOCAB, build, fresh, tiny

IDS = torch.tensor([0, 17, 5, 33, 5, 40])
OUTPUTS = [
    (layer, hook) for layer in range(LAYERS) for hook in ("hook_z", "attn_out", "ln2_normalized", "mlp_in", "mlp_out")
]


@contextmanager
def eager(model: Any) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            yield
    finally:
        model.set_attn_implementation(before)


def compute_of(dtype: torch.dtype) -> torch.dtype:
    """What is kept: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


# ------------------------------------------------------------------------------------------------------ what it sees


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_stream_the_patterns_and_the_logits_are_those_of_transformers(shape: str, dtype: torch.dtype) -> None:
    adapter = tiny(shape, dtype)
    seen = trace(adapter, IDS)
    with eager(adapter.model):
        out = adapter.model(IDS[None], output_hidden_states=True, output_attentions=True, use_cache=False)
    assert seen.n_layers == LAYERS
    for layer in range(LAYERS):
        assert torch.equal(seen.resid_pre[layer], out.hidden_states[layer][0].to(adapter.compute_dtype()))
        assert torch.equal(seen.records[2 * layer].pattern, out.attentions[layer][0])
    assert torch.equal(seen.logits, out.logits[0].to(adapter.compute_dtype()))
    last = adapter.final_norm.module(seen.resid_post.to(dtype)).detach().to(adapter.compute_dtype())
    assert torch.equal(last, out.hidden_states[-1][0].to(adapter.compute_dtype()))  # hidden_states ends after the norm


def modules_of(model: Any, shape: str, layer: int) -> dict[str, nn.Module]:
    if shape == "gpt2":
        block = model.transformer.h[layer]
        return {"attn": block.attn, "o": block.attn.c_proj, "mlp": block.mlp, "norm": block.ln_2, "block": block}
    block = model.model.layers[layer]
    attn, norm = block.self_attn, block.post_attention_layernorm
    return {"attn": attn, "o": attn.o_proj, "mlp": block.mlp, "norm": norm, "block": block}


def seen_by_hooks(adapter: Adapter, shape: str, layer: int, ids: Tensor) -> dict[str, Tensor]:
    """All points of a layer [batch, pos, d], noted by hooks of this test's own."""
    noted: dict[str, Tensor] = {}

    def entering(hook: str) -> Callable:
        def note(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            noted[hook] = args[0] if args else kwargs["hidden_states"]

        return note

    def leaving(hook: str) -> Callable:
        def note(_module: nn.Module, _args: tuple, output: Any) -> None:
            noted[hook] = output[0] if isinstance(output, tuple) else output

        return note

    parts = modules_of(adapter.model, shape, layer)
    handles = [
        parts[part].register_forward_pre_hook(entering(hook), with_kwargs=True)
        for part, hook in (("block", "resid_pre"), ("o", "hook_z"), ("norm", "resid_mid"), ("mlp", "mlp_in"))
    ] + [
        parts[part].register_forward_hook(leaving(hook))
        for part, hook in (("attn", "attn_out"), ("mlp", "mlp_out"), ("block", "resid_post"))
    ]
    try:
        with eager(adapter.model):
            adapter.model(ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return noted


@pytest.mark.parametrize("shape", SHAPES)
def test_every_point_is_what_a_hook_on_the_module_sees(shape: str) -> None:
    adapter = tiny(shape)
    seen = trace(adapter, IDS, outputs=OUTPUTS)
    for layer in range(LAYERS):
        expected = seen_by_hooks(adapter, shape, layer, IDS[None])
        for hook in expected:
            assert torch.equal(seen.at((layer, hook)), expected[hook][0]), (layer, hook)


def test_only_the_outputs_that_were_asked_for_are_kept() -> None:
    seen = trace(tiny("llama"), IDS, outputs=[(1, "hook_z"), (1, "resid_mid")])
    assert list(seen.outputs) == [(1, "hook_z")]
    with pytest.raises(KeyError):
        seen.at((1, "mlp_out"))


@pytest.mark.parametrize("until", range(LAYERS))
@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_until_gives_the_same_and_runs_no_later_layer(shape: str, until: int) -> None:
    adapter = adapter_for(fresh(shape))
    whole = trace(adapter, IDS)
    ran: list[int] = []
    for layer in range(LAYERS):
        adapter.layer(layer).module.register_forward_pre_hook(lambda *_, layer=layer: ran.append(layer))
    seen = trace(adapter, IDS, until=until)
    assert ran == list(range(until + 1))
    assert seen.n_layers == until + 1
    assert seen.logits is None
    assert torch.equal(seen.resid_post, whole.at((until, "resid_post")))
    assert all(torch.equal(a, b) for a, b in zip(seen.resid_mid, whole.resid_mid, strict=False))


def test_what_is_kept_is_in_float32_at_least() -> None:
    seen = trace(tiny("llama", torch.bfloat16), IDS, outputs=[(0, "mlp_out")])
    kept = [*seen.resid_pre, *seen.resid_mid, seen.resid_post, seen.outputs[0, "mlp_out"], seen.logits]
    assert {x.dtype for x in kept} == {torch.float32}
    assert trace(tiny("llama", torch.float64), IDS).resid_post.dtype == torch.float64


def test_a_float32_trace_of_a_bfloat16_model_is_that_of_the_model_in_float32() -> None:
    adapter = tiny("qwen3", torch.bfloat16)
    upcast = adapter_for(fresh("qwen3", torch.bfloat16).float())
    seen = trace(adapter, IDS, dtype=torch.float32)
    assert torch.equal(seen.logits, trace(upcast, IDS).logits)
    assert not torch.equal(seen.logits, trace(adapter, IDS).logits)


@pytest.mark.parametrize(
    ("model", "dtype"),
    [(torch.float32, torch.bfloat16), (torch.float64, torch.float32), (torch.float16, torch.bfloat16)],
    ids=str,
)
def test_a_trace_dtype_below_the_models_is_refused(model: torch.dtype, dtype: torch.dtype) -> None:
    with pytest.raises(UserError) as caught:
        trace(adapter_for(fresh("llama", model)), IDS, dtype=dtype)
    low, high = (str(name).removeprefix("torch.") for name in (dtype, model))
    assert str(caught.value) == f"trace_dtype {low} is lower than the model's {high}"


# ------------------------------------------------------------------------------------------------------- read_batch


@pytest.mark.parametrize("shape", SHAPES)
def test_reading_a_batch_gives_what_an_ordinary_forward_gives(shape: str) -> None:
    adapter = tiny(shape)
    batch = torch.randint(VOCAB, (3, 5), generator=torch.Generator().manual_seed(1))
    for hook, expected in seen_by_hooks(adapter, shape, 1, batch).items():
        assert torch.allclose(read_batch(adapter, batch, (1, hook)), expected[:, -1], atol=2e-5), hook
    with torch.no_grad():
        logits = adapter.model(batch).logits[:, -1]
    assert torch.allclose(read_batch(adapter, batch, None), logits, atol=2e-5)


def test_reading_a_batch_stops_at_the_point() -> None:
    adapter = adapter_for(fresh("llama"))

    def never(*_: Any) -> None:
        raise AssertionError("layer 2 ran")

    adapter.layer(2).module.register_forward_pre_hook(never)
    read_batch(adapter, IDS[None], (1, "resid_post"))


def test_reading_an_unknown_point_is_refused() -> None:
    with pytest.raises(UserError, match="'resid' is not a hook; the hooks are resid_pre"):
        read_batch(tiny("llama"), IDS[None], (1, "resid"))


# ---------------------------------------------------------------------------------------------- the model is as it was


def snapshot(model: Any) -> dict[str, Any]:
    """All that a pass might have changed about a model object."""
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    return {
        "hooks": {
            name: [list(value) for key, value in vars(module).items() if key.endswith("_hooks")]
            for name, module in model.named_modules()
        },
        "forwards": {name: vars(module).get("forward") for name, module in model.named_modules()},
        "attention": model.config._attn_implementation,
        "training": {name: module.training for name, module in model.named_modules()},
        "same tensors": {name: id(tensor) for name, tensor in tensors.items()},
        "same memory": {name: tensor.data_ptr() for name, tensor in tensors.items()},
        "dtypes": {name: tensor.dtype for name, tensor in tensors.items()},
        "bits": {
            name: tensor.detach().clone().contiguous().flatten().view(torch.uint8) for name, tensor in tensors.items()
        },
        "gradients": {name: (t.requires_grad, t.grad) for name, t in model.named_parameters()},
        "grad mode": torch.is_grad_enabled(),
    }


def sharing(pointers: dict[str, int]) -> list[list[str]]:
    """The names that share a memory, group by group."""
    return sorted([name for name in pointers if pointers[name] == p] for p in set(pointers.values()))


def assert_as_before(model: Any, before: dict[str, Any], moved: bool = False) -> None:
    after = snapshot(model)
    for what, value in before.items():
        if what == "bits":
            for name, bits in value.items():
                assert torch.equal(bits, after["bits"][name]), name
        elif what == "same memory" and moved:  # a cast copies, but what shared memory still shares it
            assert sharing(value) == sharing(after[what])
        else:
            assert value == after[what], what


def half_in_training(shape: str, dtype: torch.dtype) -> Adapter:
    """A model whose modules are in different training modes, with tied weights and a hook of the user's."""
    config = CONFIGS[shape]()
    config.tie_word_embeddings = True
    model = build(config, dtype)
    for number, module in enumerate(model.modules()):
        module.training = number % 3 == 0
    model.get_output_embeddings().register_forward_hook(lambda *_: None)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return adapter_for(model)


POINT: Place = (1, "mlp_out")
PASSES: dict[str, tuple[bool, Callable[[Adapter], Any]]] = {
    "whole": (False, lambda adapter: trace(adapter, IDS, outputs=OUTPUTS)),
    "until": (False, lambda adapter: trace(adapter, IDS, until=1)),
    "own dtype": (False, lambda adapter: trace(adapter, IDS, dtype=adapter.model.dtype)),
    "float32": (True, lambda adapter: trace(adapter, IDS, dtype=torch.float32)),
    "float64": (True, lambda adapter: trace(adapter, IDS, until=0, dtype=torch.float64)),
    "batch": (False, lambda adapter: read_batch(adapter, IDS[None], POINT)),
    "batch in float32": (True, lambda adapter: read_batch(adapter, IDS[None], None, torch.float32)),
}


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_model_is_left_as_it_was(shape: str, name: str) -> None:
    adapter = half_in_training(shape, torch.bfloat16)
    before = snapshot(adapter.model)
    moved, run = PASSES[name]
    run(adapter)
    assert_as_before(adapter.model, before, moved)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_attention_implementation_is_left_as_it_was(implementation: str) -> None:
    adapter = adapter_for(fresh("qwen2"))
    adapter.model.set_attn_implementation(implementation)
    trace(adapter, IDS)
    assert adapter.model.config._attn_implementation == implementation
    assert adapter.layer(0).sublayers[0].mixer.module.config._attn_implementation == implementation


def test_the_implementation_of_experts_is_left_as_it_was() -> None:
    adapter = adapter_for(fresh("qwen3_moe", torch.float64))
    adapter.model.set_experts_implementation("batched_mm")
    trace(adapter, IDS)  # which they do not compute in float64
    assert adapter.model.config._experts_implementation == "batched_mm"


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_model_is_left_as_it_was_after_an_exception_inside_the_forward(shape: str, name: str) -> None:
    adapter = half_in_training(shape, torch.bfloat16)

    def refuse(*_: Any) -> None:
        raise RuntimeError("a hook of the user's")

    adapter.layer(0).sublayers[1].mixer.module.register_forward_hook(refuse)
    before = snapshot(adapter.model)
    moved, run = PASSES[name]
    with pytest.raises(RuntimeError, match="a hook of the user's"):
        run(adapter)
    assert_as_before(adapter.model, before, moved)


def test_the_model_is_left_as_it_was_after_a_refused_dtype() -> None:
    adapter = half_in_training("llama", torch.float32)
    before = snapshot(adapter.model)
    with pytest.raises(UserError):
        trace(adapter, IDS, dtype=torch.bfloat16)
    assert_as_before(adapter.model, before)


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_a_model_that_always_returns_its_attentions_is_left_as_it_was(shape: str) -> None:
    config = CONFIGS[shape]()
    config._attn_implementation = "eager"
    config.output_attentions = config.output_hidden_states = True
    adapter = adapter_for(build(config))
    before = snapshot(adapter.model)
    trace(adapter, IDS, until=1)
    assert_as_before(adapter.model, before)
    read_batch(adapter, IDS[None], None)
    assert_as_before(adapter.model, before)
    out = adapter.model(IDS[None])
    assert len(out.attentions) == LAYERS
    assert len(out.hidden_states) == LAYERS + 1


def test_gradients_that_were_there_stay() -> None:
    adapter = adapter_for(fresh("llama", torch.bfloat16))
    adapter.model(IDS[None]).logits.sum().backward()
    weight = adapter.model.model.layers[0].mlp.up_proj.weight
    gradient = weight.grad.clone()
    trace(adapter, IDS, dtype=torch.float32)
    assert torch.equal(weight.grad, gradient)
    adapter.model(IDS[None]).logits.sum().backward()
    assert weight.grad.dtype == torch.bfloat16
