"""Settings that all tests share: the same Hypothesis examples everywhere, one thread, and libraries that keep quiet.

Beside them the browser of all tests of pages.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from depass_sae.demo.browser import browser as chromium
from depass_sae.errors import UserError

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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; where it or playwright is missing, the tests that ask for it are skipped."""
    # Of a module and not of all: two playwrights cannot run at once, and other modules start their own.
    try:
        with chromium() as started:
            yield started
    except UserError as missing:
        pytest.skip(str(missing))
