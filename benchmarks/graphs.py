"""A whole feature-flow graph on SmolLM2: what the user waits for, and how much memory it takes."""

from __future__ import annotations

import itertools
import time

import torch

from .measure import Row, peak

NODES = 500


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
