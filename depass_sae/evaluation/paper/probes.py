"""Linear probes of the residual stream, by scikit-learn (``pip install 'depass-sae[paper]'``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ...errors import UserError

PENALTY = 0.01
"""Of logistic regression, scikit-learn's C on standardised inputs: there are hardly more examples than directions."""


@dataclass(frozen=True)
class Probe:
    """weight: [class, d_model] (one row where there are two), of the stream itself; logits: ``x @ weight.T + bias``."""

    weight: Float[np.ndarray, "class d_model"]
    bias: Float[np.ndarray, "class"]

    def logits(self, x: Float[np.ndarray, "n d_model"]) -> Float[np.ndarray, "n class"]:
        return x @ self.weight.T + self.bias

    def chances(self, x: Float[np.ndarray, "n d_model"]) -> Float[np.ndarray, "n"]:
        """Of two classes, that of the second."""
        return 1 / (1 + np.exp(-self.logits(x)[:, 0].clip(-50, 50)))


def logistic(x: Float[np.ndarray, "n d_model"], classes: Sequence[int]) -> Probe:
    """Logistic regression, every direction standardised first; the probe is in terms of the stream all the same."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise UserError("probes need scikit-learn: pip install 'depass-sae[paper]'") from None
    mean, scale = x.mean(0), x.std(0) + 1e-6
    fitted = LogisticRegression(C=PENALTY, max_iter=2000).fit((x - mean) / scale, np.asarray(classes))
    weight = fitted.coef_ / scale
    return Probe(weight, fitted.intercept_ - weight @ mean)


def of_means(x: Float[np.ndarray, "n d_model"], classes: Sequence[int]) -> Probe:
    """Of two classes: along the difference of their means, halfway between them; as steep as a spread of 1 asks."""
    which = np.asarray(classes, dtype=bool)
    ends = x[which].mean(0), x[~which].mean(0)
    weight = ends[0] - ends[1]
    along = np.concatenate([x[which] @ weight - ends[0] @ weight, x[~which] @ weight - ends[1] @ weight])
    weight = weight / max(along.std(), 1e-6)
    return Probe(weight[None], -np.array([(ends[0] + ends[1]) @ weight / 2]))
