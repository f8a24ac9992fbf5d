"""Settings that all tests share: the same Hypothesis examples everywhere, one thread, and libraries that keep quiet."""

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

settings.register_profile(
    "same-everywhere",
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("same-everywhere")


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    """One thread (the models are tiny), and no messages or progress bars from transformers."""
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
