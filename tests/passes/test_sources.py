"""Where a decomposition starts: components that sum to the stream, and what each of them is."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from depass_sae.errors import UserError
from depass_sae.models.load import adapter_for
from depass_sae.passes.forward import Allocation
from depass_sae.passes.sources import (
    Heads,
    Modules,
    Neurons,
    Source,
    Spans,
    Split,
    Subspace,
    Vectors,
)

from .models import (
    D_MLP,
    D_MODEL,
    EVERY,
    GATED,
    HEADS,
    LAYERS,
    SHAPES,
    attention_of,
    fresh,
    mlp_of,
    recorded_heads,
    recorded_neurons,
    tiny,
)
from .reference import Components, weights
from .reference import decompose as direct
from .test_forward import IDS, assert_agree, carried, recorded

layers = st.integers(0, LAYERS - 1)
STREAM = ("resid_pre", "resid_mid", "resid_post")


def rows(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, D_MODEL, generator=torch.Generator().manual_seed(seed))


def parts_of(start: Split) -> tuple[Tensor, Tensor, Tensor]:
    """The source's own [pos, comp, d_model], bias and rest."""
    dense = start.rows.dense()
    return dense[:, :-2], dense[:, -2], dense[:, -1]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@st.composite
def component_sources(draw: st.DrawFn) -> Source:
    layer, seed = draw(layers), draw(st.integers(0, 99))
    neurons = st.lists(st.integers(0, D_MLP - 1), min_size=1, max_size=4, unique=True)
    groups = draw(st.lists(neurons, min_size=1, max_size=3))
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    matrices = [rows(size, seed + i) for i, size in enumerate(sizes)]
    return draw(
        st.sampled_from(
            [
                Heads(layer),
                Modules(layer, "attn"),
                Modules(layer, "mlp"),
                Neurons(layer),
                Neurons(layer, groups),
                *(Subspace(matrices, layer, hook) for hook in STREAM),
                Subspace(matrices[0], layer, rank=1),
            ]
        )
    )


@given(shape=st.sampled_from(EVERY), dtype=st.sampled_from([torch.float32, torch.float64]), source=component_sources())
@settings(max_examples=150)
def test_the_components_sum_to_the_stream_where_they_start(shape: str, dtype: torch.dtype, source: Source) -> None:
    seen = recorded(tiny(shape, dtype), IDS)
    start = source.start(seen)
    assert start.labels[-2:] == ("bias", "rest")
    assert start.rows.n_components == len(start.labels) == len(start.first_only)
    assert start.rows.values.dtype == dtype
    assert not start.first_only.any()
    assert close(start.rows.dense().sum(1), seen.at(start.at), 1e-5 if dtype == torch.float32 else 1e-6)


@pytest.mark.parametrize("rule", ["softmax", "half"])
@pytest.mark.parametrize("shape", SHAPES)
def test_heads_are_carried_as_the_direct_transcription_carries_them(shape: str, rule: str) -> None:
    adapter = tiny(shape, torch.float64)
    seen = recorded(adapter, IDS)
    start = Heads(1).start(seen)
    w = weights(adapter.model, 1)
    z = seen.at((1, "hook_z")).unflatten(-1, (HEADS, -1))
    heads = torch.einsum("nhd,hde->nhe", z, w.o.unflatten(0, (HEADS, -1)))
    bias = torch.zeros(len(IDS), D_MODEL).to(heads) if w.b_o is None else w.b_o.expand(len(IDS), -1)
    values = torch.cat([heads, bias[:, None], seen.resid_pre[1][:, None]], dim=1).detach()
    present = torch.ones(values.shape[:2], dtype=torch.bool)
    present[:, -2] = w.b_o is not None
    expected = direct(adapter.model, seen.token_ids, Components(values, present), start.at, rule)
    assert_agree(carried(adapter, seen, start, Allocation(rule)), expected, 1e-5)


# -------------------------------------------------------------------------------------------------- heads and modules


