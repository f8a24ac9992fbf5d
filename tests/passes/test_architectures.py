"""Every architecture, all of it: recorded, carried, swept, and with nothing frozen, as transformers computes it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from depass_sae.models.load import adapter_for
from depass_sae.passes.backward import sweep
from depass_sae.passes.choices import CONTRIBUTION, EFFECT
from depass_sae.passes.record import Trace, trace, traces
from depass_sae.passes.selfcheck import rounding_bound
from depass_sae.passes.sources import tokens

from . import oracles
from .agreement import IDS, LAST, STREAMS, assert_carried, assert_swept, both, carried, carried_by_oracle, noise, off
from .models import D_MODEL, DELTA, EVERY, LAYERS, WHOLE, fresh, tiny
from .oracles import layers, mlp_norm

every = pytest.mark.parametrize("shape", EVERY)
HALF = CONTRIBUTION["half"]
RULES = ("linear", "half", "softmax")


def of_tokens(seen: Trace) -> Any:
    return tokens([str(token) for token in seen.token_ids.tolist()]).start(seen)


# ------------------------------------------------------------------------------------------------------------ recording


@pytest.mark.parametrize("shape", [*EVERY, *WHOLE])
def test_stream_patterns_and_logits_are_those_that_transformers_hands_out(shape: str) -> None:
    adapter = adapter_for(fresh(shape))  # transformers leaves its hooks on a model that hands these out
    seen = trace(adapter, torch.tensor(IDS))
    with oracles.eager(adapter.model), torch.no_grad():
        out = adapter.model(torch.tensor([IDS]), output_hidden_states=True, output_attentions=True, use_cache=False)
    for layer in range(LAYERS):
        assert off(seen.resid_pre[layer], out.hidden_states[layer][0]) <= 1e-5
    softmax = [
        record.pattern for n, record in enumerate(seen.records) if n % 2 == 0 and has_softmax(adapter.model, n // 2)
    ]
    theirs = [pattern for pattern in out.attentions if isinstance(pattern, Tensor)]
    assert len(theirs) == len(softmax) >= 1
    assert all(torch.allclose(ours, pattern[0], atol=1e-6) for ours, pattern in zip(softmax, theirs, strict=True))
    assert seen.logits is not None
    assert off(seen.logits, out.logits[0]) <= 1e-5


def has_softmax(model: Any, layer: int) -> bool:
    return not hasattr(layers(model)[layer], "linear_attn")


@every
def test_the_stream_between_sublayers_is_what_their_norms_are_given(shape: str) -> None:
    seen, own = both(tiny(shape, torch.float64))
    assert all(off(seen.streams[depth], own.stream(depth)) <= 1e-12 for depth in range(2 * LAYERS + 1))


# ----------------------------------------------------------------------------------------------------------- components


@pytest.mark.parametrize("rule", RULES)
@every
def test_tokens_are_carried_as_by_the_oracle(shape: str, rule: str) -> None:
    seen, own = both(tiny(shape, torch.float64))
    assert_carried(seen, own, of_tokens(seen), rule)


@every
def test_blocks_of_few_components_change_nothing(shape: str) -> None:
    seen, own = both(tiny(shape, torch.float64))
    assert_carried(seen, own, of_tokens(seen), "half", memory=1)


@every
def test_prompts_that_are_packed_are_carried_and_swept_as_each_alone(shape: str) -> None:
    prompts = [torch.tensor(IDS), torch.tensor([3, 9, 11, 30, 2]), torch.tensor([7])]
    alone = traces(tiny(shape, torch.float64), prompts)
    packed = Trace.packed(alone)
    together = carried(packed, of_tokens(packed), [LAST], "half")[LAST].dense()
    target = noise(2, len(together), D_MODEL)
    swept = list(sweep(packed, {LAST: target}, HALF))
    units: list[Tensor] = [torch.zeros(2, level.units().shape[1]).double() for level in swept]
    for prompt, one in zip(packed.prompts, alone, strict=True):
        expected = carried(one, of_tokens(one), [LAST], "half")[LAST].dense()
        own = [*range(prompt.start, prompt.stop), -2, -1]
        assert off(together[prompt][:, own], expected) <= 1e-6
        for i, (level, mine) in enumerate(zip(swept, sweep(one, {LAST: target[:, prompt]}, HALF), strict=True)):
            assert off(level.before[:, prompt], mine.before) <= 1e-6
            units[i] += mine.units()
    assert all(off(level.units(), summed) <= 1e-6 for level, summed in zip(swept, units, strict=True))


# ---------------------------------------------------------------------------------------------------------------- sweep


@pytest.mark.parametrize("rule", ["linear", "half"])
@every
def test_gradients_and_units_are_those_of_the_oracle(shape: str, rule: str) -> None:
    assert_swept(*both(tiny(shape, torch.float64)), rule)


@every
def test_effects_are_the_gradients_of_the_model_itself(shape: str) -> None:
    adapter = tiny(shape, torch.float64)
    seen = trace(adapter, torch.tensor(IDS))
    target = noise(2, len(IDS), D_MODEL)
    expected, of_biases = autograd(adapter.model, target)
    found = {level.number: level for level in sweep(seen, {LAST: target}, EFFECT)}
    assert expected.keys() <= found.keys()
    for number, gradient in expected.items():
        assert off(found[number].before, gradient) <= 1e-4, number
    assert torch.allclose(found[0].bias_before.sum(1), of_biases, rtol=1e-4, atol=1e-4 * float(target.norm()))


def autograd(model: Any, target: Tensor) -> tuple[dict[int, Tensor], Tensor]:
    """The gradients of ⟨target, last stream⟩ with respect to what each norm of the stream is given, by its depth.

    And what bias vectors have to do with it, to first order: the sum of each times its own gradient.
    """
    streams: dict[int, Tensor] = {}

    def note(depth: int) -> Callable:
        def hook(_module: Any, args: tuple, kwargs: dict) -> Any:
            x = args[0] if args else kwargs["hidden_states"]
            streams[depth] = x if depth else x.detach().requires_grad_()
            return ((streams[depth], *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": streams[depth]})

        return hook

    handles = []
    for index, layer in enumerate(layers(model)):
        handles.append(layer.register_forward_pre_hook(note(2 * index), with_kwargs=True))
        if not getattr(layer, "use_parallel_residual", False):  # there is no stream between the two
            middle = getattr(layer, mlp_norm(layer))
            handles.append(middle.register_forward_pre_hook(note(2 * index + 1), with_kwargs=True))
    handles.append(layers(model)[-1].register_forward_hook(lambda _m, _args, out: streams.__setitem__(2 * LAYERS, out)))
    biases = [p for name, p in layers(model).named_parameters() if "bias" in name]
    try:
        with oracles.eager(model), torch.enable_grad():
            model(torch.tensor([IDS]), use_cache=False)
            last = streams.pop(2 * LAYERS)
            last = last[0] if isinstance(last, tuple) else last
            wanted = [*streams.values(), *biases]
            found = [
                torch.autograd.grad((last[0] * t).sum(), wanted, retain_graph=True, materialize_grads=True)
                for t in target
            ]
    finally:
        for handle in handles:
            handle.remove()
    gradients = {depth: torch.stack([one[i][0] for one in found]) for i, depth in enumerate(streams)}
    own = [[(g * b).sum() for g, b in zip(one[len(streams) :], biases, strict=True)] for one in found]
    return gradients, torch.stack([sum(one, torch.zeros(()).double()) for one in own]).detach()


# ----------------------------------------------------------------------------------------------------------------- bf16


@every
def test_in_bfloat16_the_parts_add_up_but_for_rounding(shape: str) -> None:
    seen = trace(tiny(shape, torch.bfloat16), torch.tensor(IDS))
    bound = rounding_bound(torch.bfloat16, LAYERS)
    for rule in RULES:
        for place, rows in carried(seen, of_tokens(seen), STREAMS, rule).items():
            parts, whole = rows.dense(), seen.at(place)
            assert parts.isfinite().all()
            assert (parts.sum(1) - whole).norm() <= bound * max(whole.norm(), parts.norm(dim=-1).max()), place


@every
def test_a_bfloat16_model_that_is_traced_in_float32_is_carried_as_by_the_oracle(shape: str) -> None:
    seen = trace(tiny(shape, torch.bfloat16), torch.tensor(IDS), dtype=torch.float32)
    own = oracles.look(fresh(shape, torch.bfloat16).double(), torch.tensor(IDS))
    exact = trace(adapter_for(own.model), torch.tensor(IDS))
    streams, _ = carried_by_oracle(own, of_tokens(exact), "half")
    for place, rows in carried(seen, of_tokens(seen), STREAMS, "half").items():
        assert off(rows.dense().double(), streams[place.depth].x) <= 1e-4, place


def test_only_layers_of_the_delta_rule_hand_out_no_pattern() -> None:
    assert {shape for shape in EVERY if not all(has_softmax(tiny(shape).model, i) for i in range(LAYERS))} == set(DELTA)
