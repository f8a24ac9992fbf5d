"""A stock GPT-2 or Llama with neutral norms computes the mechanism that was written into it."""

from itertools import product

import pytest
import torch

from depass_sae.evaluation.truth.copying import CopyHead, Induction
from depass_sae.evaluation.truth.dictionaries import DICTIONARIES, Dictionary
from depass_sae.evaluation.truth.gates import GATES, Gate, Product
from depass_sae.evaluation.truth.neutral import C, gpt2_of, llama_of


def logits(model: torch.nn.Module, vocabulary: tuple[str, ...], words: list[str]) -> torch.Tensor:
    return model(torch.tensor([[vocabulary.index(word) for word in words]])).logits[0, -1]


def test_the_copy_head_gives_every_token_the_attention_on_it() -> None:
    copies = CopyHead()
    model = gpt2_of(copies.mechanism()[1])
    for words in (["<s>", "a", "B", "b", "?"], ["<s>", "D", "D", "A", "?"], ["<s>", "D", "a"], ["<s>", "_", "b", "?"]):
        found = logits(model, copies.words, words) - 1
        expected = torch.tensor([copies.logit(words, word) for word in copies.words], dtype=torch.float64)
        assert torch.allclose(found, expected, atol=1e-6)


def test_induction_gives_what_came_after_this_letter() -> None:
    induction = Induction()
    model = gpt2_of(induction.mechanism()[1])
    for text in ("<s> A B D A", "<s> A B A D A", "<s> _ B D A", "<s> A B D _", "<s> E D E"):
        words = text.split()
        found = logits(model, induction.words, words) - 1
        expected = [induction.logit(words, word) if word not in ("<s>", "_") else 0.0 for word in induction.words]
        assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.name)
def test_a_gate_is_its_function_of_all_inputs(gate: Gate) -> None:
    model = gpt2_of(gate.mechanism()[1])
    for a, b in product(("a", "_"), ("b", "_")):
        found = logits(model, gate.words, ["<s>", a, b, "="])[-1] - 1
        assert found.item() == pytest.approx(gate.function(a == "a", b == "b"), abs=2e-6)


def test_a_gated_mlp_multiplies() -> None:
    made = Product()
    model = llama_of(made.mechanism()[1])
    for a, b in product(("a", "aa", "_"), ("b", "bb", "_")):
        words = ["<s>", a, b, "="]
        assert logits(model, made.words, words)[-1].item() == pytest.approx(made.of(words), abs=2e-6)


@pytest.mark.parametrize("made", DICTIONARIES, ids=lambda made: made.name)
def test_what_is_read_of_a_dictionary_is_the_sum_of_its_features(made: Dictionary) -> None:
    model = gpt2_of(made.mechanism()[1])
    for word in ("t0", "t2", "_"):
        words = ["<s>", word, "t1", "?"]
        parts = [made.of(words, feature) for feature in range(made.features)]
        assert logits(model, made.words, words)[2].item() - 1 == pytest.approx(sum(parts), abs=2e-6)
        assert made.of(words) == pytest.approx(sum(parts), abs=1e-12)


def test_a_neutral_layer_norm_is_off_by_what_it_says() -> None:
    model = gpt2_of(CopyHead().mechanism()[1])
    x = model.transformer.wte.weight + model.transformer.wpe.weight[1]
    inside = x.clone()
    inside[:, x.abs().amax(0) == C] = 0
    off = (model.transformer.h[0].ln_1(x) - x)[:, x.abs().amax(0) < C].norm(dim=1) / inside.norm(dim=1)
    assert torch.allclose(off, inside.square().sum(1) / (4 * C**2), rtol=1e-3)
    assert off.max() < 1e-6
