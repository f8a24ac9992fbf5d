"""A question's subject: what it records and encodes, and that nothing outlives the question."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import depass_sae as ds
from depass_sae import subject as subjects
from depass_sae.models.place import Place
from depass_sae.models.prompt import encode
from depass_sae.passes import record

from .attribution.tiny import TEXT, handle, random_sae

IDS = [2, 5, 9, 4, 7, 3]


@contextmanager
def counted(lm: ds.LM) -> Iterator[dict[str, int]]:
    """How many prompts were recorded, and how often each SAE encoded."""
    counts = {"recorded": 0, **{str(place): 0 for place in lm._subject.saes}}
    real = record.traces

    def traces(adapter: Any, prompts: Any, **how: Any) -> Any:
        counts["recorded"] += len(prompts)
        return real(adapter, prompts, **how)

    def counting(place: Place) -> Any:
        def count(_module: Any, _inputs: Any, _output: Any) -> None:
            counts[str(place)] += 1

        return count

    handles = [sae.hook_sae_acts_pre.register_forward_hook(counting(place)) for place, sae in lm._subject.saes.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subjects, "traces", traces)
        try:
            yield counts
        finally:
            for one in handles:
                one.remove()


@pytest.fixture(scope="module")
def lm() -> ds.LM:
    return handle([random_sae(hook="0.resid_post"), random_sae(), random_sae(hook="2.resid_post", seed=2)])


@pytest.mark.parametrize(
    "ask",
    [
        lambda lm: lm.features(TEXT),
        lambda lm: lm.attribute_tokens(TEXT, "1/3", pos="all"),
        lambda lm: lm.attribute_tokens_each(TEXT, ["1/3", "1/4@5", "1/5@2", "2/3", "logit:7"]),
        lambda lm: lm.attribute_heads(TEXT, "1/3", by_token=True),
        lambda lm: lm.attribute_attention(TEXT, 1, 2, 6, 4, by="features"),
        lambda lm: lm.card("1/3", TEXT),
        lambda lm: lm.contrast(TEXT, TEXT, "1/3"),
    ],
)
def test_a_question_runs_a_prompt_once_and_encodes_it_once_by_each_sae(lm: ds.LM, ask: Any) -> None:
    with counted(lm) as counts:
        ask(lm)
    assert counts["recorded"] == 1
    assert max(counts.values()) == 1


def test_a_graph_does_so_too_but_for_the_live_model_in_which_its_features_are_kept(
    lm: ds.LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted(lm) as counts:
        g = lm.graph(TEXT, "2/3")
    assert "sufficiency" in g.graph
    assert counts["recorded"] == 1
    monkeypatch.setattr("depass_sae.api.sufficiency", lambda subject, g: None)
    with counted(lm) as counts:
        lm.graph(TEXT, "2/3")
    assert counts["recorded"] == max(counts.values()) == 1


def test_nothing_is_kept_between_questions(lm: ds.LM) -> None:
    with counted(lm) as counts:
        lm.attribute_tokens(TEXT, "1/3")
        lm.attribute_tokens(TEXT, "1/3")
    assert counts["recorded"] == counts["1.resid_post"] == 2
    assert lm._subject.traces_kept is None
    assert lm._subject.encodings_kept is None


def test_a_trace_is_made_again_where_it_lacks_what_is_asked_for(lm: ds.LM) -> None:
    subject = lm._subject.asked()
    prompt = encode(subject.loaded, subject.adapter, IDS)
    with counted(lm) as counts:
        shallow = subject.trace(prompt, 0)
        assert subject.trace(prompt, 0) is shallow
        assert subject.trace(prompt, 1).n_layers == 2
        deeper = subject.trace(prompt, 1, [Place(1, "attn_out")])
        assert subject.trace(prompt, 0) is deeper
        assert subject.trace(prompt, 1, [Place(0, "resid_mid"), Place(1, "attn_out")]) is deeper
        whole = subject.trace(prompt, None)
        assert subject.trace(prompt, 2) is whole
        assert subject.trace(prompt, 2, [Place(0, "hook_z")]) is not whole
    assert counts["recorded"] == 5
    torch.testing.assert_close(whole.resid_pre[1], shallow.resid_post, rtol=0, atol=0)


def test_a_part_of_a_question_shares_what_the_question_has_seen(lm: ds.LM) -> None:
    subject = lm._subject.asked()
    assert subject.asked() is subject
    assert lm._subject.asked() is not subject


def test_of_many_prompts_only_the_latest_are_kept(lm: ds.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = lm._subject.asked()
    prompts = [encode(subject.loaded, subject.adapter, [2, i, i + 1]) for i in range(5, 10)]
    size = subject.trace(prompts[0], None).size
    monkeypatch.setattr(subjects, "KEPT", 2 * size)
    kept = [subject.trace(prompt, None) for prompt in prompts]
    assert list(subject.traces_kept.things.values()) == kept[-3:]
    with counted(lm) as counts:
        subject.trace(prompts[-1], None)
        subject.trace(prompts[0], None)
    assert counts["recorded"] == 1


def test_a_traces_size_is_that_of_all_its_tensors(lm: ds.LM) -> None:
    prompt = encode(lm._subject.loaded, lm._subject.adapter, IDS)
    seen = lm._subject.trace(prompt, None, [Place(1, "mlp_out")])
    tensors = [*seen.streams, *seen.outputs.values(), seen.logits]
    for one in seen.records:
        tensors += [one.pattern, one.neurons, *one.at.values()]
    assert seen.size == sum(x.numel() * x.element_size() for x in tensors if x is not None)
