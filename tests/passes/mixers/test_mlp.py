"""MLPs, gated or not: components share neurons as the oracle says, whatever the norm before and the biases."""

import pytest
import torch

from depass_sae.models.place import Place
from depass_sae.passes.record import trace

from .. import oracles
from ..agreement import CLOSE, IDS, assert_carried, both, carried, off, vectors
from ..models import EVERY, LAYERS, ROUTED, mlp_of, tiny

DENSE = [
    (shape, layer)
    for shape in EVERY
    for layer in range(LAYERS)
    if shape not in ROUTED or (shape, layer) == ("qwen3_moe", 1)
]
each = pytest.mark.parametrize(("shape", "layer"), DENSE)


@pytest.mark.parametrize("rule", ["linear", "half", "softmax"])
@each
def test_components_that_are_absent_here_and_there_share_as_by_the_oracle(shape: str, layer: int, rule: str) -> None:
    seen, own = both(tiny(shape, torch.float64))
    start = vectors(seen, Place(layer, "resid_mid"), seed=layer).start(seen)
    assert_carried(seen, own, start, rule, until=2 * layer + 2)


@pytest.mark.parametrize("shape", EVERY)
def test_the_normed_input_is_there_with_and_without_the_gain(shape: str) -> None:
    seen, _ = both(tiny(shape, torch.float64))
    start, bare, gained = (
        vectors(seen, Place(0, "resid_mid")).start(seen),
        *(Place(0, h) for h in ("ln2_normalized", "mlp_in")),
    )
    found = carried(seen, start, [bare, gained])
    norm = seen.sublayer(1).norm
    with_gain = found[bare].dense() * norm.gain
    if norm.bias is not None:
        with_gain[:, -2] += norm.bias
    assert off(found[gained].dense(), with_gain) <= 1e-12
    module = oracles.layers(seen.adapter.model)[0]
    with torch.no_grad():
        whole = getattr(module, oracles.mlp_norm(module))(seen.at(seen.sublayer(1).sublayer.reads))
    assert off(found[gained].dense().sum(1), whole) <= CLOSE


@each
def test_what_the_neurons_add_is_what_the_model_recorded(shape: str, layer: int) -> None:
    seen, own = both(tiny(shape, torch.float64))
    frozen = seen.sublayer(2 * layer + 1)
    _, added = oracles.decompose(own, oracles.per_token(own.stream(0)), 0, oracles.Rule("linear"))
    assert off(frozen.written_by(), added[2 * layer + 1].units) <= CLOSE
    assert frozen.mixer.n_units == added[2 * layer + 1].units.shape[1]
    assert (mlp_of(seen.adapter, layer).up is None) == (shape.startswith(("gpt2", "gpt_neox")))


def test_the_recorded_neurons_are_what_goes_into_the_last_map() -> None:
    adapter = tiny("llama", torch.float64)
    seen, down = trace(adapter, torch.tensor(IDS)), adapter.model.model.layers[1].mlp.down_proj
    with torch.no_grad():
        out = down(seen.records[3].neurons)
    assert off(seen.resid_mid[1] + out, seen.resid_pre[2]) <= 1e-12
