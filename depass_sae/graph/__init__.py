"""Feature-flow graphs: built, pruned, and what their attributes mean.

A graph is a ``networkx.DiGraph``; edges point where information flows. Nodes have a ``kind`` (token, feature, error,
constant, bias, logit, head, remainder), ``layer`` (−1: the embeddings; logits: the number of layers), ``pos`` and
``token`` where they stand at a position, ``influence`` and ``label``; features and logits ``index``, ``activation``,
``pre_activation`` and ``constant``. Edges have a ``kind`` (flow, remainder, head), ``weight`` and ``effect``.
"""
