"""A graph's edges once more: dense, slow, from the weights of transformers' modules in plain float64 tensors.

No line of :mod:`depass_sae` is used. The model is written out here as one function. Wherever a dictionary stands the
tensor is made anew of its sources, each times a factor of 1; what a source contributes to a reading, and its effect,
are the derivatives of the reading in that factor, with everything frozen or everything live. A reading sees the tensor
below its own cut, everything else the one above: the rules are those of the function's data flow, not of a sweep.

What a source does through one head's queries, or keys, is a mixed derivative: with everything frozen but ε times what a
change of the scores does to a pattern, the part of the reading that is linear in ε, in the source's factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

Source = tuple[str, str, int, int]
"""kind, cut ("3.mlp_out", "embed"), position, feature; −1 where there is none."""


# ---------------------------------------------------------------------------------------------------- the models


@dataclass
class Layer:
    """One decoder layer: weights as x @ W, biases or None."""

    norms: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor] | None]  # attn, mlp, attn_post, mlp_post
    bare: Callable[[Tensor, Tensor], Tensor]  # the MLP's norm without its gain
    q: tuple[Tensor, Tensor | None]
    k: tuple[Tensor, Tensor | None]
    v: tuple[Tensor, Tensor | None]
    o: tuple[Tensor, Tensor | None]
    gate: tuple[Tensor, Tensor | None]
    up: tuple[Tensor, Tensor | None] | None
    down: tuple[Tensor, Tensor | None]
    act: Callable[[Tensor], Tensor]
    heads: int
    kv_heads: int
    d_head: int
    scale: float
    rotated: int = 0
    theta: float = 10_000.0
    softcap: float | None = None
    window: int | None = None
    parallel: bool = False


@dataclass
class Plain:
    embed: Callable[[Tensor], Tensor]
    layers: list[Layer]
    final: Callable[[Tensor, Tensor, Tensor], Tensor]
    unembed: Tensor  # [d, vocab]
    cap: float | None = None  # of the logits: effects are on what is put out


def _double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().double()


def _linear(module: Any) -> tuple[Tensor, Tensor | None]:
    return module.weight.detach().double().T, _double(module.bias)


def _conv(module: Any) -> tuple[Tensor, Tensor | None]:
    return module.weight.detach().double(), _double(module.bias)


def _rms(weight: Tensor, eps: float, plus: float = 0.0) -> Any:
    gain = weight.detach().double() + plus
    return lambda x, at, size: x * (at.square().mean(-1, keepdim=True) + eps).rsqrt() * gain


def _bare_rms(eps: float) -> Any:
    return lambda x, at: x * (at.square().mean(-1, keepdim=True) + eps).rsqrt()


def _layer_norm(module: Any) -> Any:
    gain, bias, bare = module.weight.detach().double(), module.bias.detach().double(), _bare_layer_norm(module.eps)
    return lambda x, at, size: bare(x, at) * gain + bias * size


def _bare_layer_norm(eps: float) -> Any:
    return lambda x, at: (x - x.mean(-1, keepdim=True)) * (at.var(-1, unbiased=False, keepdim=True) + eps).rsqrt()


def llama(model: Any) -> Plain:
    config, layers = model.config, []
    for block in model.model.layers:
        attn, mlp, eps = block.self_attn, block.mlp, config.rms_norm_eps
        norms = {
            "attn": _rms(block.input_layernorm.weight, eps), "mlp": _rms(block.post_attention_layernorm.weight, eps),
            "attn_post": None, "mlp_post": None,
        }  # fmt: skip
        d_head = attn.head_dim
        layers.append(Layer(
            norms, _bare_rms(eps), *(_linear(getattr(attn, f"{name}_proj")) for name in "qkvo"),
            _linear(mlp.gate_proj), _linear(mlp.up_proj), _linear(mlp.down_proj), functional.silu,
            config.num_attention_heads, config.num_key_value_heads, d_head, d_head**-0.5, d_head,
        ))  # fmt: skip
    weight = model.model.embed_tokens.weight.detach().double()
    final = _rms(model.model.norm.weight, config.rms_norm_eps)
    return Plain(lambda ids: weight[ids], layers, final, model.lm_head.weight.detach().double().T)


def gemma2(model: Any) -> Plain:
    config, layers = model.config, []
    eps = config.rms_norm_eps
    for block, kind in zip(model.model.layers, config.layer_types, strict=True):
        attn, mlp = block.self_attn, block.mlp
        names = {
            "attn": "input_layernorm", "mlp": "pre_feedforward_layernorm", "attn_post": "post_attention_layernorm",
            "mlp_post": "post_feedforward_layernorm",
        }  # fmt: skip
        norms = {key: _rms(getattr(block, name).weight, eps, 1.0) for key, name in names.items()}
        layers.append(Layer(
            norms, _bare_rms(eps), *(_linear(getattr(attn, f"{name}_proj")) for name in "qkvo"),
            _linear(mlp.gate_proj), _linear(mlp.up_proj), _linear(mlp.down_proj),
            lambda x: functional.gelu(x, approximate="tanh"), config.num_attention_heads, config.num_key_value_heads,
            config.head_dim, config.query_pre_attn_scalar**-0.5, config.head_dim,
            softcap=config.attn_logit_softcapping, window=config.sliding_window if "sliding" in kind else None,
        ))  # fmt: skip
    weight = model.model.embed_tokens.weight.detach().double()
    final, d = _rms(model.model.norm.weight, eps, 1.0), config.hidden_size
    unembed, cap = model.lm_head.weight.detach().double().T, config.final_logit_softcapping
    return Plain(lambda ids: weight[ids] * d**0.5, layers, final, unembed, cap)


def gpt2(model: Any) -> Plain:
    config, layers = model.config, []
    heads, d = config.n_head, config.n_embd
    for block in model.transformer.h:
        weight, bias = _conv(block.attn.c_attn)
        assert bias is not None
        q, k, v = zip(weight.split(d, 1), bias.split(d), strict=True)
        norms = {"attn": _layer_norm(block.ln_1), "mlp": _layer_norm(block.ln_2), "attn_post": None, "mlp_post": None}
        layers.append(Layer(
            norms, _bare_layer_norm(block.ln_2.eps), q, k, v, _conv(block.attn.c_proj), _conv(block.mlp.c_fc), None,
            _conv(block.mlp.c_proj), lambda x: functional.gelu(x, approximate="tanh"), heads, heads, d // heads,
            (d // heads) ** -0.5,
        ))  # fmt: skip
    tokens, places = (getattr(model.transformer, name).weight.detach().double() for name in ("wte", "wpe"))
    final = _layer_norm(model.transformer.ln_f)
    embed = lambda ids: tokens[ids] + places[: len(ids)]  # noqa: E731
    return Plain(embed, layers, final, model.lm_head.weight.detach().double().T)


def gpt_neox(model: Any) -> Plain:
    config, layers = model.config, []
    heads, d = config.num_attention_heads, config.hidden_size
    for block in model.gpt_neox.layers:
        weight, bias = _linear(block.attention.query_key_value)
        assert bias is not None
        split = [weight.view(d, heads, 3, -1)[:, :, i].flatten(1) for i in range(3)]
        shift = [bias.view(heads, 3, -1)[:, i].flatten() for i in range(3)]
        norms = {
            "attn": _layer_norm(block.input_layernorm), "mlp": _layer_norm(block.post_attention_layernorm),
            "attn_post": None, "mlp_post": None,
        }  # fmt: skip
        layers.append(Layer(
            norms, _bare_layer_norm(config.layer_norm_eps), *zip(split, shift, strict=True),
            _linear(block.attention.dense), _linear(block.mlp.dense_h_to_4h), None, _linear(block.mlp.dense_4h_to_h),
            functional.gelu, heads, heads, d // heads, (d // heads) ** -0.5, int(d // heads * 0.25), parallel=True,
        ))  # fmt: skip
    weight = model.gpt_neox.embed_in.weight.detach().double()
    final = _layer_norm(model.gpt_neox.final_layer_norm)
    return Plain(lambda ids: weight[ids], layers, final, model.get_output_embeddings().weight.detach().double().T)


FAMILIES = {"llama": llama, "gemma2": gemma2, "gpt2": gpt2, "gpt_neox": gpt_neox}


# ---------------------------------------------------------------------------------------------------- dictionaries


@dataclass
class Dictionary:
    """reads, cuts: hooks. At ``raw`` an MLP's output is cut before the norm on it. encode: of what is read, before
    thresholds: pre [pos, d_sae], and what fires. layers: of a cross-layer transcoder, its rows by layer.
    """

    layer: int
    reads: str
    cuts: str
    encode: Callable[[Tensor], tuple[Tensor, Tensor]]  # pre, activations
    W_enc: Tensor  # [d_in, d_sae], of the pre-activation's own derivative
    b_dec: Tensor
    rows: dict[int, Tensor]  # into which layer: [d_sae, d_out]
    skip: Tensor | None = None  # [d_in, d_out]

    @property
    def name(self) -> str:
        return f"{self.layer}.{self.reads}"


@dataclass
class Reading:
    pre: float
    constant: float
    weights: dict[Source, float] = field(default_factory=dict)


def linear(x: Tensor, part: tuple[Tensor, Tensor | None], size: Tensor) -> Tensor:
    return x @ part[0] + (0 if part[1] is None else part[1] * size)


@dataclass
class Run:
    """One pass of the function over sources. live: nothing is frozen, but for where features fire."""

    plain: Plain
    ids: Tensor
    dictionaries: list[Dictionary]
    first_is_root: Callable[[str], bool]
    live: bool
    hop: str | None = None  # "query" or "key": patterns follow these, to first order
    factors: dict[str, tuple[list[Source], Tensor]] = field(default_factory=dict)
    read: list[tuple[Source | tuple[str, int, int], Tensor, Tensor]] = field(default_factory=list)
    written: dict[int, list[tuple[Dictionary, Tensor, Tensor]]] = field(default_factory=dict)

    def frozen(self, x: Tensor) -> Tensor:
        return x if self.live else x.detach()

    def whole(self) -> tuple[Tensor, Tensor]:
        """From the tokens to the logits, reading every feature that fires on the way; and the logits' constants."""
        n = len(self.ids)
        x = self._sum(
            "embed", [(("token", "embed", pos, -1), pos, row) for pos, row in enumerate(self.plain.embed(self.ids))], n
        )
        for number, layer in enumerate(self.plain.layers):
            x = self._layer(number, layer, x)
        one, plain = torch.ones((), dtype=torch.float64), self.plain
        logits = plain.final(x, self.frozen(x), one) @ plain.unembed  # the final norm's bias is the reading's own
        if self.live and plain.cap is not None:
            logits = plain.cap * (logits / plain.cap).tanh()
        return logits, (plain.final(torch.zeros_like(x), x, one) @ plain.unembed).detach()

    @property
    def size(self) -> Tensor:
        """By how much bias vectors are taken: theirs is one source."""
        if "bias" not in self.factors:
            self.factors["bias"] = [("bias", "", -1, -1)], torch.ones(1, dtype=torch.float64, requires_grad=True)
        return self.factors["bias"][1][0]

    def _layer(self, number: int, layer: Layer, x: Tensor) -> Tensor:
        x = self._cut(number, "resid_pre", x)
        normed = layer.norms["attn"](x, self.frozen(x), self.size)  # type: ignore[misc]
        z = self._cut(number, "hook_z", self._attend(layer, normed))
        out = linear(z, layer.o, self.size)
        if layer.norms["attn_post"] is not None:
            out = layer.norms["attn_post"](out, self.frozen(out), self.size)
        out = self._cut(number, "attn_out", out)
        between = x + out if layer.parallel else self._cut(number, "resid_mid", x + out)
        reads = x if layer.parallel else between
        bare, normed = layer.bare(reads, self.frozen(reads)), layer.norms["mlp"](reads, self.frozen(reads), self.size)  # type: ignore[misc]
        below = {"resid_pre": x, "resid_mid": between, "ln2_normalized": bare, "mlp_in": normed}
        own = [one for one in self.dictionaries if one.layer == number and one.cuts in ("mlp", "raw")]
        for one in own:
            self._read(one, below[one.reads])
        raw = self._mlp(layer, normed) if not self._instead(number) else None
        if raw is None and any(one.cuts == "raw" for one in own):
            raw = self._replaced(number, below, self._record(number)["raw"], "raw")
        if raw is None:
            mlp_out = self._replaced(number, below, self._record(number)["mlp_out"], "mlp")
        else:
            post = layer.norms["mlp_post"]
            mlp_out = raw if post is None else post(raw, self.frozen(raw), self.size)
        x = between + self._cut(number, "mlp_out", mlp_out)
        return self._cut(number, "resid_post", x)

    def _attend(self, layer: Layer, normed: Tensor) -> Tensor:
        n, x_dtype = len(normed), normed.dtype
        q, k, v = (linear(normed, part, self.size).view(n, -1, layer.d_head) for part in (layer.q, layer.k, layer.v))
        if layer.rotated:
            q, k = rotate(q, layer), rotate(k, layer)
        share = layer.heads // layer.kv_heads
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * layer.scale
        if layer.softcap is not None:
            scores = layer.softcap * (scores / layer.softcap).tanh()
        distance = torch.arange(n)[:, None] - torch.arange(n)
        seen = (distance >= 0) & (distance < (layer.window or n + 1))
        pattern = self.frozen(scores.masked_fill(~seen, -math.inf).softmax(-1))
        if self.hop is not None:
            asked = torch.einsum("qhd,khd->hqk", *((q, k.detach()) if self.hop == "query" else (q.detach(), k)))
            change = (asked - asked.detach()) * layer.scale
            if layer.softcap is not None:
                change = change * (1 - (scores / layer.softcap).square()).detach()
            epsilon = forward_ad.make_dual(torch.zeros((), dtype=x_dtype), torch.ones((), dtype=x_dtype))
            pattern = pattern + epsilon * followed(scores.detach(), seen, change)
        return torch.einsum("hqk,khd->qhd", pattern, v).flatten(1)

    def _mlp(self, layer: Layer, normed: Tensor) -> Tensor:
        g = linear(normed, layer.gate, self.size)
        u = None if layer.up is None else linear(normed, layer.up, self.size)
        slope = layer.act(g.detach()) / g.detach()
        if self.live:
            hidden = layer.act(g) if u is None else layer.act(g) * u
        elif u is None:
            hidden = slope * g
        else:  # the rule of halves
            hidden = (slope * g * u.detach() + layer.act(g.detach()) * u) / 2
        return linear(hidden, layer.down, self.size)

    # ------------------------------------------------------------------------------------------------------------- cuts

    def _instead(self, number: int) -> bool:
        return any(one.layer == number or number in one.rows for one in self.dictionaries if one.cuts in ("mlp", "raw"))

    def _record(self, number: int) -> dict[str, Tensor]:
        return recorded(self.plain, self.ids)[number]

    def _cut(self, number: int, hook: str, x: Tensor) -> Tensor:
        """What stands on an SAE's cut, once its own features have read what lies below."""
        for one in self.dictionaries:
            if (one.layer, one.cuts) == (number, hook):
                self._read(one, x)
                value = x.detach()
                return self._sources(one.name, value, [(one, self.acts(one, value), one.rows[number])], one.b_dec)
        return x

    def _replaced(self, number: int, below: dict[str, Tensor], value: Tensor, cuts: str) -> Tensor:
        """What transcoders make of what the MLP adds."""
        there = [one for one in self.dictionaries if one.cuts == cuts and number in one.rows]
        own = next((one for one in there if one.layer == number), None)
        crossing = own or there[0]
        through = torch.zeros_like(value)
        if own is not None and own.skip is not None:
            through = below[own.reads] @ own.skip
            if self.first_is_root(f"{number}.mlp_out"):
                through = through * (torch.arange(len(through)) > 0)[:, None]
        b_dec = own.b_dec if own is not None else self.constants[number]
        parts = [(one, self.acts(one, self._encoded(one)), one.rows[number]) for one in there]
        made = self._sources(f"{number}.{crossing.reads}", value, parts, b_dec, through.detach(), f"{number}.mlp_out")
        return made + through

    constants: dict[int, Tensor] = field(default_factory=dict)

    def _encoded(self, one: Dictionary) -> Tensor:
        return recorded(self.plain, self.ids)[one.layer][one.reads]

    def acts(self, one: Dictionary, value: Tensor) -> Tensor:
        acts = one.encode(value)[1].clone()
        place = f"{one.layer}.mlp_out" if one.cuts in ("mlp", "raw") else one.name
        if self.first_is_root(place):
            acts[0] = 0
        return acts

    def _sources(
        self, name: str, value: Tensor, parts: list[tuple[Dictionary, Tensor, Tensor]], b_dec: Tensor,
        through: Tensor | None = None, place: str | None = None,
    ) -> Tensor:  # fmt: skip
        """The value, of features, constant and error, each times its factor; at position 0 of one token."""
        root = self.first_is_root(place or name)
        through = torch.zeros_like(value) if through is None else through
        pieces: list[tuple[Source, int, Tensor]] = []
        error = value - through - b_dec
        for one, acts, rows in parts:
            error = error - acts @ rows
            for pos, index in acts.nonzero().tolist():
                if not (root and pos == 0):
                    pieces.append((("feature", one.name, pos, index), pos, acts[pos, index] * rows[index]))
        for pos in range(len(value)):
            if root and pos == 0:
                pieces.append((("token", name, 0, -1), 0, value[0]))
            else:
                pieces.append((("error", name, pos, -1), pos, error[pos]))
                pieces.append((("constant", name, -1, -1), pos, b_dec))
        return self._sum(f"{name} at {place or name}", pieces, len(value))

    def _sum(self, at: str, pieces: list[tuple[Source, int, Tensor]], n: int) -> Tensor:
        factor = torch.ones(len(pieces), dtype=torch.float64, requires_grad=True)
        self.factors[at] = [source for source, _, _ in pieces], factor
        rows = torch.stack([row for _, _, row in pieces]) * factor[:, None]
        where = torch.tensor([pos for _, pos, _ in pieces])
        return torch.zeros(n, rows.shape[1], dtype=torch.float64).index_add(0, where, rows)

    def _read(self, one: Dictionary, x: Tensor) -> None:
        """Every feature that fires, from the tensor below its cut."""
        pre, constant = one.encode(x)[0], one.encode(torch.zeros_like(x))[0]
        for pos, index in self.acts(one, x.detach()).nonzero().tolist():
            self.read.append((("feature", one.name, pos, index), pre[pos, index], constant[pos, index].detach()))

    def edges(self, readings: Tensor) -> list[dict[Source, float]]:
        """Of every reading the derivatives in all factors; sources with none at all are left out."""
        keys, each = list(self.factors), torch.eye(len(readings), dtype=torch.float64)
        slopes = torch.autograd.grad(
            readings, [self.factors[key][1] for key in keys], each, is_grads_batched=True, allow_unused=True
        )
        found: list[dict[Source, float]] = [{} for _ in readings]
        for key, slope in zip(keys, slopes, strict=True):
            for edges, row in zip(found, [] if slope is None else slope.tolist(), strict=False):
                for source, value in zip(self.factors[key][0], row, strict=True):
                    if value:
                        edges[source] = edges.get(source, 0.0) + value
        return found


