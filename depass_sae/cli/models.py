"""``models``: which public SAEs can be used."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options, talk


def models(
    *,
    release: Annotated[
        str | None, typer.Argument(help="A sae-lens release: its SAEs by hook and architecture.", show_default=False)
    ] = None,
    count: Annotated[
        bool, typer.Option("--count", help="Only numbers: how many work, and how many do not why.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Which public SAEs can be used: every release of sae-lens's registry, without the network."""
    from ..report.releases import document, tables
    from ..saes.registry import release_named

    asked = None if release is None else release_named(release)
    if as_json:
        talk.print_json(document(asked, count))
    else:
        talk.show(tables(asked, count))