@pytest.mark.parametrize("shape", SHAPES)
def test_a_head_is_its_part_of_hook_z_through_its_rows_of_the_output_map(shape: str) -> None:
    seen = recorded(tiny(shape), IDS)
    for layer in range(LAYERS):
        attention = attention_of(seen.adapter, layer)
        start = Heads(layer).start(seen)
        heads, bias, rest = parts_of(start)
        assert start.at == (layer, "resid_mid")
        assert start.labels[:-2] == tuple(f"head {h}" for h in range(HEADS))
        for head in range(HEADS):
            alone = torch.zeros_like(seen.at((layer, "hook_z")))
            own = slice(head * attention.d_head, (head + 1) * attention.d_head)
            alone[:, own] = seen.at((layer, "hook_z"))[:, own]
            assert close(heads[:, head], alone @ attention.o.weight)
        assert torch.equal(rest, seen.resid_pre[layer])
        own = torch.zeros(D_MODEL) if attention.o.bias is None else attention.o.bias
        assert torch.equal(bias, own.expand_as(rest))
        assert close(recorded_heads(seen, layer), seen.at((layer, "hook_z")))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_output_bias_is_present_as_bias_where_there_is_one(shape: str) -> None:
    seen = recorded(tiny(shape), IDS)
    attention, mlp = attention_of(seen.adapter, 1), mlp_of(seen.adapter, 1)
    for source, bias in ((Heads(1), attention.o.bias), (Neurons(1), mlp.down.bias)):
        start = source.start(seen)
        assert start.rows.present[:, -2].tolist() == [bias is not None] * len(IDS)
        assert start.rows.present[:, -1].all()
        if bias is not None:
            assert torch.equal(parts_of(start)[1], bias.expand(len(IDS), -1))


@pytest.mark.parametrize("module", ["attn", "mlp"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_module_is_its_output_biases_included(shape: str, module: Any) -> None:
    seen = recorded(tiny(shape), IDS)
    for layer in range(LAYERS):
        start = Modules(layer, module).start(seen)
        (output,), bias, rest = parts_of(start)[0].unbind(1), *parts_of(start)[1:]
        assert start.labels == (f"{module} {layer}", "bias", "rest")
        assert start.at == (layer, {"attn": "resid_mid", "mlp": "resid_post"}[module])
        assert close(output, seen.at((layer, f"{module}_out")))
        assert torch.equal(rest, seen.at((layer, {"attn": "resid_pre", "mlp": "resid_mid"}[module])))
        assert not start.rows.present[:, -2].any()
        assert not bias.any()


# ---------------------------------------------------------------------------------------------------------- neurons


@pytest.mark.parametrize("shape", SHAPES)
def test_a_neuron_is_its_activation_along_its_output_row(shape: str) -> None:
    seen = recorded(tiny(shape, torch.float64), IDS)
    mlp = mlp_of(seen.adapter, 2)
    x = seen.at((2, "mlp_in"))
    activation = mlp.act(mlp.gate(x)) if mlp.up is None else mlp.act(mlp.gate(x)) * mlp.up(x)
    start = Neurons(2).start(seen)
    parts, _, rest = parts_of(start)
    assert start.labels[:-2] == tuple(f"neuron {f}" for f in range(D_MLP))
    assert close(recorded_neurons(seen, 2), activation)
    assert close(parts, activation[..., None] * mlp.down.weight)
    assert close(rest, seen.resid_mid[2], 1e-10)


@pytest.mark.parametrize("shape", EVERY)
def test_a_group_of_neurons_is_their_sum_and_the_others_are_rest(shape: str) -> None:
    seen = recorded(tiny(shape, torch.float64), IDS)
    single = parts_of(Neurons(1).start(seen))[0]
    start = Neurons(1, [[4, 7], [2], range(10, 13)]).start(seen)
    parts, _, rest = parts_of(start)
    first = "0." if shape in ("gpt_oss", "qwen3_5_moe_text") else ""
    groups = [f"neurons [{first}4, {first}7]", f"neuron {first}2"]
    assert list(start.labels[:2]) == groups
    assert close(parts[:, 0], single[:, [4, 7]].sum(1), 1e-10)
    assert close(parts[:, 1], single[:, 2], 1e-10)
    assert close(parts[:, 2], single[:, 10:13].sum(1), 1e-10)
    assert close(rest, seen.resid_mid[1] + single.sum(1) - parts.sum(1), 1e-10)


# -------------------------------------------------------------------------------------------------------- subspaces


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 999),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
)  # fmt: skip
@settings(max_examples=60)
def test_bases_are_orthonormal_and_orthogonal_to_each_other(sizes: list[int], seed: int, scale: float) -> None:
    matrices = [scale * rows(size, seed + i) for i, size in enumerate(sizes)]
    bases = Subspace(matrices, 0).bases(torch.zeros(1, D_MODEL, dtype=torch.float64))
    assert [len(basis) for basis in bases] == sizes
    together = torch.cat(bases)
    assert torch.allclose(together @ together.T, torch.eye(len(together)).double(), atol=1e-9)
    # what the first few span, all in all, is what their rows span
    given_rows = torch.cat(matrices).double()
    assert torch.allclose(given_rows @ together.T @ together, given_rows, atol=1e-9 * scale * 10)


