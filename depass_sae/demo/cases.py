"""The paper's three case studies (appendix C.5, Tables 8 to 10) on SmolLM2 and the shipped SAEs.

The prompts are the paper's. The features are ours: for each, one that means what the paper's feature means, judged by
its strongest contexts in held-out text, and that fires on a token because of an earlier one. Replacing that earlier
token by another word really takes activation away: all of it for " climate" and " simple", a quarter for " supply",
since " demand" fires the economic feature by itself as well.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One case study. Positions count ``<|endoftext|>`` at 0, as the paper's tables count theirs."""

    name: str
    prompt: str
    feature: str
    """``layer/index`` among the shipped SAEs."""
    meaning: str
    position: int
    """The token at which the feature fires and is asked about."""
    sources: range
    """Positions of the earlier tokens of which one contributes more than any other earlier one."""


CASES: tuple[Case, ...] = (
    Case(
        name="climate",
        prompt=(
            "In exploring the relationship between climate change and urban planning, the research identifies key "
            "strategies for sustainable development. It underscores the urgency of integrating environmental "
            "considerations into city planning."
        ),
        feature="17/2601",
        meaning="Climate, the environment and what people do to them.",
        position=7,
        sources=range(6, 7),
    ),
    Case(
        name="simplicity",
        prompt=(
            "Avocado toast, a simple yet trendy breakfast option, gains a delightful twist with a sprinkle of chili "
            "flakes and a drizzle of honey for that perfect balance of spicy and sweet."
        ),
        feature="11/1393",
        meaning="Something is said to be simple.",
        position=8,
        sources=range(7, 8),
    ),
    Case(
        name="economics",
        prompt=(
            "In economics, supply and demand is a model for understanding how prices and quantities are determined in "
            "a market system. This concept is foundational in economic theory and affects various market structures."
        ),
        feature="11/223",
        meaning="The economy: money, prices, markets and trade.",
        position=6,
        sources=range(4, 5),
    ),
)
