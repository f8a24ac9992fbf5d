"""Making a case study, or a card: each prompt runs through the model once, and each SAE encodes it once."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import depass_sae as ds
from depass_sae import subject

from ...attribution.tiny import TEXT, fitting_sae, handle, random_sae

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")  # random SAEs fit nothing
PROMPTS = [TEXT, "the price of supply", "Mary gave John an apple."]


def with_three_saes() -> ds.LM:
    return handle([fitting_sae("0.resid_post"), random_sae(hook="1.resid_post"), fitting_sae("2.resid_post")])


def firing(lm: ds.LM, layer: int, pos: int) -> str:
    (found,) = lm.features(TEXT, layer).layers
    return f"{layer}/{found.positions[pos].indices[0]}@{pos}"


def counted(lm: ds.LM, patch: pytest.MonkeyPatch, ask: Callable[[], Any]) -> tuple[int, Counter[Any], Counter[Any]]:
    """Asks. How often the model ran to be recorded, how often each prompt was recorded, and how often each SAE encoded
    one and the same activations: what is done to the model gives others."""
    recording, runs = [False], [0]
    prompts: Counter[Any] = Counter()
    encodings: Counter[Any] = Counter()
    traces = subject.traces

    def recorded(adapter: Any, ids: Any, **options: Any) -> Any:
        prompts.update(tuple(one.tolist()) for one in ids)
        recording[0] = True
        try:
            return traces(adapter, ids, **options)
        finally:
            recording[0] = False

    def runs_on(_module: Any, _args: Any) -> None:
        runs[0] += recording[0]

    def encode(own: Callable[[torch.Tensor], torch.Tensor], hook: Any, x: torch.Tensor) -> torch.Tensor:
        encodings[hook, x.detach().numpy().tobytes()] += 1
        return own(x)

    watching = lm.model.register_forward_pre_hook(runs_on)
    with patch.context() as patched:
        patched.setattr(subject, "traces", recorded)
        for hook, sae in lm._subject.saes.items():
            patched.setattr(sae, "encode", partial(encode, sae.encode, hook))
        ask()
    watching.remove()
    return runs[0], prompts, encodings


def encoded(lm: ds.LM, prompt: str, hook: Any) -> tuple[Any, bytes]:
    x = lm._subject.trace(lm.encode(prompt), None, list(lm._subject.saes)).at(hook)
    return hook, x.numpy().tobytes()


def test_a_case_study_runs_its_prompt_once_and_encodes_it_once_per_sae(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = with_three_saes()
    features = [firing(lm, 2, 6), firing(lm, 1, 5)]
    runs, prompts, encodings = counted(
        lm, monkeypatch, lambda: lm.case_study(TEXT, features, ablate=2, max_nodes=24, verify=4)
    )
    assert runs == 1
    assert prompts == {tuple(lm.encode(TEXT).token_ids): 1}
    for hook in lm._subject.saes:
        assert encodings[encoded(lm, TEXT, hook)] == 1


def test_a_card_runs_prompts_of_a_length_together_and_encodes_each_once_per_sae(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = with_three_saes()
    feature = firing(lm, 1, 5).partition("@")[0]
    runs, prompts, encodings = counted(lm, monkeypatch, lambda: lm.card(feature, PROMPTS, strongest=12))
    assert runs <= len(PROMPTS)
    assert prompts == {tuple(lm.encode(prompt).token_ids): 1 for prompt in PROMPTS}
    for hook in lm._subject.saes:
        times = [count for (at, _), count in encodings.items() if at == hook]
        assert max(times, default=1) == 1
        assert len(times) <= len(PROMPTS)
        assert len(times) == len(PROMPTS) or hook.layer != 1
