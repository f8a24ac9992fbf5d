"""``models``, which public SAEs can be used, and ``estimate``, what questions take."""

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


def estimate(
    *,
    model: Annotated[str, typer.Argument(help="smollm2, a hub id, or a local directory: only its config is read.")],
    tokens: Annotated[int, typer.Option("--tokens", "-n", help="How long the prompt is.", min=1, show_default=False)],
    graph: Annotated[int, typer.Option("--graph", help="How many nodes a graph has.", min=1)] = 200,
    sae_width: Annotated[int | None, typer.Option("--sae-width", help="Features of each SAE.", min=1)] = None,
    sae_layers: Annotated[
        int | None, typer.Option("--sae-layers", help="On how many layers there is one.", min=1, show_default="all")
    ] = None,
    dtype: options.Dtype = None,
    trace_dtype: options.TraceDtype = None,
    device: options.Device = None,
    tflops: Annotated[
        float | None, typer.Option("--tflops", help="The machine's speed in float32 products. Default: measured.")
    ] = None,
    trust_remote_code: options.Trust = False,
    as_json: options.AsJson = False,
) -> None:
    """What every question takes, in memory and time, before anything is loaded."""
    with talk.working() as status:
        status(f"rehearsing on {model}")
        from ..estimating import estimate as estimated

        found = estimated(
            model,
            tokens=tokens,
            graph=graph,
            sae_width=sae_width,
            sae_layers=sae_layers,
            dtype=dtype,
            trace_dtype=trace_dtype,
            device=device,
            tflops=tflops,
            trust_remote_code=trust_remote_code,
        )
    if as_json:
        talk.print_json(found.to_dict())
    else:
        talk.show(found.blocks())
