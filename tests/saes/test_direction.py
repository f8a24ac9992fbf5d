"""The encoder as ⟨w, x⟩ + c, against what sae-lens computes."""

import pytest
import sae_lens
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens.registry import SAE_CLASS_REGISTRY

from depass_sae.errors import UserError
from depass_sae.saes import activations, encoder_direction, live_pre_activation, pre_activations, threshold_gap
from depass_sae.saes.direction import ARCHITECTURES, REFUSED

from .builders import AFFINE, D_IN, D_SAE, Recipe, activations_of_a_model, built, recipes

features = st.integers(0, D_SAE - 1)


def read_off(direction, x):
    return (direction.w * x).sum(-1) + direction.c


def rounding_unit(direction, x):
    """What float rounding is relative to: the size of the terms that are added."""
    return (direction.w * x).abs().sum(-1) + direction.c.abs()


@settings(deadline=None)
@given(recipes(), activations_of_a_model(), features)
def test_the_direction_gives_sae_lens_own_pre_activation(recipe, x, feature):
    sae = built(recipe)
    direction = encoder_direction(sae, x, feature)
    _, cache = sae.run_with_cache(x)
    theirs = cache["hook_sae_acts_pre"][:, feature].detach()
    if recipe.rescale_acts_by_decoder_norm:
        theirs = theirs * sae.W_dec[feature].norm().item()
    assert ((read_off(direction, x) - theirs).abs() <= 1e-5 * rounding_unit(direction, x)).all()


@settings(deadline=None)
@given(recipes("float64"), activations_of_a_model(torch.float64), features)
def test_in_float64_the_direction_is_exact_to_twelve_digits(recipe, x, feature):
    sae = built(recipe)
    direction = encoder_direction(sae, x, feature)
    assert direction.w.dtype == direction.c.dtype == torch.float64
    error = read_off(direction, x) - pre_activations(sae, x)[:, feature]
    assert (error.abs() <= 1e-12 * rounding_unit(direction, x)).all()


@settings(deadline=None)
@given(recipes(), activations_of_a_model(), features)
def test_where_a_feature_fires_its_activation_is_the_value_of_the_direction(recipe, x, feature):
    sae = built(recipe)
    fired = activations(sae, x)[:, feature]
    direction = encoder_direction(sae, x, feature)
    error = (read_off(direction, x) - fired).abs()
    assert (error <= 1e-5 * rounding_unit(direction, x))[fired != 0].all()


@settings(deadline=None)
@given(recipes(), activations_of_a_model(), features)
def test_a_feature_fires_exactly_where_it_is_above_its_threshold(recipe, x, feature):
    sae = built(recipe)
    gap, fired = threshold_gap(sae, x, feature), activations(sae, x)[:, feature] != 0
    assert (gap[fired] >= 0).all()
    if recipe.kind != "gated":  # its gate may be open while the magnitude is not positive
        assert (gap[~fired] <= 0).all()


@settings(deadline=None)
@given(recipes("float64"), activations_of_a_model(torch.float64), features, st.data())
def test_the_live_pre_activation_has_the_same_value_and_its_own_derivative(recipe, x, feature, data):
    sae = built(recipe)
    x.requires_grad_()
    live = live_pre_activation(sae, x, feature)
    (gradient,) = torch.autograd.grad(live.sum(), x)
    assert torch.allclose(live.detach(), read_off(encoder_direction(sae, x.detach(), feature), x.detach()))
    step = (
        1e-6 * x.detach().norm(dim=-1, keepdim=True) * data.draw(activations_of_a_model(torch.float64, len(x))).sign()
    )
    difference = pre_activations(sae, x.detach() + step) - pre_activations(sae, x.detach() - step)
    size = (gradient * step).abs().sum(-1)
    assert (((2 * gradient * step).sum(-1) - difference[:, feature]).abs() <= 1e-4 * size + 1e-12).all()


def test_a_gated_sae_has_a_gate_beside_the_magnitude():
    sae = Recipe("gated", "layer_norm", True).build()
    x = torch.randn(4, D_IN)
    gate = encoder_direction(sae, x, 3, path="gate")
    assert torch.allclose(read_off(gate, x), pre_activations(sae, x, path="gate")[:, 3], atol=1e-5)
    assert torch.equal(threshold_gap(sae, x, 3), pre_activations(sae, x, path="gate")[:, 3])


