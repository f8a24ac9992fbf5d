"""Whole feature-flow graphs on SmolLM2's shape: what the user waits for, and how much memory it takes."""

from __future__ import annotations

import itertools
import time
import warnings
from typing import Any

import torch

from .measure import Row, peak
from .shapes import SHAPES

NODES = 500
WIDTH = 16_384
"""Features of a transcoder."""
L0 = (60.0, 70.0)


def graph(threads: int, length: int) -> list[Row]:
    """The graph of the likeliest next tokens after ``length`` tokens of text, over all shipped SAEs."""
    import depass_sae as ds
    from depass_sae.demo.corpus import documents

    torch.set_num_threads(threads)
    lm = ds.load("smollm2")
    assert lm.tokenizer is not None
    text = "".join(document.text for document in itertools.islice(documents(None), 12))
    ids = [lm.tokenizer.bos_token_id, *lm.tokenizer(text)["input_ids"][: length - 1]]
    start = time.perf_counter()
    g = lm.graph(ids, max_nodes=NODES)
    seconds = time.perf_counter() - start
    work = f"graph, {g.number_of_nodes()} nodes, {g.number_of_edges()} edges"
    return [Row("smollm2", length, work, "", seconds, None, None, peak(lm.model.device))]


def every_layer(threads: int, length: int) -> list[Row]:
    """The graph on a random model with a random transcoder for every MLP, each with 60 to 70 features active."""
    import depass_sae as ds

    torch.set_num_threads(threads)
    model = SHAPES["smollm2-random"].build().model
    saes = [_transcoder(layer, model.config.hidden_size) for layer in range(model.config.num_hidden_layers)]
    lm = ds.load(model, saes=saes)
    del saes
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (length,), generator=generator).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random transcoders explain nothing
        start = time.perf_counter()
        g = lm.graph(ids, max_nodes=NODES)
        seconds = time.perf_counter() - start
    found = [sae["l0"] for sae in g.graph["saes"]]
    if not all(L0[0] <= l0 <= L0[1] for l0 in found):
        raise ValueError(f"the transcoders' L0 should be {L0[0]:g} to {L0[1]:g}, and is {min(found)} to {max(found)}")
    work = f"graph, every layer cut, {g.number_of_nodes()} nodes, {g.number_of_edges()} edges"
    return [Row("smollm2-random", length, work, "", seconds, None, None, peak(lm.model.device))]


def _transcoder(layer: int, d_model: int) -> Any:
    """Of unit rows on an input of unit size in every dimension: pre-activations are normal, and so many pass.

    A few decoder rows are far longer than others, so that features, and not errors alone, have influence.
    """
    import sae_lens

    config = sae_lens.TranscoderConfig(d_in=d_model, d_sae=WIDTH, d_out=d_model, apply_b_dec_to_input=False)
    config.metadata["hook_name"] = f"blocks.{layer}.mlp.hook_in"
    with torch.device("meta"):
        sae = sae_lens.Transcoder(config)
    generator = torch.Generator().manual_seed(layer)
    rows = torch.randn(d_model, WIDTH, generator=generator) / d_model**0.5
    least = -torch.distributions.Normal(0, 1).icdf(torch.tensor(sum(L0) / 2 / WIDTH)).item()
    weights = {
        "W_enc": rows,
        "b_enc": torch.full((WIDTH,), -least),
        "W_dec": torch.randn(WIDTH, d_model, generator=generator)
        * (2 * torch.randn(WIDTH, 1, generator=generator)).exp()
        / d_model**0.5
        / 10,
        "b_dec": torch.zeros(d_model),
    }
    sae.load_state_dict(weights, assign=True)
    return sae
