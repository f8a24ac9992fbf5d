"""The paper's experiments on SmolLM2, with data of this project's own: ``make paper`` writes docs/paper.md.

Each is a file of its own here; that of the paper's §4.1.1 and §4.2 is a question to ``ds.evaluate``.
"""
