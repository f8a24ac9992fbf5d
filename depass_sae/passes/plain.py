"""The method on one page (paper §3), to be read: every component at every position, dense, nothing saved or blocked.

It knows softmax attention, plain and gated MLPs, RMSNorm and LayerNorm; :mod:`.forward` more, and ``half-qk``, too.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..models.parts import MLP, Attention, Linear, Norm
from ..models.place import Place, stream_at
from .record import Trace
from .sources import Split

BIAS, REST = -2, -1  # the last two components
X = Float[Tensor, "pos comp d"]
Present = Bool[Tensor, "pos comp"]  # a component that is absent takes no part, unlike one that is zero


def decompose(trace: Trace, start: Split, rule: str, T: float = 0.1, skip: bool = True) -> dict[Place, tuple]:
    """X and Present at every stream from the start on; the components sum to what the model computed there."""
    x, present = start.rows.dense(), start.rows.present
    found = {stream_at(start.at.depth, trace.n_layers): (x, present)}
    barred = start.first_only & skip & (torch.arange(len(x)) > 0)[:, None]  # position 0's would win every softmax
    for number in range(start.at.depth, len(trace.records)):
        part, pattern = trace.adapter.sublayer(number).to(x), trace.records[number].pattern
        hat = norm(x, present, part.norm, trace.streams[number])
        out = mlp(*hat, part.mixer, barred, rule, T) if pattern is None else attention(*hat, part.mixer, pattern)  # type: ignore[arg-type]
        x, present = x + out[0], present | out[1]
        found[stream_at(number + 1, trace.n_layers)] = x, present
    return found


def norm(x: X, present: Present, part: Norm, whole: Float[Tensor, "pos d"]) -> tuple[X, Present]:
    """X̃·g / rms(x), and for LayerNorm (X̃ − mean X̃)·g / σ(x) + β: the scale is that of the whole stream."""
    if part.kind == "layer":
        x, whole = x - x.mean(-1, keepdim=True), whole - whole.mean(-1, keepdim=True)
    scale = (whole.pow(2).mean(-1) + part.eps).rsqrt()
    return linear(x * scale[:, None, None], present, Linear(torch.diag(part.gain), part.bias))


def linear(x: X, present: Present, part: Linear) -> tuple[X, Present]:
    """X̃ W; what a bias vector adds belongs to the component ``bias``."""
    bias = torch.arange(x.shape[1]) == x.shape[1] + BIAS
    y = x @ part.weight
    return (y, present) if part.bias is None else (y + bias[:, None] * part.bias, present | bias)


def attention(x: X, present: Present, part: Attention, pattern: Float[Tensor, "head query key"]) -> tuple[X, Present]:
    """Σ_h Σ_k A_h[n,k] X̂[k] W_V^h W_O^h, with A as the model had it."""
    (v, present), ones = linear(x, present, part.v), torch.ones(len(x), len(x), dtype=torch.bool)
    v = v.unflatten(-1, (part.n_kv_heads, -1)).repeat_interleave(part.n_heads // part.n_kv_heads, dim=2)
    z = torch.einsum("hqk,kmhd->qmhd", pattern.to(x.dtype), v).flatten(2)
    sees = ones.tril().triu(1 - (part.window or len(x)))  # [query, key]
    return linear(z, (sees[..., None] & present).any(dim=1), part.o)


def mlp(x: X, present: Present, part: MLP, barred: Present, rule: str, T: float) -> tuple[X, Present]:
    """Σ_f hidden[n,m,f] v_f, with Σ_m hidden = act(g)·u, g = Σ_m s and u = Σ_m t."""
    s, takes = linear(x, present, part.gate)
    t, by_up = (None, takes) if part.up is None else linear(x, present, part.up)
    g, u = s.sum(1, keepdim=True), 1.0 if t is None else t.sum(1, keepdim=True)
    present, hidden = takes, part.act(g) / g * s * u  # linear: the slope from the origin, and u as a whole
    if rule == "half" and t is not None:
        present, hidden = takes | by_up, (hidden + part.act(g) * t) / 2
    elif rule not in ("linear", "half"):
        takes = takes & ~barred
        takes[:, REST] |= ~takes.any(dim=1)
        hidden = part.act(g) * u * shares(s, takes[..., None], rule, T)
    return linear(hidden, present | hidden.any(dim=-1), part.down)


def shares(s: X, takes: Bool[Tensor, "pos comp 1"], rule: str, T: float) -> X:
    """ω[n,m,f], which sums to 1 over those that take part; where none has a claim, ``relu`` gives to ``rest``."""
    among, rest = s.masked_fill(~takes, -torch.inf), torch.arange(s.shape[1]) == s.shape[1] + REST
    if rule in ("softmax", "max"):  # max is softmax in the limit T → 0
        return (among / (T if rule == "softmax" else 1e-30)).softmax(dim=1)
    least = 0 if rule == "relu" else s.masked_fill(~takes, torch.inf).amin(1, keepdim=True)
    claim = (among - least).clamp_min(0) + 1e-30 * (rest[:, None] if rule == "relu" else takes)
    return claim / claim.sum(1, keepdim=True)