def test_an_sae_trained_on_centred_weights_reads_the_centred_activation():
    sae = Recipe("standard", apply_b_dec_to_input=True).build(
        model_from_pretrained_kwargs={"center_writing_weights": True}
    )
    x = torch.randn(4, D_IN) + 3
    centred = x - x.mean(-1, keepdim=True)
    assert torch.allclose(activations(sae, x), sae.encode(centred))
    direction = encoder_direction(sae, x, 7)
    assert torch.allclose(direction.w.mean(-1), torch.zeros(4), atol=1e-6)
    assert torch.allclose(read_off(direction, x), pre_activations(sae, centred)[:, 7], atol=1e-5)


def test_thresholds_are_compared_in_float32_whatever_the_weights_dtype():
    sae = Recipe("jumprelu", dtype="bfloat16").build()
    sae.threshold = torch.nn.Parameter(torch.full((D_SAE,), 0.123456789))
    x = torch.zeros(1, D_IN)
    assert threshold_gap(sae, x, 0).dtype == torch.float32
    assert threshold_gap(sae, x, 0).item() == sae.b_enc[0].float().item() - torch.tensor(0.123456789).item()


def test_half_precision_activations_are_worked_on_in_float32():
    direction = encoder_direction(built(Recipe("topk")), torch.randn(2, D_IN).bfloat16(), 0)
    assert direction.w.dtype == torch.float32


def test_nothing_that_comes_back_carries_a_gradient():
    sae, x = built(Recipe("topk", rescale_acts_by_decoder_norm=True)), torch.randn(2, D_IN)
    direction = encoder_direction(sae, x, 0)
    results = (direction.w, direction.c, activations(sae, x), pre_activations(sae, x), threshold_gap(sae, x, 0))
    assert not any(values.requires_grad for values in results)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda sae, x: encoder_direction(sae, x, D_SAE), f"0 to {D_SAE - 1}"),
        (lambda sae, x: encoder_direction(sae, x, -1), f"0 to {D_SAE - 1}"),
        (lambda sae, x: encoder_direction(sae, x, 0, path="gate"), "only magnitude"),
        (lambda sae, x: encoder_direction(sae, x, 0, path="sideways"), "only magnitude"),
        (lambda sae, x: pre_activations(sae, x, path="gate"), "only magnitude"),
        (lambda sae, x: encoder_direction(sae, x[:, 1:], 0), rf"\[pos, {D_IN}\], not \[3, {D_IN - 1}\]"),
    ],
)
def test_what_the_sae_does_not_have_is_refused_with_what_it_has(call, says):
    with pytest.raises(UserError, match=says):
        call(built(Recipe("jumprelu")), torch.randn(3, D_IN))


def test_an_sae_without_an_affine_pre_activation_is_refused_by_name():
    sae = Recipe("matching_pursuit").build()
    for call in (
        lambda: encoder_direction(sae, torch.randn(3, D_IN), 0),
        lambda: activations(sae, torch.randn(3, D_IN)),
    ):
        with pytest.raises(UserError, match=r"matching_pursuit SAE has no pre-activation .* supported are standard, "):
            call()


def test_a_temporal_sae_is_refused_for_what_it_takes_from_earlier_positions():
    config = sae_lens.TemporalSAEConfig(
        d_in=D_IN, d_sae=16, n_heads=2, bottleneck_factor=1, sae_diff_type="relu", activation_normalization_factor=2.0
    )
    torch.manual_seed(0)
    sae, x = sae_lens.TemporalSAE(config), torch.randn(1, 4, D_IN)
    other = torch.cat([100 * x[:, :1], x[:, 1:]], dim=1)
    seen = [sae.run_with_cache(given)[1]["hook_sae_acts_pre"][0, -1] for given in (x, other)]
    assert not torch.allclose(*seen, atol=1e-3)  # another first position, and another pre-activation at the last
    with pytest.raises(UserError, match="predicts from all earlier positions"):
        encoder_direction(sae, x[0], 0)


def test_every_architecture_of_sae_lens_is_in_the_table_or_refused_with_a_reason():
    own = {kind for kind in ARCHITECTURES if "cross_layer" in kind}
    assert set(SAE_CLASS_REGISTRY) == set(ARCHITECTURES) - own | set(REFUSED)
    assert not set(ARCHITECTURES) & set(REFUSED)


@pytest.mark.parametrize("kind", AFFINE)
def test_every_kind_is_in_the_table_of_random_saes(kind):
    assert built(Recipe(kind)).cfg.architecture() == kind