_RECORDED: dict[tuple[int, tuple[int, ...]], list[dict[str, Tensor]]] = {}


def recorded(plain: Plain, ids: Tensor) -> list[dict[str, Tensor]]:
    """What the model computes at every place of every layer."""
    key = (id(plain), tuple(ids.tolist()))
    if key not in _RECORDED:
        found: list[dict[str, Tensor]] = []
        run = Run(plain, ids, [], lambda place: False, live=True)
        x = plain.embed(ids)
        with torch.no_grad():
            for layer in plain.layers:
                at = {"resid_pre": x}
                normed = layer.norms["attn"](x, x, run.size)  # type: ignore[misc]
                at["hook_z"] = run._attend(layer, normed)
                out = linear(at["hook_z"], layer.o, run.size)
                post = layer.norms["attn_post"]
                at["attn_out"] = out if post is None else post(out, out, run.size)
                at["resid_mid"] = x + at["attn_out"]
                reads = x if layer.parallel else at["resid_mid"]
                at["ln2_normalized"] = layer.bare(reads, reads)
                at["mlp_in"] = layer.norms["mlp"](reads, reads, run.size)  # type: ignore[misc]
                at["raw"] = run._mlp(layer, at["mlp_in"])
                post = layer.norms["mlp_post"]
                at["mlp_out"] = at["raw"] if post is None else post(at["raw"], at["raw"], run.size)
                x = at["resid_mid"] + at["mlp_out"]
                at["resid_post"] = x
                found.append(at)
        _RECORDED[key] = found
    return _RECORDED[key]


