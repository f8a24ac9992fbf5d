"""The decomposed forward pass once more: slow, dense, and written without a look at :mod:`depass_sae.passes`.

Components are a tensor [pos, comp, d] beside an explicit mask [pos, comp] of those that are present, the last two being
``bias`` and ``rest``. Weights are read off the transformers modules, and what is frozen comes from transformers' own
``output_hidden_states`` and ``output_attentions``.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

BIAS, REST = -2, -1


@dataclass
class Components:
    values: Tensor  # [pos, comp, d]
    present: Tensor  # [pos, comp]

    def copy(self) -> "Components":
        return Components(self.values.clone(), self.present.clone())


def weights(model: Any, index: int) -> SimpleNamespace:
    """Every matrix as [d_in, d_out]; None where the model has no such bias, or no up-projection."""
    w = SimpleNamespace(up=None, b_up=None)
    if model.config.model_type == "gpt2":
        block = model.transformer.h[index]
        d = model.config.n_embd
        w.norms = [(n.weight, n.bias, n.eps, True) for n in (block.ln_1, block.ln_2)]
        w.v, w.b_v = block.attn.c_attn.weight[:, 2 * d :], block.attn.c_attn.bias[2 * d :]
        w.o, w.b_o = block.attn.c_proj.weight, block.attn.c_proj.bias
        w.gate, w.b_gate = block.mlp.c_fc.weight, block.mlp.c_fc.bias
        w.down, w.b_down = block.mlp.c_proj.weight, block.mlp.c_proj.bias
        w.act = block.mlp.act
        w.kv_heads, w.window = model.config.n_head, None
    else:
        block, config = model.model.layers[index], model.config
        norms = (block.input_layernorm, block.post_attention_layernorm)
        w.norms = [(n.weight, None, config.rms_norm_eps, False) for n in norms]
        for name, module in (
            ("v", block.self_attn.v_proj),
            ("o", block.self_attn.o_proj),
            ("gate", block.mlp.gate_proj),
            ("up", block.mlp.up_proj),
            ("down", block.mlp.down_proj),
        ):
            setattr(w, name, module.weight.T)
            setattr(w, f"b_{name}", module.bias)
        w.act = block.mlp.act_fn
        w.kv_heads = config.num_key_value_heads
        slides = config.model_type == "mistral" or (config.model_type == "qwen2" and index >= config.max_window_layers)
        w.window = config.sliding_window if slides else None
    return w


def frozen(model: Any, ids: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The stream before every layer and in its middle, and the patterns [head, query, key], from transformers."""
    middles: list[Tensor] = []
    layers = model.transformer.h if model.config.model_type == "gpt2" else model.model.layers
    hooks = [
        (layer.ln_2 if model.config.model_type == "gpt2" else layer.post_attention_layernorm).register_forward_pre_hook(
            lambda _, args: middles.append(args[0][0])
        )
        for layer in layers
    ]
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = model(ids[None], output_hidden_states=True, output_attentions=True, use_cache=False)
    finally:
        model.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()
    return [h[0] for h in out.hidden_states], middles, [a[0] for a in out.attentions]


def normed(x: Components, whole: Tensor, norm: tuple) -> Components:
    gain, beta, eps, centred = norm
    if centred:
        scale = (whole.var(-1, unbiased=False) + eps).rsqrt()
        values = (x.values - x.values.mean(-1, keepdim=True)) * scale[:, None, None] * gain
    else:
        scale = (whole.pow(2).mean(-1) + eps).rsqrt()
        values = x.values * scale[:, None, None] * gain
    return biased(Components(values, x.present.clone()), beta)


def biased(x: Components, bias: Tensor | None) -> Components:
    """A bias vector goes to the bias component, which is present from then on."""
    if bias is not None:
        x.values[:, BIAS] += bias
        x.present[:, BIAS] = True
    return x


