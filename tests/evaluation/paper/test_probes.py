"""Linear probes."""

import numpy as np
import pytest

pytest.importorskip("sklearn")
from depass_sae.evaluation.paper.probes import logistic, of_means

RNG = np.random.default_rng(0)
ALONG = np.array([3.0, 0.0, -1.0, 0.0])


def data(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    classes = RNG.integers(2, size=n)
    return RNG.normal(size=(n, 4)) * [1, 5, 1, 0.1] + 10 + np.outer(2 * classes - 1, ALONG), classes


@pytest.mark.parametrize("fit", [logistic, of_means])
def test_a_probe_tells_classes_that_lie_apart_and_points_from_one_to_the_other(fit) -> None:
    probe = fit(*data())
    x, classes = data()
    assert np.mean((probe.chances(x) > 0.5) == classes) > 0.9
    assert probe.weight.shape == (1, 4)
    assert probe.weight[0] @ ALONG > 0


def test_a_logistic_probe_says_of_the_stream_itself_what_scikit_learn_says_of_it_standardised() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = RNG.normal(size=(300, 5)) * [1, 2, 3, 4, 5] + 7
    for classes in (x[:, 0] > 7, RNG.integers(4, size=300)):
        theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(x, classes)
        found = logistic(x, classes).logits(x)
        expected = theirs.decision_function(x)
        assert np.allclose(found, expected.reshape(found.shape), atol=1e-3)


def test_halfway_between_the_means_both_classes_are_as_likely() -> None:
    x, classes = data()
    probe = of_means(x, classes)
    middle = (x[classes == 1].mean(0) + x[classes == 0].mean(0)) / 2
    assert probe.chances(middle[None])[0] == pytest.approx(0.5)