def followed(scores: Tensor, seen: Tensor, change: Tensor) -> Tensor:
    """How a softmax follows a change of its scores, on average on the way from no score to these."""
    found = torch.zeros_like(scores)
    for point, weight in zip(*np.polynomial.legendre.leggauss(200), strict=True):
        there = ((point + 1) / 2 * scores).masked_fill(~seen, -math.inf).softmax(-1)
        found = found + weight / 2 * there * (change - (there * change).sum(-1, keepdim=True))
    return found


def rotate(x: Tensor, layer: Layer) -> Tensor:
    """[pos, head, d_head]: the first channels turned, the two halves being the pairs."""
    d = layer.rotated
    angles = torch.arange(len(x), dtype=torch.float64)[:, None] * layer.theta ** (
        -torch.arange(0, d, 2, dtype=torch.float64) / d
    )
    cos, sin = (f(angles)[:, None] for f in (torch.cos, torch.sin))
    a, b = x[..., : d // 2], x[..., d // 2 : d]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, x[..., d:]], -1)


def edges(
    plain: Plain, ids: Tensor, dictionaries: list[Dictionary], first_is_root: Callable[[str], bool], logit: int,
    constants: dict[int, Tensor] | None = None,
) -> dict[Any, tuple[float, float, *tuple[dict[Source, float], ...]]]:  # fmt: skip
    """For every feature that fires, and a logit at the last position: (pre, constant, weights, effects, what is done by
    queries, by keys).
    """
    found: dict[Any, list[Any]] = {}
    for live, hop in ((False, None), (True, None), (False, "query"), (False, "key")):
        with forward_ad.dual_level():
            run = Run(plain, ids, dictionaries, first_is_root, live, hop, constants=constants or {})
            logits, own = run.whole()
            readings = [*run.read, (("logit", "", len(ids) - 1, logit), logits[-1, logit], own[-1, logit])]
            values = [value if hop is None else in_epsilon(value) for _, value, _ in readings]
            slopes = run.edges(torch.stack(values))
        for (key, value, constant), own in zip(readings, slopes, strict=True):
            found.setdefault(key, [value.item(), constant.item()]).append(own)
    return {key: tuple(entry) for key, entry in found.items()}  # type: ignore[misc]


def in_epsilon(value: Tensor) -> Tensor:
    """The part of a reading that is linear in ε; of one below all heads there is none."""
    tangent = forward_ad.unpack_dual(value).tangent
    return 0 * value if tangent is None else tangent
