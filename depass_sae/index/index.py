"""An index opened: what features do over its corpus, asked without a model (:func:`open_index`).

Nothing is read but what an answer needs: of a feature the few row groups that its rows are in.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np
from jaxtyping import Int

from ..arguments import typed
from ..errors import UserError
from ..files import expanded
from ..labels.files import check_labels
from ..labels.kept import index_folder, read_index_labels, read_kept
from ..models.place import Place
from .contexts import half_octave, low_edge
from .manifest import Manifest
from .results import Context, FeatureInIndex, Histogram, Overview, TokenCount
from .settings import named_feature
from .tables import Sorted, check_arrow, columns_of, open_parquet, rows_of

if TYPE_CHECKING:
    import pandas

    from ..api import LM
    from ..passes.forward import Progress
    from .browse.server import Browsing
    from .causes import Causes
    from .compare import Comparison
    from .lists import FeatureList
    from .search import Found
    from .similar import Similar

SCALARS = ("feature", "count", "density", "mean", "max", "drawn")
"""Columns of all features that are read at once."""


@typed
def open_index(folder: str | os.PathLike[str], labels: Mapping[str, str] | None = None) -> Index:
    """The index in a folder, or ``"smollm2"`` for that of the SAEs which come with the package.

    labels: what features mean, ``17/2601`` to a text (:func:`.read_labels`).

    Raises UserError where there is none, or where its scan was not finished.
    """
    check_arrow()
    path = expanded(index_folder(folder))
    if not path.is_dir():
        raise UserError(f"there is no index {path}: no such folder")
    check_labels(labels or {})
    index = Index(path, Manifest.read(path), dict(labels or {}))
    index.opened()
    return index


class Index:
    """A corpus's index. manifest: of what it was made, and how."""

    def __init__(self, folder: Path, manifest: Manifest, labels: Mapping[str, str]) -> None:
        self.folder, self.manifest, self.labels = folder, manifest, dict(labels)
        self.saes = manifest.widths
        self._tables: dict[tuple[Place, str], Sorted] = {}
        self._scalars: dict[Place, dict[str, Any]] = {}

    def __repr__(self) -> str:
        return f"Index({str(self.folder)!r}, {self.tokens:,} tokens, SAEs at {', '.join(map(str, self.saes))})"

    def __reduce__(self) -> tuple[Any, ...]:
        return open_index, (str(self.folder), self.labels)

    @property
    def tokens(self) -> int:
        """At how many features count."""
        return self.manifest.tokens

    def overview(self) -> Overview:
        """What the index is of, and what of the corpus was left out."""
        return Overview.of(self)

    @typed
    def feature(self, feature: str) -> FeatureInIndex:
        """What one feature ("LAYER/INDEX") does over the corpus.

        Raises UserError for one that is not there.
        """
        hook, index = named_feature(feature, self.saes)
        scalars, at = self.features(hook), self.at
        row = rows_of(self._features(hook), index, index + 1).to_pylist()[0]
        found = at(hook, "contexts").feature(index)
        contexts = self._contexts(found)
        kinds = found["kind"]
        positions = at(hook, "positions").feature(index)
        histogram = at(hook, "histogram").feature(index)
        partners = at(hook, "partners").feature(index)
        return FeatureInIndex(
            model=self.manifest.model["name"],
            sae=self.manifest.saes[str(hook)],
            hook=hook,
            index=index,
            name=self.name(hook, index),
            label=self.label(hook, index),
            count=int(scalars["count"][index]),
            scanned=self.tokens,
            mean=float(scalars["mean"][index]),
            largest=float(scalars["max"][index]),
            histogram=Histogram(tuple(histogram["low"].tolist()), tuple(histogram["count"].tolist())),
            positions=Histogram(tuple(map(float, positions["low"].tolist())), tuple(positions["count"].tolist())),
            contexts=tuple(c for c, kind in zip(contexts, kinds, strict=True) if kind == "top"),
            samples=tuple(c for c, kind in zip(contexts, kinds, strict=True) if kind == "sample"),
            fires_on=self.token_counts(hook, "tokens", index),
            before=self.token_counts(hook, "before", index),
            after=self.token_counts(hook, "after", index),
            partners=tuple(
                (self.name(hook, i), self.label(hook, i), count)
                for i, count in zip(partners["partner"].tolist(), partners["count"].tolist(), strict=True)
            ),
            drawn=int(scalars["drawn"][index]),
            missed={name.removesuffix("_missed"): row[name] for name in row if name.endswith("_missed")},
            top=self._votes(row, "top"),
            bottom=self._votes(row, "bottom"),
            causes=self.causes(hook, index),
        )

    @typed
    def why(self, feature: str, lm: LM | None = None, contexts: int = 10, **how: Any) -> Causes:
        """Why a feature fires: :meth:`depass_sae.LM.why`; without a model, what was found before.

        Raises UserError where nothing was.
        """
        if lm is not None:
            return lm.why(self, feature, contexts=contexts, **how)
        kept = self.causes(*named_feature(feature, self.saes))
        if kept is None:
            raise UserError(f"nobody has asked yet why {feature} fires; that takes the model: index.why(feature, lm)")
        return kept

    def causes(self, hook: Place, index: int) -> Causes | None:
        """What was found of why a feature fires, and kept; None: nothing was."""
        from .causes_kept import read_causes

        return read_causes(self, hook, index)

    @typed
    def similar(self, feature: str, top: int = 20) -> Similar:
        """The features of all SAEs that fire on the same tokens, the likest first."""
        from .similar import similar

        return similar(self, feature, top)

    @typed
    def export_contexts(
        self,
        path: str | os.PathLike[str],
        features: Sequence[str] | None = None,
        *,
        format: str = "autointerp",
        layer: str | None = None,
        list: str | None = None,
        top: int = 20,
        contexts: int = 20,
        progress: Progress | None = None,
    ) -> int:
        """Features with their contexts, for other programs; how many were written.

        features: these; None: the ``top`` of a list ("dense", "rare"), else all that fire, of one layer's SAE or of
        all. format: "autointerp", JSON lines; or "neuronpedia", a folder with a file for each, or JSON lines where the
        name ends so. See :mod:`depass_sae.index.export`.

        Raises UserError for what cannot be written.
        """
        from .export import Chosen, export

        return export(self, path, format, Chosen(features, layer, list, top), contexts, progress)

    def activations(self, feature: str) -> pandas.DataFrame:
        """Every activation of a feature of which all are kept: window, pos, token, document and activation.

        Raises UserError where they are not kept.
        """
        import pandas

        hook, index = named_feature(feature, self.saes)
        kept = self.manifest.full.get(str(hook))
        if kept is None or (kept != "all" and index not in kept):
            raise UserError(f"not every activation of {feature} is kept; scan with --full {feature}, or --full all")
        return pandas.DataFrame(self.at(hook, "activations").feature(index)).drop(columns="feature")

    # ------------------------------------------------------------------------------------------------- lists of them

    def dense(self, top: int = 20, layer: str | None = None) -> FeatureList:
        """The features that fire at most tokens."""
        from .lists import listed

        return listed(self, "dense", top, layer)

    def rare(self, top: int = 20, layer: str | None = None) -> FeatureList:
        """Those that fire, but at fewest tokens."""
        from .lists import listed

        return listed(self, "rare", top, layer)

    def dead(self, top: int = 20, layer: str | None = None) -> FeatureList:
        """Those that fire nowhere."""
        from .lists import listed

        return listed(self, "dead", top, layer)

    @typed
    def search(self, text: str, top: int = 20) -> Found:
        """Features by the tokens that they fire on, by their contexts and by their labels."""
        from .search import search

        return search(self, text, top)

    def compare(self, other: Index, top: int = 20) -> Comparison:
        """Which features of the same SAEs fire more, or less, over another corpus."""
        from .compare import compare

        return compare(self, other, top)

    @typed
    def browse(self, port: int = 0, *, open: bool = False) -> Browsing:
        """Serve it to this machine's browsers: at ``.address``, until ``.close()``, or ``.wait()`` for Ctrl-C.

        port: 0 is any that is free. open: in the browser, too. Raises UserError for a port that is taken.
        """
        from .browse.server import Browsing

        browsing = Browsing(self, port)
        if open:
            browsing.open()
        return browsing

    # --------------------------------------------------------------------------------------------- what it is made of

    def at(self, hook: Place, name: str) -> Sorted:
        """A table of an SAE."""
        if (hook, name) not in self._tables:
            offsets = self._offsets(hook)
            if name not in offsets:
                raise UserError(f"{self.folder / str(hook)} has no table {name}")
            path = self.folder / str(hook) / f"{name}.parquet"
            self._tables[hook, name] = Sorted.open(path, offsets[name])
        return self._tables[hook, name]

    def features(self, hook: Place) -> dict[str, Any]:
        """Numbers of all features of an SAE, by column."""
        if hook not in self._scalars:
            self._scalars[hook] = columns_of(self._features(hook).read(columns=list(SCALARS), use_threads=False))
        return self._scalars[hook]

    def densities(self, hook: Place, features: Sequence[int]) -> list[float]:
        """At what share of the tokens each fires."""
        density: list[float] = self.features(hook)["density"][list(features)].tolist()
        return density

    def shares(self, hook: Place, features: Sequence[int], activations: Sequence[float]) -> list[float]:
        """At what share of the tokens each feature fires as strongly as that, or more; within a bin of the histogram.

        An activation above all of the corpus's counts as one of its tokens: it is not known to be any rarer.
        """
        table, found = self.at(hook, "histogram"), []
        edges = low_edge(half_octave(np.abs(np.asarray(activations, dtype=np.float64))))
        for index, edge in zip(features, edges, strict=True):
            key = (hook, f"histogram {index}")
            if key not in self._opened:
                rows = table.feature(index)
                self._opened[key] = rows["low"], [*rows["count"][::-1].cumsum()[::-1].tolist(), 1]
            low, at_least = self._opened[key]
            found.append(at_least[int(np.searchsorted(low, edge * (1 - 1e-6)))])
        return [count / max(self.tokens, 1) for count in found]

    def check_saes(self, saes: Mapping[Place, Any]) -> None:
        """Raises UserError for SAEs that are not those of the index. One that was right is not read whole again."""
        from .described import weights_hash, weights_state

        missing = [hook for hook in saes if hook not in self.saes]
        if missing:
            raise UserError(f"the index in {self.folder} has no SAE at {missing[0]}; it is of others")
        for hook, sae in saes.items():
            known, state = self._right.get(hook, (None, None)), weights_state(sae)
            if state is not None and known[0] is not None and known[0]() is sae and known[1] == state:
                continue
            if weights_hash(sae) != self.manifest.saes[str(hook)]["sha256"]:
                raise UserError(f"the index in {self.folder} is of another SAE at {hook}: its weights differ")
            self._right[hook] = ref(sae), state

    def name(self, hook: Place, index: int) -> str:
        shared = sum(other.layer == hook.layer for other in self.saes) > 1
        return f"{hook if shared else hook.layer}/{index}"

    def label(self, hook: Place, index: int) -> str | None:
        """The one that was given; else the automatic one."""
        return self.given_label(hook, index) or self._automatic(hook).get(index)

    def given_label(self, hook: Place, index: int) -> str | None:
        return self.labels.get(f"{hook}/{index}", self.labels.get(f"{hook.layer}/{index}"))

    def all_labels(self) -> dict[str, str]:
        """Of every feature that has one, by its name: those that were given, and automatic ones."""
        return read_index_labels(self.folder) | self.labels

    def _automatic(self, hook: Place) -> dict[int, str]:
        key = (hook, "labels")
        if key not in self._opened:
            self._opened[key] = read_kept(self.folder / str(hook))
        return self._opened[key]

    def forget_labels(self, hook: Place) -> None:
        """Automatic names are read again: one of them has changed."""
        self._opened.pop((hook, "labels"), None)

    def text(self, token: int) -> str:
        """A token's text."""
        return self.vocabulary[token]

    @cached_property
    def vocabulary(self) -> list[str]:
        return open_parquet(self.folder / "vocabulary.parquet").read(columns=["text"])["text"].to_pylist()

    def _offsets(self, hook: Place) -> dict[str, Int[np.ndarray, "d_sae+1"]]:
        key = (hook, "offsets")
        if key not in self._opened:
            self._opened[key] = columns_of(open_parquet(self.folder / str(hook) / "offsets.parquet").read())
        return self._opened[key]

    def _features(self, hook: Place) -> Any:
        key = (hook, "features")
        if key not in self._opened:
            self._opened[key] = open_parquet(self.folder / str(hook) / "features.parquet")
        return self._opened[key]

    @cached_property
    def _right(self) -> dict[Place, tuple[Any, Any]]:
        """The SAEs that were found to be the index's, and as what."""
        return {}

    @cached_property
    def _opened(self) -> dict[tuple[Place, str], Any]:
        return {}

    @cached_property
    def _windows(self) -> Any:
        return open_parquet(self.folder / "windows.parquet")

    def opened(self) -> None:
        """Opens all files, so that no answer waits for that."""
        for hook in self.saes:
            self.features(hook)
            self._automatic(hook)
            for name in self._offsets(hook):
                self.at(hook, name)
        _ = self.vocabulary, self._windows

    def window(self, number: int) -> dict[str, Any]:
        columns = ["document", "name", "start", "tokens"]
        return rows_of(self._windows, number, number + 1, columns).to_pylist()[0]

    def contexts(self, hook: Place, index: int, top: int) -> tuple[Context, ...]:
        """The strongest contexts of a feature."""
        found = self.at(hook, "contexts").feature(index, top)
        kinds = found["kind"]
        return tuple(c for c, kind in zip(self._contexts(found), kinds, strict=True) if kind == "top")

    def _contexts(self, found: Mapping[str, Any]) -> list[Context]:
        made = []
        for i, number in enumerate(found["window"].tolist()):
            window = self.window(number)
            ids = window["tokens"]
            values = np.zeros(len(ids), dtype=np.float32)
            values[found["at"].row(i)] = found["activations"].row(i)
            made.append(
                Context(
                    activation=float(found["activation"][i]),
                    pos=int(found["pos"][i]),
                    token_ids=tuple(ids),
                    tokens=tuple(map(self.text, ids)),
                    activations=tuple(values.tolist()),
                    document=window["name"],
                    number=window["document"],
                    start=window["start"],
                )
            )
        return made

    def token_counts(self, hook: Place, name: str, index: int, top: int | None = None) -> tuple[TokenCount, ...]:
        """The tokens that a feature fires on, or those ``before`` or ``after``; most frequent first."""
        rows = self.at(hook, name).feature(index, top)
        columns = (rows[column].tolist() for column in ("token", "count", "mean", "max"))
        return tuple(
            TokenCount(self.text(i), i, count, mean, top) for i, count, mean, top in zip(*columns, strict=True)
        )

    def _votes(self, row: Mapping[str, Any], which: str) -> tuple[tuple[str, int, float], ...]:
        pairs = zip(row[f"{which}_tokens"], row[f"{which}_logits"], strict=True)
        return tuple((self.text(token), token, logit) for token, logit in pairs)