def attention(x: Components, whole: Tensor, pattern: Tensor, w: SimpleNamespace) -> tuple[Components, Components]:
    x = normed(x, whole, w.norms[0])
    n, m, _ = x.values.shape
    heads = pattern.shape[0]
    v = biased(Components(x.values @ w.v, x.present), w.b_v)
    per_head = v.values.view(n, m, w.kv_heads, -1).repeat_interleave(heads // w.kv_heads, dim=2)
    z = torch.einsum("hnk,kmhd->nmhd", pattern, per_head).flatten(2)
    present = torch.zeros_like(v.present)
    for query in range(n):
        for key in range(query + 1):
            if w.window is None or query - key < w.window:
                present[query] |= v.present[key]
    hook_z = Components(z, present)
    return hook_z, biased(Components(z @ w.o, present.clone()), w.b_o)


def mlp(x: Components, whole: Tensor, w: SimpleNamespace, rule: str, temperature: float, barred: Tensor) -> tuple:
    """barred: the components that take no part in an allocation at positions after 0.

    Returns the normed stream without gain and bias, with them, and what the MLP adds.
    """
    gain, _, eps, centred = w.norms[1]
    bare = normed(x, whole, (torch.ones_like(gain), None, eps, centred))
    x = normed(x, whole, w.norms[1])
    s = biased(Components(x.values @ w.gate, x.present.clone()), w.b_gate)
    gate = s.values.sum(1)
    t = None
    activation = w.act(gate)
    up: Tensor | float = 1.0
    if w.up is not None:
        t = biased(Components(x.values @ w.up, x.present.clone()), w.b_up)
        up = t.values.sum(1)
        activation = activation * up
    present = s.present.clone()
    hidden = torch.zeros_like(s.values)
    slope = w.act(gate) / gate
    if rule == "linear" or (rule == "half" and t is None):
        hidden = (slope * up)[:, None] * s.values
    elif rule == "half":
        present |= t.present
        hidden = 0.5 * (slope * up)[:, None] * s.values + 0.5 * w.act(gate)[:, None] * t.values
    else:
        for n in range(len(hidden)):
            takers = [m for m in range(s.present.shape[1]) if s.present[n, m] and not (n > 0 and barred[m])]
            if not takers:
                takers = [s.present.shape[1] + REST]
                present[n, REST] = True
            for f in range(hidden.shape[2]):
                shares = share(rule, s.values[n, takers, f], temperature)
                if shares is None:
                    hidden[n, REST, f] += activation[n, f]
                    present[n, REST] = True
                else:
                    hidden[n, takers, f] = shares * activation[n, f]
    return bare, x, biased(Components(hidden @ w.down, present), w.b_down)


def share(rule: str, s: Tensor, temperature: float) -> Tensor | None:
    """ω over the takers, adding to 1; None where nobody has a claim."""
    if rule == "softmax":
        e = ((s - s.max()) / temperature).exp()
        return e / e.sum()
    if rule == "linear-norm":
        above = s - s.min()
        return above / above.sum() if above.sum() > 0 else torch.full_like(s, 1 / len(s))
    if rule == "relu":
        positive = s.clamp_min(0)
        return positive / positive.sum() if positive.sum() > 0 else None
    assert rule == "max"
    return torch.nn.functional.one_hot(s.argmax(), len(s)).to(s.dtype)


def added(x: Components, y: Components) -> Components:
    return Components(x.values + y.values, x.present | y.present)


@torch.no_grad()
def decompose(
    model: Any,
    ids: Tensor,
    start: Components,
    at: tuple[int, str],
    rule: str,
    *,
    temperature: float = 0.1,
    skip_first: bool = True,
    first_only: Tensor | None = None,
) -> dict[tuple[int, str], Components]:
    """The components at every point from the start on."""
    resid_pre, resid_mid, patterns = frozen(model, ids)
    barred = torch.zeros(start.present.shape[1], dtype=torch.bool)
    if skip_first and first_only is not None:
        barred = first_only
    seen: dict[tuple[int, str], Components] = {}
    x = start.copy()
    first = at[0] + 1 if at[1] == "resid_post" else at[0]
    if at[1] == "resid_post":
        seen[at] = x
    for layer in range(first, model.config.num_hidden_layers):
        w = weights(model, layer)
        if at != (layer, "resid_mid"):
            seen[layer, "resid_pre"] = x
            seen[layer, "hook_z"], seen[layer, "attn_out"] = attention(x, resid_pre[layer], patterns[layer], w)
            x = added(x, seen[layer, "attn_out"])
        seen[layer, "resid_mid"] = x
        inside = mlp(x, resid_mid[layer], w, rule, temperature, barred)
        seen[layer, "ln2_normalized"], seen[layer, "mlp_in"], seen[layer, "mlp_out"] = inside
        x = added(x, seen[layer, "mlp_out"])
        seen[layer, "resid_post"] = x
    return seen
