"""A model seen through its family's table: where a transformer keeps the parts that the decomposed pass needs.

A model family is one function, ``layer(text, config, i) -> Layer``, and a few paths (see ``families/``). Everything
else in the package works on the plain parts of :mod:`.parts`, two sublayers a layer (:mod:`.sublayer`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from . import sublayer as sublayers
from .parts import Linear, Norm, linear
from .place import Place
from .sublayer import Layer, Sublayer, Tap
from .weights import runs_on, weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Family:
    """A model family: which transformers ``model_type``s it covers and where their parts are.

    text: the path of the language model inside the whole one; embed, layers: paths inside that. softcap: of the logits,
    c·tanh(logit/c).
    """

    name: str
    model_types: tuple[str, ...]
    text: str
    embed: str
    layers: str
    final_norm: Callable[[Any], Norm]
    layer: Callable[[Any, Any, int], Layer]
    softcap: Callable[[Any], float | None] = lambda config: None


@dataclass(frozen=True)
class Adapter:
    """A model seen through its family's table."""

    model: PreTrainedModel
    family: Family

    @property
    def lock(self) -> threading.RLock:
        """The model object's one lock, whichever adapter asks for it: held by whoever changes the model for a pass, or
        takes its parts while another might."""
        with _LOCKING:
            return _LOCKS.setdefault(self.model, threading.RLock())

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Of the language model's weights, also while another thread's pass has them in a higher one.

        A model may have several and run: its upper layers in a higher one, or hooks that cast between layers.
        """
        with self.lock:
            parts = (self.text, self.model.get_output_embeddings())
            return {p.dtype for part in parts for p in part.parameters() if p.is_floating_point()}

    @property
    def dtype(self) -> torch.dtype:
        """The model's own: of several the coarsest, as far as which what it computes is rounded."""
        return max(self.dtypes, key=lambda dtype: torch.finfo(dtype).eps)

    @property
    def device(self) -> torch.device:
        """Where the model takes what it is given, and where components are: a model may lie on several devices."""
        with self.lock:
            return runs_on(self.model, self.text.get_submodule(self.family.embed))

    @property
    def text(self) -> Any:
        """The language model: all of it, but for what reads images or sounds."""
        return self.model.get_submodule(self.family.text)

    @property
    def config(self) -> Any:
        """The language model's."""
        return self.model.config.get_text_config()

    @property
    def n_layers(self) -> int:
        return len(self.text.get_submodule(self.family.layers))

    @property
    def d_model(self) -> int:
        return self.unembed.d_in

    @property
    def context_length(self) -> int | None:
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def vocab_size(self) -> int:
        return weight(self.text.get_submodule(self.family.embed)).shape[0]

    @property
    def final_norm(self) -> Norm:
        with self.lock:
            return self.family.final_norm(self.text)

    @property
    def unembed(self) -> Linear:
        with self.lock:
            return linear(self.model.get_output_embeddings())

    @property
    def softcap(self) -> float | None:
        """c where the model's logits are c·tanh(logit/c)."""
        return self.family.softcap(self.config)

    def capped(self, logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
        """Logits as the model puts them out."""
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def compute_dtype(self, dtype: torch.dtype | None = None) -> torch.dtype:
        """What components are carried in: float32 at least, float64 for a float64 model (or trace)."""
        return torch.promote_types(dtype or self.dtype, torch.float32)

    def layer(self, index: int) -> Layer:
        with self.lock:
            return self.family.layer(self.text, self.config, index)

    def sublayer(self, number: int) -> Sublayer:
        """Of all, attention and MLP of each layer counted in turn."""
        return self.layer(number // 2).sublayers[number % 2]

    def tap(self, place: Place) -> Tap:
        """Where a module shows a place."""
        return sublayers.tap(self.layer(place.layer), place.hook)

    def width(self, place: Place) -> int:
        """The last dimension of what stands at a place."""
        return sublayers.width(self.layer(place.layer), place.hook, self.d_model)


_LOCKS: WeakKeyDictionary[PreTrainedModel, threading.RLock] = WeakKeyDictionary()
_LOCKING = threading.Lock()
"""Hooks, attention implementation and dtype lie on the model object, and every adapter of it shares them."""
