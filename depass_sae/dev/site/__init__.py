"""The documentation site: what is generated when MkDocs builds it (`hooks.py` is where MkDocs comes in).

`commands`, `python`, `notebooks` and `pages` each make Markdown of what the repository already says; `links` leads
links between files of the repository to pages of the site; `formulas` makes MathML of formulas, `docstrings` Markdown
of docstrings. Nothing is run, and nothing is fetched.
"""
