"""A feature card as HTML: a page of its own, or a piece for a notebook. Neither has a script."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._version import __version__
from .html import At, asset, environment, inert, render


def card_page(document: Mapping[str, Any]) -> str:
    """The page of a card's document (:meth:`.FeatureCard.to_dict`)."""
    return render("card_page.html", c=At(document), version=__version__)


def card_piece(document: Mapping[str, Any]) -> str:
    """The card with its style, and nothing around it."""
    return environment().get_template("card_piece.html").render(c=document, style=inert(asset("card.css")))
