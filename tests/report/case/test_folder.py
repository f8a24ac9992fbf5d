"""A case study as a folder: Markdown with pictures, the JSON of all numbers, graphs and labels."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from depass_sae.errors import UserError
from depass_sae.graph.export import read_graph
from depass_sae.report.case.folder import case_markdown
from depass_sae.report.case.study import Study
from depass_sae.view.markdown import escaped
from depass_sae.view.words import signed

from .sample import HARM, firing, made, study

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")  # random SAEs fit nothing


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("case") / "not" / "there yet"
    study().write(made)
    return made


def test_the_folder_has_the_page_the_markdown_the_numbers_graphs_labels_and_pictures(folder: Path):
    names = {path.name for path in folder.iterdir()}
    assert {"index.html", "README.md", "case.json", "labels.json"} <= names
    for finding in study().findings:
        assert {f"graph-{finding.slug}.json", f"graph-{finding.slug}.png", f"heads-{finding.slug}.png"} <= names
    pictures = [name for name in names if name.endswith(".png")]
    assert len(pictures) == len(study().features) + 3 * len(study().findings)  # strips; heads, their tokens, graphs
    assert names == {path.name for path in study().write(folder)}


def test_the_json_is_what_to_dict_returns(folder: Path):
    assert json.loads((folder / "case.json").read_text()) == study().to_dict()


def test_the_graphs_are_read_back(folder: Path):
    for finding in study().findings:
        assert finding.graph is not None
        assert set(read_graph(folder / f"graph-{finding.slug}.json")) == set(finding.graph)


def test_every_link_of_the_markdown_is_there(folder: Path):
    links = re.findall(r"\]\(([^)]+)\)", (folder / "README.md").read_text())
    assert links
    assert all((folder / link).is_file() for link in links if not link.startswith("http"))


def test_the_markdown_s_table_has_the_rows_of_the_document():
    text = case_markdown(study())
    for feature in study().to_dict()["features"]:
        for finding in feature["findings"]:
            table = finding["table"]
            assert f"| **pre-activation** | **{signed(table['pre_activation'])}** |" in text
            for source in table["sources"]:
                assert f"({source['pos']}) | {signed(source['value'])} |" in text


def test_the_markdown_has_the_sections_and_words_of_the_page_in_its_order():
    text, page = case_markdown(study()), html.unescape(re.sub(r"<[^>]+>", "", study().to_html()))
    headings = re.findall(r"^#{3} (.+)$", text, re.M)
    assert headings[:2] == ["Where it fires", "Which tokens"]
    where = [page.index(heading, page.index("The SAE at")) for heading in headings[:5]]
    assert where == sorted(where)
    for finding in study().findings:
        assert escaped(finding.to_dict()["answer"]) in text


def test_every_row_of_a_table_has_as_many_cells_as_its_heading():
    for block in case_markdown(study()).split("\n\n"):
        if block.startswith("|"):
            counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(counts) == 1


def test_the_command_stands_in_a_block_that_it_cannot_end():
    asked = Study(prompt="a\n```\n<b>", features=["1/2"])
    text = case_markdown(replace(study(), asked=asked))
    assert f"````sh\n{asked.command(labelled=True)}\n````" in text


def test_hostile_texts_are_no_html_in_the_markdown():
    text = re.sub(r"```.*?```", "", case_markdown(study()), flags=re.S)
    assert "<" not in text
    assert escaped(HARM) in text


def test_the_same_study_written_twice_gives_the_same_bytes(tmp_path: Path):
    features = (firing(2, 1)[0],)
    for name in ("one", "other"):
        made(features, {"1/1": "a label"}, ablate=2, max_nodes=14, verify=2).write(tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^cannot write .*file: it is no folder$"):
        study().write(tmp_path / "file")


def test_a_study_that_cannot_be_written_whole_leaves_nothing(tmp_path: Path):
    (tmp_path / "old" / "case.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^cannot write .*case\.json: Is a directory$"):
        study().write(tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["case.json"]
