"""Which features fire on a prompt, strongest first, per layer and position: where every question starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import SAEFitWarning, UserError, warn
from ..models.prompt import Prompt
from ..saes import Fit, Hook, active_features, describe, fit
from .document import Heading, fit_dict
from .render import Html, Text, features_page, features_table, remarks, table_text
from .subject import Subject

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class ActiveAt:
    """The active features of one position, strongest first; none at position 0 where that is a special token."""

    pos: int
    token: str
    indices: tuple[int, ...]
    activations: tuple[float, ...]


@dataclass(frozen=True)
class LayerFeatures:
    """One SAE on the prompt. ``name``: what its features are written with; ``17.attn_out`` where SAEs share a layer."""

    hook: Hook
    name: str
    sae: dict[str, Any]
    fit: Fit
    positions: tuple[ActiveAt, ...]


@dataclass(frozen=True)
class FeatureReport:
    """Every active feature of every SAE that was asked, layers ascending."""

    heading: Heading
    layers: tuple[LayerFeatures, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document that ``depass-sae features --json`` prints."""
        return {
            **self.heading.to_dict(),
            "layers": [
                {
                    "layer": layer.hook.layer,
                    "hook": layer.hook.name,
                    "sae": layer.sae,
                    **(fit_dict(layer.fit) or {}),
                    "positions": [
                        {
                            "pos": at.pos,
                            "token": at.token,
                            "features": [
                                {"index": i, "activation": a} for i, a in zip(at.indices, at.activations, strict=True)
                            ],
                        }
                        for at in layer.positions
                    ],
                }
                for layer in self.layers
            ],
        }

    def to_frame(self) -> pandas.DataFrame:
        """One row per active feature."""
        import pandas

        rows = [
            (layer.hook.layer, layer.hook.name, at.pos, at.token, f"{layer.name}/{index}", index, activation)
            for layer in self.layers
            for at in layer.positions
            for index, activation in zip(at.indices, at.activations, strict=True)
        ]
        return pandas.DataFrame(rows, columns=["layer", "hook", "pos", "token", "feature", "index", "activation"])

    def table(self, top: int = 5) -> Text:
        """The ``top`` strongest features of every position, as text."""
        said = [line for layer in self.layers for line in remarks(layer.fit, None)]
        return table_text(*features_table(self, top), *said)

    def plot(self, top: int = 8) -> Html:
        """The same as HTML."""
        return Html(features_page(self, top))

    def _repr_html_(self) -> str:
        return self.plot()

    def __repr__(self) -> str:
        return str(self.table())


def find_features(subject: Subject, prompt: Prompt, layer: int | None = None) -> FeatureReport:
    """The features that fire on a prompt, for all SAEs or those of one layer.

    Raises UserError where there is no SAE at the layer.
    """
    hooks = sorted(hook for hook in subject.saes if layer in (None, hook.layer))
    if not hooks:
        subject.hook(-1 if layer is None else layer)  # says which there are
    too_deep = [hook for hook in hooks if hook.layer >= subject.adapter.n_layers]
    if too_deep:
        raise UserError(f"{subject.loaded.name} has {subject.adapter.n_layers} layers; no SAE can be at {too_deep[0]}")
    points = [(hook.layer, hook.name) for hook in hooks]
    seen = subject.trace(prompt, hooks[-1].layer, points)
    layers = []
    for hook, point in zip(hooks, points, strict=True):
        sae, x = subject.saes[hook], seen.at(point)
        shared = sum(other.layer == hook.layer for other in subject.saes) > 1
        positions = []
        for pos, active in enumerate(active_features(sae, x)):
            skip = pos == 0 and prompt.special[0]
            positions.append(
                ActiveAt(
                    pos,
                    prompt.tokens[pos],
                    () if skip else tuple(active.indices.tolist()),
                    () if skip else tuple(active.activations.tolist()),
                )
            )
        name = str(hook) if shared else str(hook.layer)
        fitted = fit(sae, x)
        if fitted.warning:
            warn(f"{hook}: {fitted.warning}", SAEFitWarning)
        layers.append(LayerFeatures(hook, name, describe(sae), fitted, tuple(positions)))
    return FeatureReport(Heading.of(subject, prompt), tuple(layers))
