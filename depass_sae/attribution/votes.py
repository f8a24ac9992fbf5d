"""What a feature writes into the stream, and the tokens that this direction votes for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.place import Place, stream_at
from ..models.prompt import token_text
from ..passes.frozen import INSIDE
from ..passes.mixers import mixer_of
from ..passes.mixers.mixer import Record
from ..saes import CrossLayerFeatures, reconstructs
from ..subject import Subject

if TYPE_CHECKING:
    from sae_lens import SAE

AT_ONCE = 2**13
"""So many columns of the unembedding are taken to float32 at a time."""


@dataclass(frozen=True)
class Vote:
    """A token and what a unit of the decoder direction adds to its logit, the mean over the vocabulary taken off."""

    token: str
    id: int
    logit: float


@dataclass(frozen=True)
class DecoderVotes:
    """The tokens that a decoder direction raises most, and those that it lowers most."""

    top: tuple[Vote, ...]
    bottom: tuple[Vote, ...]


def decoder_votes(subject: Subject, hook: Place, index: int, top: int) -> DecoderVotes | None:
    """What a feature's decoder row raises and lowers most (:func:`vote_logits`); None where it writes nothing."""
    found = vote_logits(subject, hook, decoder_row(subject.saes[hook], index)[None])
    if found is None:
        return None
    logits = found[0]
    order = logits.argsort(descending=True, stable=True).tolist()

    def vote(token: int) -> Vote:
        return Vote(token_text(subject.loaded.tokenizer, token), token, logits[token].item())

    return DecoderVotes(tuple(map(vote, order[:top])), tuple(map(vote, order[: -top - 1 : -1])))


def vote_logits(subject: Subject, hook: Place, rows: Float[Tensor, "n d_out"]) -> Float[Tensor, "n vocab"] | None:
    """Decoder rows through the final norm's gain and the unembedding.

    logit_t = ⟨centre(d) ∘ g, W_U[:, t]⟩ − its mean over t, with d = W_dec[i] (through W_O for hook_z), g the final
    norm's gain, and centre taking off the mean over d_model where the final norm is a LayerNorm. The norm's scale,
    which no direction has by itself, is left out. d of a cross-layer transcoder is the sum of all that the feature
    writes. None where the decoder does not write into the stream.
    """
    directions = into_stream(subject, hook, rows)
    return None if directions is None else unembedded(subject, directions)


def unembedded(
    subject: Subject, directions: Float[Tensor, "n d_model"], scale: Float[Tensor, "n 1"] | float = 1.0
) -> Float[Tensor, "n vocab"]:
    """Directions of the last stream as what they add to the logits, over the mean of all tokens. scale: the final
    norm's.
    """
    norm, unembed = subject.adapter.final_norm.to(directions), subject.adapter.unembed.weight
    read = norm.frozen(directions, scale).to(unembed.device)
    logits = torch.cat([read @ columns.to(read.dtype) for columns in unembed.split(AT_ONCE, dim=1)], dim=1)
    return logits - logits.mean(dim=1, keepdim=True)


def decoder_row(sae: SAE, index: int) -> Float[Tensor, "d_out"]:
    """What a unit of the feature writes, wherever it does."""
    return sae.decoders(index).sum(0) if isinstance(sae, CrossLayerFeatures) else sae.W_dec[index].detach()


def writes_at(subject: Subject, hook: Place) -> Place | None:
    """Where on the stream the decoder's output arrives; None where it does not (a reconstructed MLP input).

    Of a cross-layer transcoder it is where the first of it arrives.
    """
    if not reconstructs(subject.saes[hook]):
        return Place(hook.layer, "resid_post")
    if hook.is_stream:
        return hook
    writes = hook.is_output or INSIDE[hook.hook] == "z"
    return stream_at(hook.behind, subject.adapter.n_layers).as_post if writes else None


def into_stream(
    subject: Subject, hook: Place, rows: Float[Tensor, "n d_out"], scale: Float[Tensor, "n 1"] | float = 1.0
) -> Float[Tensor, "n d_model"] | None:
    """Decoder rows, or multiples of them, as what they add to the stream.

    scale: of the norm behind the sublayer, for what stands before it.
    """
    if writes_at(subject, hook) is None:
        return None
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if INSIDE.get(hook.hook) != "z" or not reconstructs(subject.saes[hook]):
        return rows
    part = subject.adapter.sublayer(hook.depth)
    out = mixer_of(part.mixer).write(rows, Record())
    return out if part.post is None else part.post.to(out).frozen(out, scale)