@given(rank=st.integers(1, 6), copies=st.integers(1, 3), seed=st.integers(0, 999))
@settings(max_examples=40)
def test_rows_that_repeat_each_other_span_no_more(rank: int, copies: int, seed: int) -> None:
    span = rows(rank, seed)
    repeated = torch.randn(copies * rank, rank, generator=torch.Generator().manual_seed(seed)) @ span
    (basis,) = Subspace(torch.cat([span, repeated]), 0).bases(torch.zeros(1, D_MODEL, dtype=torch.float64))
    assert len(basis) == rank


@pytest.mark.parametrize("shape", EVERY)
def test_a_projector_gives_the_projection_and_what_is_off_it_is_rest(shape: str) -> None:
    seen = recorded(tiny(shape, torch.float64), IDS)
    q, _ = torch.linalg.qr(rows(5).T.double())
    projector = q @ q.T
    for hook in STREAM:
        start = Subspace(projector, 1, hook).start(seen)
        x = seen.at((1, hook))
        (inside,), _, rest = parts_of(start)[0].unbind(1), *parts_of(start)[1:]
        assert start.at == (1, hook)
        assert start.labels == ("subspace 0", "bias", "rest")
        assert close(inside, x @ projector, 1e-9)
        assert close(rest, x - x @ projector, 1e-9)
        assert not start.rows.present[:, -2].any()


def test_of_several_subspaces_each_takes_what_those_before_it_leave() -> None:
    seen = recorded(tiny("llama", torch.float64), IDS)
    first, second = rows(2, 1), rows(3, 2)
    alone = parts_of(Subspace(first, 1).start(seen))[0][:, 0]
    both = parts_of(Subspace(torch.cat([first, second]), 1).start(seen))[0][:, 0]
    apart = parts_of(Subspace([first, second], 1).start(seen))[0]
    assert close(apart[:, 0], alone, 1e-10)
    assert close(apart.sum(1), both, 1e-10)
    assert ((apart[:, 0] * apart[:, 1]).sum(-1).abs() < 1e-9).all()


def test_the_whole_stream_leaves_no_rest() -> None:
    seen = recorded(tiny("llama", torch.float64), IDS)
    inside, _, rest = parts_of(Subspace(torch.eye(D_MODEL), 1).start(seen))
    assert close(inside[:, 0], seen.at((1, "resid_post")), 1e-12)
    assert rest.abs().max() < 1e-10


def test_rank_keeps_the_strongest_directions() -> None:
    axes = torch.diag(torch.tensor([3.0, 1.0, 2.0] + [0.0] * (D_MODEL - 3)))
    (basis,) = Subspace(axes, 0, rank=2).bases(torch.zeros(1, D_MODEL))
    assert basis.abs()[:, :3].round().tolist() == [[1, 0, 0], [0, 0, 1]]
    assert len(Subspace(axes, 0, rank=9).bases(torch.zeros(1, D_MODEL))[0]) == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_rows_may_be_of_any_dtype_and_need_gradients(dtype: torch.dtype) -> None:
    matrix = (4 * rows(2)).to(dtype)
    if dtype.is_floating_point:
        matrix.requires_grad_()
    (basis,) = Subspace(matrix, 0).bases(torch.zeros(1, D_MODEL))
    assert basis.dtype == torch.float32
    assert not basis.requires_grad


