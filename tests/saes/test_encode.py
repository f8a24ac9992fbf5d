"""Features as parts of the activation, and the fit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depass_sae.saes import activations, encode, feature_parts, fit, reconstructs, written_by

from .builders import D_IN, D_SAE, K, Recipe, activations_of_a_model, built, recipes


def added_up(parts):
    return parts.constant.index_add(0, parts.pos, parts.parts)


@settings(deadline=None)
@given(recipes("float64"), activations_of_a_model(torch.float64))
def test_parts_and_constant_add_up_to_sae_lens_own_decode(recipe, x):
    sae = built(recipe)
    parts = feature_parts(sae, x)
    decoded = sae.decode(sae.encode(x)).detach()
    assert torch.allclose(added_up(parts), decoded, rtol=1e-10, atol=1e-10 * decoded.abs().max().item())
    if parts.error is None:
        assert not reconstructs(sae)
    else:
        assert torch.allclose(added_up(parts) + parts.error, x, rtol=1e-10, atol=1e-10 * x.abs().max().item())


@settings(deadline=None, max_examples=50)
@given(recipes("float64"), activations_of_a_model(torch.float64))
def test_each_part_is_the_decode_of_that_feature_alone_less_the_decode_of_none(recipe, x):
    sae = built(recipe)
    parts = feature_parts(sae, x)

    def decode_at(pos, acts):
        sae.encode(x[pos : pos + 1])  # sae-lens takes the run-time scale from the last encode
        return sae.decode(acts).detach()[0]

    nothing = torch.zeros(1, D_SAE, dtype=torch.float64)
    for pos, index, activation, part in zip(parts.pos, parts.index, parts.activation, parts.parts, strict=True):
        alone = nothing.clone()
        alone[0, index] = activation
        assert torch.allclose(part, decode_at(int(pos), alone) - decode_at(int(pos), nothing))
    for pos, constant in enumerate(parts.constant):
        assert torch.allclose(constant, decode_at(pos, nothing))


@settings(deadline=None, max_examples=60)
@given(recipes("float64"), activations_of_a_model(torch.float64), st.integers(0, 9))
def test_what_some_features_write_is_what_sae_lens_decodes_less_what_it_decodes_without_them(recipe, x, seed):
    sae = built(recipe)
    which = torch.rand(len(x), D_SAE, generator=torch.Generator().manual_seed(seed)) < 0.5

    def decoded(kept):
        return sae.decode(sae.encode(x) * kept).detach()  # right after encoding, for the run-time scale

    whole = decoded(torch.ones_like(which))
    found = written_by(sae, x, which)
    assert torch.allclose(found, whole - decoded(~which), rtol=1e-10, atol=1e-10 * whole.abs().max().item())
    assert not written_by(sae, x, torch.zeros_like(which)).any()


def test_what_features_write_where_an_sae_reads_the_centred_stream():
    sae = Recipe("jumprelu", "constant_norm_rescale").build()
    sae.cfg.metadata.model_from_pretrained_kwargs = {"center_writing_weights": True}
    x = 3 * torch.randn(4, D_IN, generator=torch.Generator().manual_seed(0)) + 5
    which, centred = torch.arange(D_SAE) % 2 == 0, x - x.mean(-1, keepdim=True)
    whole, without = (sae.decode(sae.encode(centred) * kept).detach() for kept in (1, ~which))
    assert (whole - without).abs().max() > 0.1
    assert torch.allclose(written_by(sae, x, which.expand(4, -1)), whole - without, atol=1e-5)


def test_a_skip_connection_is_a_part_of_its_own():
    sae, x = built(Recipe("jumprelu_skip_transcoder")), torch.randn(3, D_IN)
    parts = feature_parts(sae, x)
    assert torch.allclose(added_up(parts) + parts.skip, sae(x), atol=1e-5)
    assert feature_parts(built(Recipe("jumprelu")), x).skip is None


def test_parts_list_the_active_features_by_position():
    sae, x = built(Recipe("topk")), torch.randn(3, D_IN)
    parts, acts = feature_parts(sae, x), activations(sae, x)
    assert parts.pos.tolist() == sorted(parts.pos.tolist())
    assert torch.equal(parts.activation, acts[parts.pos, parts.index])
    assert len(parts.pos) == (acts != 0).sum()


def test_active_features_come_strongest_first():
    sae, x = built(Recipe("abstopk")), torch.randn(3, D_IN)
    rows = encode(sae, x).active
    for row, acts in zip(rows, activations(sae, x), strict=True):
        assert len(row.indices) == K
        assert torch.equal(row.activations, acts[row.indices])
        assert row.activations.abs().tolist() == sorted(row.activations.abs().tolist(), reverse=True)


def identity_sae():
    """Reconstructs anything exactly: one feature for each sign of each dimension."""
    sae = Recipe("standard").build()
    weights = torch.zeros(D_SAE, D_IN)
    weights[:D_IN], weights[D_IN : 2 * D_IN] = torch.eye(D_IN), -torch.eye(D_IN)
    for name, values in {"W_dec": weights, "W_enc": weights.T, "b_enc": 0.0, "b_dec": 0.0}.items():
        getattr(sae, name).data.copy_(torch.as_tensor(values))
    return sae


def test_explained_variance_and_l0_leave_position_0_out():
    sae, x = built(Recipe("topk", "layer_norm")), torch.randn(6, D_IN)
    shaken = x.clone()
    shaken[0] *= 1e4
    assert fit(sae, x) == fit(sae, shaken)
    missed = (x - sae(x))[1:].square().sum()
    variance = (x[1:] - x[1:].mean(0)).square().sum()
    assert fit(sae, x).explained_variance == pytest.approx(1 - (missed / variance).item(), rel=1e-4)
    assert fit(sae, x).l0 == (activations(sae, x)[1:] != 0).sum(-1).double().mean()


@pytest.mark.parametrize("x", [torch.randn(1, D_IN), torch.randn(2, D_IN), torch.ones(5, D_IN)])
def test_without_variance_nothing_is_said_of_explaining_it(x):
    assert fit(identity_sae(), x).explained_variance is None


def test_one_position_alone_gives_no_warning():
    assert fit(built(Recipe("jumprelu")), torch.randn(1, D_IN)).warning is None


def test_a_fitting_sae_gets_no_warning():
    sae = identity_sae()
    x = torch.eye(D_IN)[:6] * 3
    assert fit(sae, x).explained_variance == pytest.approx(1)
    assert fit(sae, x).warning is None


def test_a_bad_fit_is_named_with_the_numbers_that_say_so():
    sae = identity_sae()
    sae.W_dec.data *= -1
    warning = fit(sae, torch.eye(D_IN)[:6]).warning
    assert "explains -4.00 of the variance" in warning
    assert "another model, layer, hook or scale" in warning
    assert "\n" not in warning
    sae.b_enc.data -= 100
    assert f"has 0.0 of {D_SAE} features active" in fit(sae, torch.randn(6, D_IN)).warning
    sae.b_enc.data += 200
    assert f"has {D_SAE}.0 of {D_SAE} features active" in fit(sae, torch.randn(6, D_IN)).warning


def test_a_transcoder_is_judged_by_its_l0_alone():
    result = fit(built(Recipe("transcoder")), torch.randn(6, D_IN))
    assert result.explained_variance is None
    assert result.l0 > 0


def test_an_sae_on_centred_weights_is_judged_on_what_it_reads():
    sae = identity_sae()
    sae.cfg.metadata.model_from_pretrained_kwargs = {"center_writing_weights": True}
    x = torch.randn(6, D_IN) + torch.linspace(0, 50, 6)[:, None]
    assert fit(sae, x).explained_variance == pytest.approx(1, abs=1e-6)
    parts = feature_parts(sae, x)
    assert torch.allclose(added_up(parts) + parts.error, x, atol=1e-5)
