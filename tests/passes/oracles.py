"""What the sublayers of every architecture do to components, once more: dense, slow, and from transformers' modules.

No line of :mod:`depass_sae` is used. What is frozen comes from the model's own forward, seen by hooks on its modules;
the pattern of the gated delta rule from the layer's own kernel, run on values that tell the keys apart. Components are
[pos, comp, d] beside a mask of those that are present, ``bias`` and ``rest`` the last two, and under ``half-qk``
``pattern`` before them.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

PATTERN, BIAS, REST = -3, -2, -1


@dataclass
class Parts:
    x: Tensor  # [pos, comp, d]
    present: Tensor  # [pos, comp]

    def plus(self, bias: Tensor | None) -> "Parts":
        """With a bias vector [d] or [pos, d] in the component of biases."""
        if bias is None:
            return self
        x, present = self.x.clone(), self.present.clone()
        x[:, BIAS] += bias
        present[:, BIAS] = True
        return Parts(x, present)

    def times(self, factor: Tensor | float) -> "Parts":
        """By a number for each position, or for each position and channel."""
        return Parts(self.x * (factor[:, None] if isinstance(factor, Tensor) else factor), self.present)

    def __add__(self, other: "Parts") -> "Parts":
        return Parts(self.x + other.x, self.present | other.present)


def per_token(x: Tensor, aside: int = 2) -> Parts:
    """One component for each position. aside: how many stand after these."""
    n = len(x)
    present = torch.cat([torch.eye(n, dtype=torch.bool), torch.zeros(n, aside, dtype=torch.bool)], dim=1)
    return Parts(x[:, None] * present[..., None], present)


def unit_vectors(x: Tensor, aside: int) -> Parts:
    """One component for each position and channel, 1 there: what comes of it is a column of the Jacobian."""
    n, d = x.shape
    basis = torch.zeros(n, n * d + aside, d, dtype=x.dtype)
    for pos in range(n):
        basis[pos, pos * d : (pos + 1) * d] = torch.eye(d)
    return Parts(basis, torch.ones(basis.shape[:2], dtype=torch.bool))


@dataclass
class Added:
    """What a sublayer adds of each component, and what stands inside. units: what each head or neuron adds in all.

    hidden: what each component has of each neuron of the MLP, or of the experts, the weights of the router included.
    """

    out: Parts
    units: Tensor  # [pos, unit, d]
    inside: dict[str, Parts] = field(default_factory=dict)
    hidden: Tensor | None = None


@dataclass(frozen=True)
class Rule:
    """name: linear, half, half-qk or softmax. barred [pos, comp]: who takes no part in an allocation."""

    name: str
    barred: Tensor | None = None
    temperature: float = 0.1
    qk_share: float = 0.5
    qk_slope: str = "local"

    @property
    def aside(self) -> int:
        return 3 if self.name == "half-qk" else 2


@dataclass(frozen=True)
class Seen:
    """A forward pass. io: of every module in a layer its first input and its output, without the batch. turns: the
    cosines and sines that modules are given."""

    model: Any
    io: dict[str, tuple[Tensor, Any]]
    logits: Tensor
    turns: dict[str, tuple[Tensor, Tensor]]

    @property
    def n_layers(self) -> int:
        return len(layers(self.model))

    @property
    def parallel(self) -> bool:
        return getattr(layers(self.model)[0], "use_parallel_residual", False)

    def stream(self, depth: int) -> Tensor:
        """The residual stream behind so many sublayers."""
        index, within = divmod(depth, 2)
        if index == self.n_layers:
            return self.io[f"{index - 1}"][1]
        if not within:
            return self.io[f"{index}"][0]
        if self.parallel:
            return self.io[f"{index}"][0] + self.io[f"{index}.attention"][1][0]
        return self.io[f"{index}.{mlp_norm(layers(self.model)[index])}"][0]


def text_of(model: Any) -> Any:
    inner = getattr(model, model.base_model_prefix)
    return getattr(inner, "language_model", inner)


def layers(model: Any) -> Any:
    text = text_of(model)
    return text.h if hasattr(text, "h") else text.layers


def mlp_norm(layer: Any) -> str:
    names = ("ln_2", "pre_feedforward_layernorm", "post_attention_layernorm")
    return next(name for name in names if hasattr(layer, name))


def look(model: Any, ids: Tensor) -> Seen:
    """One forward pass with eager attention; all settings are put back."""
    io: dict[str, tuple[Tensor, Any]] = {}
    turns = {}

    def note(name: str) -> Callable:
        def hook(_module: Any, args: tuple, kwargs: dict, out: Any) -> None:
            given = args[0] if args else kwargs.get("hidden_states")
            io[name] = (unbatched(given), unbatched(out))
            if "position_embeddings" in kwargs:
                turns[name] = kwargs["position_embeddings"]

        return hook

    handles = [
        module.register_forward_hook(note(f"{index}.{name}".rstrip(".")), with_kwargs=True)
        for index, layer in enumerate(layers(model))
        for name, module in layer.named_modules()
    ]
    try:
        with eager(model), torch.no_grad():
            logits = model(ids[None], use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return Seen(model, io, logits, turns)


@contextmanager
def eager(model: Any) -> Iterator[None]:
    """Attention and experts as plain operations, which hand out patterns and take float64."""
    text = text_of(model)
    attention, experts = text.config._attn_implementation, text.config._experts_implementation
    routed = any(hasattr(layer.mlp, "experts") for layer in layers(model))
    text.set_attn_implementation("eager")
    if routed:
        text.set_experts_implementation("eager")
    try:
        yield
    finally:
        text.set_attn_implementation(attention)
        if routed:
            text.set_experts_implementation(experts)


def unbatched(out: Any) -> Any:
    if isinstance(out, tuple):
        return tuple(unbatched(x) for x in out)
    return out[0] if isinstance(out, Tensor) and out.dim() > 2 else out


# ---------------------------------------------------------------------------------------------------------- small parts


def norm(parts: Parts, whole: Tensor, module: Any) -> tuple[Parts, Tensor]:
    """Components and the whole through a norm whose scale is the whole's."""
    if isinstance(module, torch.nn.LayerNorm):
        scale = (whole.var(-1, unbiased=False, keepdim=True) + module.eps).rsqrt() * module.weight
        x = parts.x - parts.x.mean(-1, keepdim=True)
        y = Parts(x, parts.present).times(scale).plus(module.bias)
        return y, (whole - whole.mean(-1, keepdim=True)) * scale + module.bias
    name = type(module).__name__
    gain = 1 + module.weight if name.startswith(("Gemma", "Qwen3_5")) else module.weight
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    scale = (whole.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * gain
    return parts.times(scale), whole * scale


def linear(parts: Parts, weight: Tensor, bias: Tensor | None = None) -> Parts:
    """weight [d_out, d_in], as ``nn.Linear`` has it."""
    return Parts(parts.x @ weight.T, parts.present).plus(bias)


def straight(act: Callable, g: Tensor) -> Tensor:
    """The slope of the line from the origin; no test here has a gate of 0."""
    return act(g) / g


# ------------------------------------------------------------------------------------------------------------ attention


def window(model: Any, index: int) -> int | None:
    """How many positions a query of a layer sees, its own included."""
    config = model.config.get_text_config()
    if config.model_type == "mistral":
        return config.sliding_window
    kinds = getattr(config, "layer_types", None)
    return config.sliding_window if kinds and kinds[index] == "sliding_attention" else None


def attention(seen: Seen, index: int, parts: Parts, whole: Tensor, rule: Rule) -> Added:
    layer, config = layers(seen.model)[index], seen.model.config.get_text_config()
    if hasattr(layer, "linear_attn"):
        return delta(seen, index, parts, whole)
    name = next(name for name in ("attn", "attention", "self_attn") if hasattr(layer, name))
    module, pattern = getattr(layer, name), seen.io[f"{index}.{name}"][1][1].to(whole.dtype)
    parts, whole = norm(parts, whole, layer.ln_1 if hasattr(layer, "ln_1") else layer.input_layernorm)
    heads, kv_heads, factor = len(pattern), len(pattern), None
    if config.model_type == "gpt2":
        w_v, b_v = module.c_attn.weight[:, 2 * config.n_embd :].T, module.c_attn.bias[2 * config.n_embd :]
        w_o, b_o = module.c_proj.weight.T, module.c_proj.bias
    elif config.model_type == "gpt_neox":  # head by head [q, k, v]
        fused = module.query_key_value
        w_v = fused.weight.unflatten(0, (heads, 3, -1))[:, 2].flatten(0, 1)
        b_v = fused.bias.unflatten(0, (heads, 3, -1))[:, 2].flatten()
        w_o, b_o = module.dense.weight, module.dense.bias
    else:
        w_v, b_v, w_o, b_o = module.v_proj.weight, module.v_proj.bias, module.o_proj.weight, module.o_proj.bias
        kv_heads = config.num_key_value_heads
    if config.model_type.startswith("qwen3_5"):  # head by head [q, gate]
        w_gate = module.q_proj.weight.unflatten(0, (heads, 2, -1))[:, 1].flatten(0, 1)
        factor = torch.sigmoid(whole @ w_gate.T)

    def move(v: Tensor) -> Tensor:
        """[key, ..., kv_head * d] -> [query, ..., head * d]"""
        per_head = v.unflatten(-1, (kv_heads, -1)).repeat_interleave(heads // kv_heads, dim=-2)
        return torch.einsum("hqk,k...hd->q...hd", pattern, per_head).flatten(-2)

    v = linear(parts, w_v, b_v)
    all_v = whole @ w_v.T + (0 if b_v is None else b_v)
    far = window(seen.model, index) or len(whole)
    present = torch.stack([v.present[max(0, n - far + 1) : n + 1].any(0) for n in range(len(whole))])
    z, all_z = Parts(move(v.x), present), move(all_v)
    if rule.name == "half-qk":
        own = all_v.unflatten(-1, (kv_heads, -1)).repeat_interleave(heads // kv_heads, dim=-2)
        looked = looking(seen, index, parts, whole, pattern, rule)
        moved = torch.einsum("mhqk,khd->qmhd", looked.moving, own).flatten(2)
        z = Parts(z.x / 2 + moved / 2, present.clone())
        z.x[:, PATTERN] += all_z / 2 - torch.einsum("hqk,khd->qhd", looked.whole, own).flatten(1) / 2
        z.present[:, PATTERN] = True
        z.present[:, BIAS] |= looked.biased
    if factor is not None:
        z, all_z = z.times(factor), all_z * factor
    return written(seen, index, z, all_z, w_o, b_o, heads)


@dataclass(frozen=True)
class Looking:
    """What queries and keys move under half-qk: scores [comp, head, query, key] of each component, after the soft-cap's
    slope; what is moved by them, and by those of the whole [head, query, key]."""

    scores: Tensor
    moving: Tensor
    whole: Tensor
    biased: bool


def looking(seen: Seen, index: int, parts: Parts, whole: Tensor, pattern: Tensor, rule: Rule) -> Looking:
    """parts, whole: normed. Every score is there, and the softmax's slope as one matrix for each head and query."""
    layer, config, heads = layers(seen.model)[index], seen.model.config.get_text_config(), len(pattern)
    name = next(name for name in ("attn", "attention", "self_attn") if hasattr(layer, name))
    module, kv_heads = getattr(layer, name), heads
    if config.model_type == "gpt2":
        pairs = list(zip(module.c_attn.weight.T.chunk(3), module.c_attn.bias.chunk(3), strict=True))[:2]
    elif config.model_type == "gpt_neox":
        fused = module.query_key_value
        pairs = [
            (
                fused.weight.unflatten(0, (heads, 3, -1))[:, i].flatten(0, 1),
                fused.bias.view(heads, 3, -1)[:, i].flatten(),
            )
            for i in (0, 1)
        ]
    else:
        w_q = module.q_proj.weight
        if config.model_type.startswith("qwen3_5"):  # head by head [q, gate]
            w_q = w_q.unflatten(0, (heads, 2, -1))[:, 0].flatten(0, 1)
        kv_heads = config.num_key_value_heads
        pairs = [(w_q, module.q_proj.bias), (module.k_proj.weight, module.k_proj.bias)]

    def side(pair: tuple[Tensor, Tensor | None], n: int, norm_of: str) -> tuple[Tensor, Tensor, bool]:
        """[comp, head, pos, d] of the parts and of the whole [head, pos, d], before their rotation."""
        weight, bias = pair
        mine, all_of_it = linear(parts, weight, bias), whole @ weight.T + (0 if bias is None else bias)
        each = [
            (Parts(x, mine.present), y)
            for x, y in zip(mine.x.chunk(n, dim=-1), all_of_it.chunk(n, dim=-1), strict=True)
        ]
        if hasattr(module, norm_of):
            each = [norm(x, y, getattr(module, norm_of)) for x, y in each]
        x, y = torch.stack([x.x for x, _ in each]).permute(2, 0, 1, 3), torch.stack([y for _, y in each])
        group = heads // n
        return x.repeat_interleave(group, 1), y.repeat_interleave(group, 0), bool(mine.present[:, BIAS].any())

    (q, all_q, bias_q), (k, all_k, bias_k) = side(pairs[0], heads, "q_norm"), side(pairs[1], kv_heads, "k_norm")
    if f"{index}.{name}" in seen.turns:
        turn, angles = sys.modules[type(module).__module__].apply_rotary_pos_emb, seen.turns[f"{index}.{name}"]
        q, k = turn(q, k, *angles)
        all_q, all_k = (x[0] for x in turn(all_q[None], all_k[None], *angles))
    scale = getattr(module, "scaling", q.shape[-1] ** -0.5)
    raw = torch.einsum("hqd,hkd->hqk", all_q, all_k) * scale
    cap = getattr(module, "attn_logit_softcapping", None)
    slope = 1 if cap is None else 1 / torch.cosh(raw / cap) ** 2
    by_query, by_key = torch.einsum("mhqd,hkd->mhqk", q, all_k), torch.einsum("hqd,mhkd->mhqk", all_q, k)
    s = rule.qk_share * scale * slope * (by_query + by_key)
    follows = slope_matrix(raw if cap is None else cap * torch.tanh(raw / cap), pattern, module, rule.qk_slope)
    moved = torch.einsum("hqkj,mhqj->mhqk", follows, s)
    moved_in_all = torch.einsum("hqkj,hqj->hqk", follows, 2 * rule.qk_share * slope * raw)
    return Looking(s, moved, moved_in_all, bias_q or bias_k)


def slope_matrix(scores: Tensor, pattern: Tensor, module: Any, slope: str) -> Tensor:
    """How the attention at each key follows the score at each other [head, query, key, key]."""

    def at(a: Tensor) -> Tensor:
        return torch.diag_embed(a) - a[..., :, None] * a[..., None, :]

    if slope == "local":
        return at(pattern)
    total, sinks = torch.zeros_like(at(pattern)), getattr(module, "sinks", None)
    for x, count in zip(*np.polynomial.legendre.leggauss(100), strict=True):
        grown = ((x + 1) / 2 * scores).exp() * (pattern > 0)
        whole = grown.sum(-1, keepdim=True) + (0 if sinks is None else sinks.to(scores).exp()[:, None, None])
        total += at(grown / whole) * (count / 2)
    return total


def delta(seen: Seen, index: int, parts: Parts, whole: Tensor) -> Added:
    layer = layers(seen.model)[index]
    module = layer.linear_attn
    parts, whole = norm(parts, whole, layer.input_layernorm)
    pattern = delta_pattern(module, whole)

    def convolved(x: Tensor) -> Tensor:
        """[..., pos, d_model] -> the values before their activation, torch's own convolution over positions."""
        mixed = (x @ module.in_proj_qkv.weight.T).mT
        taps = module.conv1d.weight
        slid = functional.conv1d(mixed, taps, padding=taps.shape[-1] - 1, groups=len(taps))
        return slid[..., : whole.shape[0]].mT[..., 2 * module.key_dim :]

    before = convolved(whole[None])[0]
    slope = straight(functional.silu, before)

    def move(v: Tensor) -> Tensor:
        per_head = v.unflatten(-1, (module.num_v_heads, -1))
        return torch.einsum("hqk,k...hd->q...hd", pattern, per_head)

    heads = move(functional.silu(before))
    scale = (heads.pow(2).mean(-1, keepdim=True) + module.norm.variance_epsilon).rsqrt() * module.norm.weight
    factor = scale.flatten(1) * functional.silu(whole @ module.in_proj_z.weight.T)
    v = convolved(parts.x.transpose(0, 1)).transpose(0, 1) * slope[:, None]
    z = Parts(move(v).flatten(-2), parts.present.cummax(dim=0).values).times(factor)
    return written(seen, index, z, heads.flatten(1) * factor, module.out_proj.weight, None, module.num_v_heads)


def delta_pattern(module: Any, normed: Tensor) -> Tensor:
    """[head, query, key]: what the layer's kernel makes of values that are 1 at one key each."""
    n, kernel = len(normed), sys.modules[type(module).__module__].torch_chunk_gated_delta_rule
    mixed = functional.conv1d(
        (normed @ module.in_proj_qkv.weight.T).T[None],
        module.conv1d.weight,
        padding=module.conv1d.weight.shape[-1] - 1,
        groups=len(module.conv1d.weight),
    )[0, :, :n].T
    q, k, _ = functional.silu(mixed).split([module.key_dim, module.key_dim, module.value_dim], dim=-1)
    q, k = (x.unflatten(-1, (module.num_k_heads, -1))[None] for x in (q, k))
    values = torch.eye(n, dtype=normed.dtype)[None, :, None].expand(-1, -1, module.num_v_heads, -1)
    g = -module.A_log.exp() * functional.softplus(normed @ module.in_proj_a.weight.T + module.dt_bias)
    beta = (normed @ module.in_proj_b.weight.T).sigmoid()
    out, _ = kernel(q, k, values.contiguous(), g=g[None], beta=beta[None], use_qk_l2norm_in_kernel=True)
    return out[0].permute(1, 0, 2).to(normed.dtype)


def written(seen: Seen, index: int, z: Parts, all_z: Tensor, w_o: Tensor, b_o: Tensor | None, heads: int) -> Added:
    """Through W_O, and the norm behind it where there is one."""
    units = torch.einsum("nhe,hed->nhd", all_z.unflatten(1, (heads, -1)), w_o.T.unflatten(0, (heads, -1)))
    raw = all_z @ w_o.T + (0 if b_o is None else b_o)
    out, units = behind(layers(seen.model)[index], "post_attention_layernorm", linear(z, w_o, b_o), units, raw)
    return Added(out, units, {"hook_z": z, "attn_out": out})


def behind(layer: Any, name: str, out: Parts, units: Tensor, raw: Tensor) -> tuple[Parts, Tensor]:
    """Gemma 2 and 3 norm what a sublayer adds."""
    if not hasattr(layer, "pre_feedforward_layernorm"):
        return out, units
    everywhere = Parts(units, torch.ones(units.shape[:2], dtype=torch.bool))
    return norm(out, raw, getattr(layer, name))[0], norm(everywhere, raw, getattr(layer, name))[0].x


# ----------------------------------------------------------------------------------------------------------------- MLPs


@dataclass(frozen=True)
class Neurons:
    """One MLP's maps, as ``nn.Linear`` has them [d_out, d_in]; up_act(u) = u where it is None."""

    gate: Tensor
    up: Tensor | None
    down: Tensor
    act: Callable
    b_gate: Tensor | None = None
    b_up: Tensor | None = None
    b_down: Tensor | None = None
    limit: float | None = None  # gpt-oss: clamp(u) + 1 goes into the product

    def of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gate and up-projection of a normed stream, and what each neuron adds along its output row."""
        g = x @ self.gate.T + (0 if self.b_gate is None else self.b_gate)
        if self.up is None:
            return g, torch.ones_like(g), self.act(g)
        u = x @ self.up.T + (0 if self.b_up is None else self.b_up)
        return g, u, self.act(g) * self.acted(u)

    def acted(self, u: Tensor) -> Tensor:
        return u if self.limit is None else u.clamp(-self.limit, self.limit) + 1

    def split(self, parts: Parts, whole: Tensor, rule: Rule) -> Parts:
        """Everyone's share of each neuron [pos, comp, neuron]."""
        g, u, a = self.of(whole)
        s = linear(parts, self.gate, self.b_gate)
        if rule.name == "softmax":
            takes = s.present.clone()
            if rule.barred is not None:
                takes &= ~rule.barred
            takes[:, REST] |= ~takes.any(1)
            e = ((s.x - s.x.amax(1, keepdim=True)) / rule.temperature).masked_fill(~takes[..., None], -torch.inf)
            return Parts(e.softmax(1) * a[:, None], s.present | takes)
        by_gate = s.times(straight(self.act, g) * (self.acted(u) if self.up is not None else 1))
        if rule.name == "linear" or self.up is None:
            return by_gate
        t = linear(parts, self.up, self.b_up)
        if self.limit is not None:  # a line through (0, 1) and (u, clamp(u) + 1), whose 1 is a bias
            t = t.times(u.clamp(-self.limit, self.limit) / u).plus(torch.ones_like(u))
        return by_gate.times(0.5) + t.times(0.5 * self.act(g))


def neurons_of(module: Any) -> Neurons:
    if hasattr(module, "c_fc"):
        fc, proj = module.c_fc, module.c_proj
        return Neurons(fc.weight.T, None, proj.weight.T, module.act, fc.bias, None, proj.bias)
    if hasattr(module, "dense_h_to_4h"):
        into, out = module.dense_h_to_4h, module.dense_4h_to_h
        return Neurons(into.weight, None, out.weight, module.act, into.bias, None, out.bias)
    maps = (module.gate_proj, module.up_proj, module.down_proj)
    return Neurons(*(m.weight for m in maps), module.act_fn, *(m.bias for m in maps))


def expert_of(module: Any, expert: int) -> Neurons:
    own = module.experts
    if hasattr(own, "gate_up_proj_bias"):  # gpt-oss: [expert, d_in, d_out], gate and up take turns
        into, bias = own.gate_up_proj[expert].T, own.gate_up_proj_bias[expert]

        def act(g: Tensor) -> Tensor:
            g = g.clamp(max=own.limit)
            return g * torch.sigmoid(own.alpha * g)

        down, b_down = own.down_proj[expert].T, own.down_proj_bias[expert]
        return Neurons(into[::2], into[1::2], down, act, bias[::2], bias[1::2], b_down, own.limit)
    width = own.gate_up_proj.shape[1] // 2
    into = own.gate_up_proj[expert]
    return Neurons(into[:width], into[width:], own.down_proj[expert], own.act_fn)


def route(seen: Seen, index: int, whole: Tensor) -> Tensor:
    """[pos, expert]: each expert's weight, 0 where it is not chosen."""
    module, config = layers(seen.model)[index].mlp, seen.model.config.get_text_config()
    if config.model_type == "gpt_oss":  # the largest logits, and their softmax
        top, choice = (whole @ module.router.weight.T + module.router.bias).topk(config.num_experts_per_tok, -1)
        weights = top.softmax(-1)
    else:  # the softmax over all, and the largest of it
        weights, choice = (whole @ module.gate.weight.T).softmax(-1).topk(config.num_experts_per_tok, -1)
        if getattr(config, "norm_topk_prob", True):
            weights = weights / weights.sum(-1, keepdim=True)
    n_experts = len(module.experts.gate_up_proj)
    return torch.zeros(len(whole), n_experts, dtype=whole.dtype).scatter(1, choice, weights)


def mlp(seen: Seen, index: int, parts: Parts, whole: Tensor, rule: Rule) -> Added:
    layer = layers(seen.model)[index]
    parts, whole = norm(parts, whole, getattr(layer, mlp_norm(layer)))
    if hasattr(layer.mlp, "experts"):
        return experts(seen, index, parts, whole, rule)
    own = neurons_of(layer.mlp)
    hidden, a = own.split(parts, whole, rule), own.of(whole)[2]
    units = a[..., None] * own.down.T
    raw = a @ own.down.T + (0 if own.b_down is None else own.b_down)
    out = linear(hidden, own.down, own.b_down)
    out, units = behind(layer, "post_feedforward_layernorm", out, units, raw)
    return Added(out, units, {"mlp_in": parts, "mlp_out": out}, hidden.x)


def experts(seen: Seen, index: int, parts: Parts, whole: Tensor, rule: Rule) -> Added:
    """Every expert everywhere, times its weight: one wide MLP."""
    module = layers(seen.model)[index].mlp
    weights = route(seen, index, whole)
    own = [expert_of(module, expert) for expert in range(weights.shape[1])]
    if hasattr(module, "shared_expert"):
        own.append(neurons_of(module.shared_expert))
        weights = torch.cat([weights, torch.sigmoid(whole @ module.shared_expert_gate.weight.T)], dim=1)
    each = [expert.split(parts, whole, rule).times(w[:, None]) for expert, w in zip(own, weights.T, strict=True)]
    outs = [linear(hidden, expert.down) for hidden, expert in zip(each, own, strict=True)]
    out = sum(outs[1:], start=outs[0])
    for expert, w in zip(own, weights.T, strict=True):
        out = out.plus(None if expert.b_down is None else w[:, None] * expert.b_down)
    units = [
        (expert.of(whole)[2] * w[:, None])[..., None] * expert.down.T for expert, w in zip(own, weights.T, strict=True)
    ]
    hidden = torch.cat([hidden.x for hidden in each], dim=-1)
    return Added(out, torch.cat(units, dim=1), {"mlp_in": parts, "mlp_out": out}, hidden)


# ------------------------------------------------------------------------------------------------------ the whole model


@torch.no_grad()
def decompose(seen: Seen, start: Parts, depth: int, rule: Rule) -> tuple[dict[int, Parts], dict[int, Added]]:
    """Components of the stream behind every number of sublayers, and what each sublayer on the way adds."""
    streams, added, parts = {depth: start}, {}, start
    for number in range(depth, 2 * seen.n_layers):
        index, read = number // 2, number
        if number % 2 and seen.parallel:
            read -= 1
        given = streams.get(read) or only_rest(parts, seen.stream(read))
        if number % 2:
            added[number] = mlp(seen, index, given, seen.stream(read), rule)
        else:
            added[number] = attention(seen, index, given, seen.stream(read), rule)
        parts = parts + added[number].out
        streams[number + 1] = parts
    return streams, added


def only_rest(like: Parts, stream: Tensor) -> Parts:
    """A stream before the start: nothing of it is split."""
    x, present = torch.zeros_like(like.x), torch.zeros_like(like.present)
    x[:, REST], present[:, REST] = stream, True
    return Parts(x, present)


def gradients(seen: Seen, target: Tensor, depth: int, rule: Rule) -> Tensor:
    """Of ⟨target [t, pos, d], last stream⟩ with respect to the stream at a depth [t, pos, d]: unit vectors, carried."""
    x = seen.stream(depth)
    streams, _ = decompose(seen, unit_vectors(x, rule.aside), depth, rule)
    reached = streams[2 * seen.n_layers].x[:, : -rule.aside].unflatten(1, x.shape)  # [pos, from, channel, d]
    return torch.einsum("tnd,nkcd->tkc", target, reached)
