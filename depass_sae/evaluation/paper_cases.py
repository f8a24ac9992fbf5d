"""The paper's three cases with the numbers that it prints, and a case each for model families that it has none for.

Appendix C.5 of *DePass: Unified Feature Attributing by Simple Decomposed Forward Pass* (Hong et al., NeurIPS 2025),
Tables 8 to 10: Llama Scope on Llama-3.1-8B. Every number here is copied from these tables, as it is printed there, and
a source that a table does not list has none. Positions count the start token at 0, as the paper's do.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError

START = "<bos>"
"""How the paper writes the start token, which every tokenizer calls something else."""


@dataclass(frozen=True)
class Printed:
    """A row of a table: a source token, its position, and what it contributes."""

    token: str
    pos: int
    contribution: float


@dataclass(frozen=True)
class Analysed:
    """A token that a table is about, its activation there, and its rows, in the table's order."""

    token: str
    pos: int
    activation: float
    sources: tuple[Printed, ...]


@dataclass(frozen=True)
class PaperCase:
    """A feature (``layer/index``) on a prompt, as a table of the paper has it. meaning: Neuronpedia's, there quoted."""

    name: str
    table: str
    prompt: str
    layer: int
    index: int
    meaning: str
    targets: tuple[Analysed, ...]


@dataclass(frozen=True)
class OwnCase:
    """A prompt of ours and a word in it.

    Which feature it is about is found on the model: of the layer's SAE, the most specific one at the word's last token
    (the most above its mean over the prompt). A fixed index would be a guess: nobody has chosen one on the weights.
    """

    name: str
    prompt: str
    layer: int
    word: str


Case = PaperCase | OwnCase


@dataclass(frozen=True)
class Family:
    """A model, the release of SAEs on it with the ids that the cases need, by layer, and the cases."""

    title: str
    model: str
    saes: str
    sae_ids: dict[int, str]
    cases: tuple[Case, ...]

    def chosen(self, names: tuple[str, ...]) -> tuple[Case, ...]:
        """The cases of these names, or all where there is none. Raises UserError for a name that no case has."""
        known = {case.name: case for case in self.cases}
        for name in names:
            if name not in known:
                raise UserError(f"there is no case {name!r} of {self.model}; there are {', '.join(known)}")
        return tuple(case for case in self.cases if not names or case.name in names)


def _analysed(token: str, pos: int, activation: float, *sources: tuple[str, int, float]) -> Analysed:
    return Analysed(token, pos, activation, tuple(Printed(*source) for source in sources))


PAPER_CASES = (
    PaperCase(
        name="climate",
        table="Table 8",
        prompt=(
            "In exploring the relationship between climate change and urban planning, the research identifies key "
            "strategies for sustainable development. It underscores the urgency of integrating environmental "
            "considerations into city planning."
        ),
        layer=31,
        index=5226,
        meaning="climate change and its associated impacts",
        targets=(
            _analysed(
                "climate", 6, 35.25,
                ("climate", 6, 26.875), ("In", 1, 3.0781), ("exploring", 2, 1.875), ("the", 3, 1.4844),
                ("relationship", 4, 1.4844), ("between", 5, 1.4844),
            ),
            _analysed(
                "change", 7, 15.6875,
                ("climate", 6, 16.5), ("relationship", 4, 0.8594), ("between", 5, 0.3984), ("change", 7, 0.5586),
                ("In", 1, -1.9141),
            ),
            _analysed(
                "environmental", 27, 7.4688,
                ("climate", 6, 9.4375), ("exploring", 2, 1.0234), ("environmental", 27, -0.6562),
                ("underscores", 22, -0.167), ("urgency", 24, -0.2432), ("integrating", 26, -0.3516),
            ),
        ),
    ),
    PaperCase(
        name="simplicity",
        table="Table 9",
        prompt=(
            "Avocado toast, a simple yet trendy breakfast option, gains a delightful twist with a sprinkle of chili "
            "flakes and a drizzle of honey for that perfect balance of spicy and sweet."
        ),
        layer=31,
        index=26874,
        meaning="the context of simplicity in various contexts",
        targets=(
            _analysed(
                "yet", 7, 7.4062,
                ("simple", 6, 5.8438), ("toast", 3, 1.9219), ("yet", 7, 1.1953), (",", 4, -0.5312), ("a", 5, -0.5898),
                (START, 0, -1.375),
            ),
            _analysed(
                ",", 11, 3.5312,
                ("simple", 6, 1.7031), ("toast", 3, 0.8125), ("yet", 7, 0.7344), (START, 0, -1.8906),
            ),
        ),
    ),
    PaperCase(
        name="economics",
        table="Table 10",
        prompt=(
            "In economics, supply and demand is a model for understanding how prices and quantities are determined in "
            "a market system. This concept is foundational in economic theory and affects various market structures."
        ),
        layer=25,
        index=9618,
        meaning="references to economic topics and concepts",
        targets=(
            _analysed(
                "economic", 28, 15.0625,
                ("economics", 2, 5.9375), ("economic", 28, 4.9062), (START, 0, 0.9805), (".", 22, 0.1348),
            ),
            _analysed(
                "and", 30, 7.3438,
                ("economics", 2, 4.75), ("economic", 28, 1.9844), (START, 0, 1.1719), ("concept", 24, -0.1025),
                ("In", 1, -0.668),
            ),
        ),
    ),
)  # fmt: skip

FLOOD = OwnCase(
    name="flood",
    prompt=(
        "After three days of heavy rain the river rose, and by the next evening the flood had reached the lower "
        "streets of the town."
    ),
    layer=20,
    word="flood",
)

FAMILIES = {
    "llama": Family(
        title="The paper's cases on Llama-3.1-8B with Llama Scope",
        model="meta-llama/Llama-3.1-8B",
        saes="llama_scope_lxr_8x",
        sae_ids={25: "l25r_8x", 31: "l31r_8x"},
        cases=PAPER_CASES,
    ),
    "gemma": Family(
        title="A case on Gemma-2-2B with Gemma Scope",
        model="google/gemma-2-2b",
        saes="gemma-scope-2b-pt-res-canonical",
        sae_ids={20: "layer_20/width_16k/canonical"},
        cases=(FLOOD,),
    ),
    "qwen": Family(
        title="A case on Qwen3-1.7B-Base with Qwen-Scope",
        model="Qwen/Qwen3-1.7B-Base",  # the SAEs were trained on the base model
        saes="qwen-scope-3-1.7b-base-w32k-l50",
        sae_ids={20: "layer20"},
        cases=(FLOOD,),
    ),
}
