r"""Formulas as MathML, made when the site is built: browsers draw it themselves, so no script is needed.

``pymdownx.arithmatex`` (generic) leaves ``<span class="arithmatex">\(...\)</span>``, and where a formula has lines of
its own ``<div class="arithmatex">\[...\]</div>``.
"""

from __future__ import annotations

import html
import re

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def with_mathml(page: str) -> str:
    """A page's HTML, its formulas as MathML."""
    return _FORMULA.sub(_mathml, page)


def _mathml(found: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    tag, bracket, formula = found[1], found[2], html.unescape(found[3]).strip()
    inline = bracket == "("
    drawn: str = convert(formula, display="inline" if inline else "block")
    reached = "" if inline else ' tabindex="0"'  # a long one is scrolled, by keyboard, too
    return f'<{tag} class="formula"{reached}>{drawn}</{tag}>'
