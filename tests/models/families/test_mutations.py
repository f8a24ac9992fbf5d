"""A table of a family that says something wrong is refused by the self-check, whatever it is that is wrong."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from depass_sae.errors import UserError
from depass_sae.models.adapter import Adapter
from depass_sae.models.load import adapter_for
from depass_sae.models.parts import Convolved, Gate, Linear, Norm, conv1d, fused, interleaved, linear
from depass_sae.models.place import Place
from depass_sae.models.sublayer import Layer
from depass_sae.passes.selfcheck import check
from tests.passes.models import CONFIGS, EVERY, WHOLE, build, tiny

Mutation = Callable[[Any, Any, int], Any]
"""The text model, a part of a layer, and its layer -> the part as a wrong table has it."""


@dataclass(frozen=True)
class Wrong:
    """sublayer: which of a layer's two is wrong; attribute: what of it ("" for all of it)."""

    name: str
    shapes: tuple[str, ...]
    sublayer: int
    attribute: str
    change: Mutation


GEMMAS = ("gemma", "gemma2", "gemma3_text", "gemma3")
QWENS = ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_5", "qwen3_5_moe")
MOES = ("qwen3_moe", "qwen3_5_moe_text", "qwen3_5_moe")
SHARED = ("qwen3_5_moe_text", "qwen3_5_moe")
TURNED = tuple(shape for shape in (*EVERY, *WHOLE) if shape != "gpt2")


def only(kind: str, change: Mutation) -> Mutation:
    """Where a mixer is of this kind."""
    return lambda text, mixer, index: change(text, mixer, index) if type(mixer).__name__ == kind else mixer


def of_scores(**changed: Callable[[Any], Any]) -> Mutation:
    def change(_text: Any, mixer: Any, _index: int) -> Any:
        found = {name: make(mixer.scores) for name, make in changed.items()}
        return replace(mixer, scores=replace(mixer.scores, **found))

    return only("Attention", change)


def without(name: str) -> Mutation:
    return lambda _text, part, _index: replace(part, **{name: None})


def in_other_layers(_text: Any, mixer: Any, _index: int) -> Any:
    """Windows where there are none, and none where there are."""
    return replace(mixer, window=3 if mixer.window is None else None)


def in_blocks(text: Any, mixer: Any, index: int) -> Any:
    """GPT-NeoX's fused map read as [q, k, v] of all heads."""
    whole = linear(text.layers[index].attention.query_key_value)
    q, k, v = fused(whole, *3 * [whole.weight.shape[0]])
    return replace(mixer, v=v, scores=replace(mixer.scores, q=q, k=k))


def by_heads(text: Any, mixer: Any, index: int) -> Any:
    """GPT-2's fused map read head by head."""
    q, k, v = interleaved(conv1d(text.h[index].attn.c_attn), mixer.n_heads, 3)
    return replace(mixer, v=v, scores=replace(mixer.scores, q=q, k=k))


def keys_first(_text: Any, mixer: Any, _index: int) -> Any:
    return replace(mixer, scores=replace(mixer.scores, q=mixer.scores.k, k=mixer.scores.q))


def gates_first(text: Any, mixer: Any, index: int) -> Any:
    """[gate, q] head by head for [q, gate]."""
    gate, q = interleaved(linear(text.layers[index].self_attn.q_proj), mixer.n_heads, 2)
    return replace(mixer, gate=Gate(gate, torch.sigmoid), scores=replace(mixer.scores, q=q))


def as_if_renormalised(wrong: bool) -> Mutation:
    def change(_text: Any, mixer: Any, _index: int) -> Any:
        def weigh(logits: Tensor, choice: Tensor) -> Tensor:
            kept = logits.softmax(-1).gather(-1, choice)
            return kept if wrong else kept / kept.sum(-1, keepdim=True)

        return replace(mixer, weigh=weigh)

    return only("Experts", change)


def over_all(_text: Any, mixer: Any, _index: int) -> Any:
    """gpt-oss's weights as a softmax over all experts."""
    return replace(mixer, weigh=lambda logits, choice: logits.softmax(-1).gather(-1, choice))


def of_experts(change: Callable[[Any], Any]) -> Mutation:
    return only("Experts", lambda _text, mixer, _index: replace(mixer, expert=lambda i: change(mixer.expert(i))))


def swapped(mlp: Any) -> Any:
    return replace(mlp, gate=mlp.up, up=mlp.gate)