# ---------------------------------------------------------------------------------------------------------- refusals


def refusal(source: Source) -> str:
    with pytest.raises(UserError) as caught:
        source.start(recorded(tiny("llama"), [1, 2, 3]))
    assert "\n" not in str(caught.value)
    return str(caught.value)


NO_DIRECTION = "a subspace has no direction of its own: its rows are zero, or lie in those before it"


@pytest.mark.parametrize(
    ("matrices", "complaint"),
    [
        (torch.zeros(2, D_MODEL), NO_DIRECTION),
        (torch.zeros(0, D_MODEL), NO_DIRECTION),
        ([rows(3), 2 * rows(3)[1:]], NO_DIRECTION),
        ([torch.eye(D_MODEL), rows(1)], NO_DIRECTION),
        (torch.zeros(2, D_MODEL + 1), f"a subspace is given by rows of {D_MODEL} entries, not by [2, {D_MODEL + 1}]"),
        (torch.ones(D_MODEL), f"a subspace is given by rows of {D_MODEL} entries, not by [{D_MODEL}]"),
        (torch.full((1, D_MODEL), torch.nan), "a subspace's rows have NaN or infinite entries"),
        (torch.full((1, D_MODEL), torch.inf), "a subspace's rows have NaN or infinite entries"),
        ([], "a subspace needs a matrix of rows that span it, and a rank of 1 or more"),
    ],
)
def test_a_subspace_that_is_none_is_refused(matrices: Any, complaint: str) -> None:
    assert refusal(Subspace(matrices, 0)) == complaint


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_1_is_refused(rank: int) -> None:
    assert "a rank of 1 or more" in refusal(Subspace(rows(2), 0, rank=rank))


@pytest.mark.parametrize("hook", ["mlp_out", "hook_z"])
def test_a_start_off_the_stream_is_refused(hook: str) -> None:
    for source in (Subspace(rows(2), 0, hook), Vectors(torch.zeros(3, 1, D_MODEL), ["a"], (0, hook))):
        assert refusal(source) == f"a decomposition starts on the residual stream, not at {hook}"


@pytest.mark.parametrize("layer", [-1, LAYERS])
def test_a_layer_that_is_not_there_is_refused_by_every_source(layer: int) -> None:
    vectors = Vectors(torch.zeros(3, 1, D_MODEL), ["a"], (layer, "resid_pre"))
    others: list[Source] = [Heads(layer), Modules(layer, "attn"), Modules(layer, "mlp"), Neurons(layer)]
    for source in (*others, Subspace(rows(1), layer), Spans([[0]], ["a"], layer), vectors):
        assert refusal(source) == f"there is no layer {layer}; there are layers 0 to {LAYERS - 1}"


@pytest.mark.parametrize("groups", [[[0, D_MLP]], [[-1]], []])
def test_neurons_that_are_not_there_are_refused(groups: list[list[int]]) -> None:
    assert f"0 to {D_MLP - 1}" in refusal(Neurons(0, groups))


def test_a_module_of_another_name_is_refused() -> None:
    assert refusal(Modules(0, "attention")) == 'a module is "attn" or "mlp", not \'attention\''  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [shape for shape in GATED if shape in SHAPES])
def test_a_down_projections_bias_of_its_own_goes_to_bias(shape: str) -> None:
    adapter = adapter_for(fresh(shape, torch.float64))
    down = adapter.model.model.layers[1].mlp.down_proj
    down.bias = torch.nn.Parameter(torch.linspace(-2, 2, D_MODEL, dtype=torch.float64))
    seen = recorded(adapter, IDS)
    start = Neurons(1).start(seen)
    assert torch.equal(parts_of(start)[1][0], down.bias.detach())
    assert close(start.rows.dense().sum(1), seen.at((1, "resid_post")), 1e-6)
