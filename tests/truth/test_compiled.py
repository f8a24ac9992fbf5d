"""Compiled programs in a stock GPT-2: tracr's own model's outputs, and the same that their Python says."""

import pytest
import torch

from depass_sae.evaluation.truth import compiled
from depass_sae.evaluation.truth.compiled import NAMES, ONE, folded
from depass_sae.evaluation.truth.neutral import gpt2_of


def run(made: compiled.Compiled, model: torch.nn.Module, words: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The stream before the final norm, and the last position's logits."""
    seen = {}
    hook = model.transformer.ln_f.register_forward_pre_hook(lambda _, args: seen.update(x=args[0][0]))
    logits = model(torch.tensor([[made.words.index(word) for word in words]])).logits[0, -1]
    hook.remove()
    return seen["x"][:, : made.mechanism.width], logits - 1


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "as compiled"])
@pytest.mark.parametrize("name", NAMES)
def test_a_stock_gpt2_computes_what_tracrs_model_does(name: str, fold: bool) -> None:
    made = compiled.compiled(name)
    one = made.told["stream"].index(ONE)
    model = gpt2_of(folded(made.mechanism, one) if fold else made.mechanism)
    for words, recorded in zip(made.told["inputs"], made.recorded, strict=True):
        found, _ = run(made, model, words)
        if fold:
            assert found[:, one].abs().max() == 0
            found[:, one] = recorded[:, one]
        assert (found - recorded).abs().max() < 5e-6


@pytest.mark.parametrize("name", NAMES)
def test_the_program_in_python_says_the_same(name: str) -> None:
    """Of every output that there could be, on tracr's inputs and where a token gives way to another."""
    made = compiled.compiled(name)
    model = gpt2_of(made.mechanism)
    says = getattr(compiled, name)
    outputs = [made.words[column] for column in made.mechanism.read.any(0).nonzero()[:, 0]]
    others = made.words[1 : len(made.told["words"])]
    for words, said in zip(made.told["inputs"], made.told["outputs"], strict=True):
        last = {"True": "True", "False": "False"}.get(said[-1]) or said[-1].removesuffix(".0")
        if "output" in outputs:
            assert says(words, "output") == pytest.approx(float(said[-1]), abs=1e-6)
        else:
            assert [word for word in outputs if says(words, word) == 1] == [last]
        for pos, other in ((1, others[0]), (2, others[-1]), (len(words) - 1, others[1])):
            changed = [*words[:pos], other, *words[pos + 1 :]]
            _, logits = run(made, model, changed)
            for word in outputs:
                assert logits[made.words.index(word)].item() == pytest.approx(says(changed, word), abs=1e-5), changed