def in_halves(text: Any, mixer: Any, index: int) -> Any:
    """gpt-oss's fused map read as [gate, up], which take turns."""
    own = text.layers[index].mlp.experts

    def expert(i: int) -> Any:
        gate, up = fused(
            Linear(own.gate_up_proj[i].detach(), own.gate_up_proj_bias[i].detach()),
            *2 * [own.gate_up_proj.shape[2] // 2],
        )
        return replace(mixer.expert(i), gate=gate, up=up)

    return replace(mixer, expert=expert)


def all_turned(text: Any, mixer: Any, index: int) -> Any:
    """Rotary positions on all channels of a head."""
    width = mixer.d_head

    def turn(positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)
        return tuple(torch.cat([half, half], -1) for half in (angles.cos(), angles.sin()))  # type: ignore[return-value]

    return of_scores(rotary=lambda _scores: turn)(text, mixer, index)


class _Nothing(Norm):
    """A norm that is left out."""

    def scale(self, x: Tensor) -> Tensor:
        return torch.ones_like(x[..., :1])

    @property
    def gain(self) -> Tensor:
        return torch.ones_like(self.weight)


def left_out(norm: Norm) -> Norm:
    return _Nothing(norm.module, norm.kind, norm.weight, norm.bias, norm.eps, norm.plus)


def of_delta(**changed: Callable[[Any], Any]) -> Mutation:
    return only(
        "DeltaRule",
        lambda _text, mixer, _index: replace(
            mixer, **{name: make(getattr(mixer, name)) for name, make in changed.items()}
        ),
    )


def backwards(into: Convolved) -> Convolved:
    return replace(into, taps=into.taps.flip(1))


def serial(_text: Any, part: Any, index: int) -> Any:
    return replace(part, reads=Place(index, "resid_mid"))


def parallel(_text: Any, part: Any, index: int) -> Any:
    return replace(part, reads=Place(index, "resid_pre"))


def plain_gain(_text: Any, norm: Norm, _index: int) -> Norm:
    return replace(norm, plus=0.0)


def one_more(_text: Any, norm: Norm, _index: int) -> Norm:
    return replace(norm, plus=1.0)


MUTATIONS = [
    Wrong("the gain is w, not 1 + w", (*GEMMAS, *QWENS), 0, "norm", plain_gain),
    Wrong("the gain is w, not 1 + w, before the MLP", (*GEMMAS, *QWENS), 1, "norm", plain_gain),
    Wrong("the gain is 1 + w, not w", ("llama", "qwen3_moe", "gpt_oss"), 0, "norm", one_more),
    Wrong("the gain of a post-norm is w, not 1 + w", GEMMAS[1:], 0, "post", plain_gain),
    Wrong("no post-norm behind attention", GEMMAS[1:], 0, "", without("post")),
    Wrong("no post-norm behind the MLP", GEMMAS[1:], 1, "", without("post")),
    Wrong("windows in the other layers", ("gemma2", "gemma3_text", "gpt_oss", "qwen2"), 0, "mixer", in_other_layers),
    Wrong("no windows", ("mistral", "gemma2", "gemma3", "gpt_oss"), 0, "mixer", without("window")),
    Wrong("q, k and v in blocks", ("gpt_neox", "gpt_neox_serial"), 0, "mixer", in_blocks),
    Wrong("q, k and v by heads", ("gpt2",), 0, "mixer", by_heads),
    Wrong("keys before queries", ("gpt2", "gpt_neox"), 0, "mixer", keys_first),
    Wrong("weights are not renormalised", MOES, 1, "mixer", as_if_renormalised(True)),
    Wrong("a softmax over all experts", ("gpt_oss",), 1, "mixer", over_all),
    Wrong("gate and up of experts swapped", (*MOES, "gpt_oss"), 1, "mixer", of_experts(swapped)),
    Wrong("gate and up of experts in halves", ("gpt_oss",), 1, "mixer", in_halves),
    Wrong(
        "experts' up without clamp and 1", ("gpt_oss",), 1, "mixer", of_experts(lambda mlp: replace(mlp, up_act=None))
    ),
    Wrong("no shared expert", SHARED, 1, "mixer", without("shared")),
    Wrong("no gate on the shared expert", SHARED, 1, "mixer", without("shared_gate")),
    Wrong("no gate on attention", QWENS, 0, "mixer", only("Attention", without("gate"))),
    Wrong("gates before queries", QWENS, 0, "mixer", only("Attention", gates_first)),
    Wrong(
        "no rate in the decay",
        QWENS,
        0,
        "mixer",
        of_delta(decay=lambda g: replace(g, act=lambda t: -torch.nn.functional.softplus(t))),
    ),
    Wrong(
        "no bias in the decay", QWENS, 0, "mixer", of_delta(decay=lambda g: replace(g, linear=Linear(g.linear.weight)))
    ),
    Wrong("β without its sigmoid", QWENS, 0, "mixer", of_delta(beta=lambda g: replace(g, act=lambda t: t))),
    Wrong("taps of the values reversed", QWENS, 0, "mixer", of_delta(v=backwards)),
    Wrong("taps of queries and keys reversed", QWENS, 0, "mixer", of_delta(q=backwards, k=backwards)),
    Wrong("no norm of the delta rule's heads", QWENS, 0, "mixer", of_delta(head_norm=left_out)),
    Wrong("no norm of its queries and keys", QWENS, 0, "mixer", of_delta(qk_norm=left_out)),
    Wrong("a gate of its heads by sigmoid", QWENS, 0, "mixer", of_delta(gate=lambda g: replace(g, act=torch.sigmoid))),
    Wrong("no soft-cap on scores", ("gemma2",), 0, "mixer", of_scores(softcap=lambda _: None)),
    Wrong("no sinks", ("gpt_oss",), 0, "mixer", of_scores(sinks=lambda _: None)),
    Wrong(
        "no QK-norm",
        ("qwen3", "qwen3_moe", "gemma3_text", *QWENS),
        0,
        "mixer",
        of_scores(q_norm=lambda _: None, k_norm=lambda _: None),
    ),
    Wrong(
        "QK-norm's gain is w",
        ("gemma3_text", *QWENS),
        0,
        "mixer",
        of_scores(q_norm=lambda s: replace(s.q_norm, plus=0.0)),
    ),
    Wrong("rotary on all channels", ("gpt_neox", *QWENS), 0, "mixer", only("Attention", all_turned)),
    Wrong("no rotary", TURNED, 0, "mixer", of_scores(rotary=lambda _: None)),
    Wrong("another scale of scores", (*EVERY, *WHOLE), 0, "mixer", of_scores(scale=lambda s: 1.3 * s.scale)),
    Wrong("parallel taken as serial", ("gpt_neox",), 1, "", serial),
    Wrong("serial taken as parallel", ("gpt_neox_serial", "llama"), 1, "", parallel),
]
EACH = [(wrong, shape) for wrong in MUTATIONS for shape in wrong.shapes]


def mutated(adapter: Adapter, wrong: Wrong) -> Adapter:
    family = adapter.family

    def layer(text: Any, config: Any, index: int) -> Layer:
        whole = family.layer(text, config, index)
        part = whole.sublayers[wrong.sublayer]
        if wrong.attribute:
            part = replace(part, **{wrong.attribute: wrong.change(text, getattr(part, wrong.attribute), index)})
        else:
            part = wrong.change(text, part, index)
        both = (part, whole.sublayers[1]) if wrong.sublayer == 0 else (whole.sublayers[0], part)
        return replace(whole, sublayers=both)

    return replace(adapter, family=replace(family, layer=layer))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [*EVERY, *WHOLE])
def test_the_tables_as_they_are_fit(shape: str, dtype: torch.dtype) -> None:
    check(tiny(shape, dtype))


@pytest.mark.parametrize(("wrong", "shape"), EACH, ids=[f"{wrong.name}-{shape}" for wrong, shape in EACH])
def test_a_wrong_fact_is_refused(wrong: Wrong, shape: str) -> None:
    with pytest.raises(UserError, match="adapter does not fit this") as caught:
        check(mutated(tiny(shape), wrong))
    assert "\n" not in str(caught.value)


def test_a_soft_cap_of_logits_that_is_left_out_is_refused() -> None:
    adapter = tiny("gemma2")
    with pytest.raises(UserError, match="the logits is off by"):
        check(replace(adapter, family=replace(adapter.family, softcap=lambda _config: None)))


def test_renormalising_where_the_model_does_not_is_refused() -> None:
    config = CONFIGS["qwen3_moe"]()
    config.norm_topk_prob = False
    adapter = adapter_for(build(config))
    check(adapter)
    with pytest.raises(UserError, match="make of the stream is off by"):
        check(mutated(adapter, Wrong("renormalised", (), 1, "mixer", as_if_renormalised(False))))
