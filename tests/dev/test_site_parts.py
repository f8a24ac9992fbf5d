"""The pieces that the documentation site is made of, without building it."""

import json
import re

import jsonschema
import pytest

import depass_sae as ds
from depass_sae.dev.site import commands, python
from depass_sae.dev.site.links import relinked
from depass_sae.dev.site.pages import ROOT, generated, places, schemas

PAGES = {"CHANGELOG.md": "changelog.md", "notebooks/a.ipynb": "tutorials/a.md", "docs/": "", "graphs/": "graphs/"}


@pytest.mark.parametrize(
    ("written", "on_the_site"),
    [
        ("[log](../CHANGELOG.md#now)", "[log](changelog.md#now)"),
        ("[a](../notebooks/a.ipynb)", "[a](tutorials/a.md)"),
        ("[rules](rules.md)", "[rules](rules.md)"),
        ("[![a picture](a.png)](../graphs/one/g.html)", "[![a picture](a.png)](graphs/one/g.html)"),
        ("[out](https://example.org/a.md) [up](#here)", "[out](https://example.org/a.md) [up](#here)"),
        ("[code](../depass_sae/api.py) stays", "code stays"),
        ("`[a](../nowhere.md)`", "`[a](../nowhere.md)`"),
        ("```\n[a](../nowhere.md)\n```", "```\n[a](../nowhere.md)\n```"),
    ],
)
def test_a_link_into_the_repository_leads_to_its_page_or_is_plain_words(written: str, on_the_site: str) -> None:
    assert relinked(written, "docs/index.md", "index.md", PAGES) == on_the_site


def test_a_page_that_moved_still_links_to_its_neighbours() -> None:
    assert relinked("[a](a.ipynb)", "notebooks/README.md", "tutorials/index.md", PAGES) == "[a](a.md)"
    assert relinked("[r](../docs/rules.md)", "notebooks/a.ipynb", "tutorials/a.md", PAGES) == "[r](../rules.md)"


def test_every_place_is_of_something_that_is_there() -> None:
    assert not [source for source in places() if not (ROOT / source).exists()]


def test_every_published_schema_is_one_and_is_linked_to_from_where_its_files_are_described() -> None:
    assert set(schemas()) == {f"schemas/{name}.schema.json" for name in ("answer", "graph", "case", "index")}
    assert schemas().items() <= dict(generated()).items()
    for text in schemas().values():
        jsonschema.Draft202012Validator.check_schema(json.loads(text))
    linked = {
        page: set(re.findall(r"\]\((schemas/[^)]*)\)", (ROOT / "docs" / page).read_text()))
        for page in ("file-formats.md", "index-format.md")
    }
    assert linked == {"file-formats.md": set(schemas()), "index-format.md": {"schemas/index.schema.json"}}


def test_every_public_name_is_on_one_page_of_the_reference() -> None:
    text = "".join(python.pages().values())
    assert all(text.count(f"::: {python.home(name)}\n") == 1 for name in ds.__all__)


def test_the_reference_has_every_command_with_every_option() -> None:
    from typer.main import get_command

    from depass_sae.cli import app

    text = commands.reference()
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        _, _, section = text.partition(f"\n## {name}\n")
        section = section.partition("\n## ")[0]
        assert section, name
        assert not [opt for p in command.params for opt in p.opts if opt.startswith("--") and f"`{opt}`" not in section]


def test_formulas_become_mathml() -> None:
    pytest.importorskip("latex2mathml")
    from depass_sae.dev.site.formulas import with_mathml

    page = with_mathml(r'<p>a <span class="arithmatex">\(a &lt; b_i\)</span> c</p>')
    assert page.startswith('<p>a <span class="formula"><math')
    assert "&#x0003C;" in page
    assert "arithmatex" not in page
    assert with_mathml("<p>\\(no formula\\)</p>") == "<p>\\(no formula\\)</p>"


def test_a_docstrings_settings_stand_in_lines_of_their_own() -> None:
    pytest.importorskip("griffe")
    from depass_sae.dev.site.docstrings import as_markdown

    assert as_markdown("What.\nrule: half (see :class:`.Rule`).\none, two: both.") == (
        "What.\n\n**rule**: half (see `Rule`).\n\n**one, two**: both."
    )
