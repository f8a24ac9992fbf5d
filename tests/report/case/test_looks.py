"""The page: every number on it is one of the document's, texts are inert, the same study gives the same bytes."""

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from depass_sae.view.words import signed

from .sample import HARM, firing, made, study

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")  # random SAEs fit nothing


class Page(HTMLParser):
    """The elements with a number, every attribute, and all text that is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self._open: tuple[str, str] | None = None
        self._hidden = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = {key: value or "" for key, value in attrs}
        self.attributes += [(tag, key, value) for key, value in found.items()]
        if tag == "data" and "data-at" in found:
            self._open = (found["data-at"], found["value"])
        if tag in ("style", "script"):
            self._hidden = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self._hidden:
            self._hidden = ""

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        if self._open is not None:
            self.numbers.append((*self._open, data))
            self._open = None
        self.text.append(data)


@pytest.fixture(scope="module")
def page() -> Page:
    found = Page()
    found.feed(study().to_html())
    return found


def value_at(document: Any, pointer: str) -> Any:
    for step in pointer.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        document = document[int(step)] if isinstance(document, list) else document[step]
    return document


def test_every_number_on_the_page_is_the_one_in_the_json(page: Page):
    document = json.loads(json.dumps(study().to_dict()))
    assert len(page.numbers) > 200
    for pointer, value, shown in page.numbers:
        expected = value_at(document, pointer)
        assert json.loads(value) == expected
        number = float(shown.rstrip(" %").replace("\u2212", "-").replace(",", ""))
        number = number / 100 if shown.endswith("%") else number
        assert number == pytest.approx(expected, abs=0.0051, rel=0.06)


def test_every_number_of_the_tables_and_the_maps_is_on_the_page(page: Page):
    told = {pointer for pointer, *_ in page.numbers}
    for i, feature in enumerate(study().to_dict()["features"]):
        for j, finding in enumerate(feature["findings"]):
            at = f"/features/{i}/findings/{j}"
            (tokens,), (heads,) = finding["tokens"]["targets"], finding["heads"]["targets"]
            ranked = sorted(range(1, tokens["pos"] + 1), key=lambda k: -abs(tokens["contributions"][k]["value"]))
            for k in (0, *ranked[:8]):  # position 0 is special, and stands apart
                assert f"{at}/tokens/targets/0/contributions/{k}/value" in told
            assert f"{at}/tokens/targets/0/pre_activation" in told
            for k in range(len(heads["heads"])):
                assert f"{at}/heads/targets/0/heads/{k}/value" in told
            largest = max(range(len(heads["heads"])), key=lambda k: abs(heads["heads"][k]["value"]))
            for pos in range(tokens["pos"] + 1):
                assert f"{at}/heads/targets/0/heads/{largest}/by_token/{pos}/value" in told


def test_a_head_s_line_has_its_contribution_and_the_sources_that_most_of_it_came_from(page: Page):
    lines = [value for _, key, value in page.attributes if key == "title"]
    for head in study().findings[0].to_dict()["heads"]["targets"][0]["heads"]:
        effect = f"effect {signed(head['effect'])}"
        begin = f"L{head['layer']}H{head['head']}: {signed(head['value'])}, {effect}, of which from "
        (line,) = {line for line in lines if line.startswith(begin)}
        largest = max(head["by_token"], key=lambda source: abs(source["value"]))
        assert f"({largest['pos']}) {signed(largest['value'])}" in line


def test_answers_and_points_stand_on_the_page_before_all_else(page: Page):
    text = "".join(page.text)
    for finding in study().findings:
        document = finding.to_dict()
        assert text.index(document["answer"]) < text.index("Where it fires", text.index("How it was made") + 20)
        assert all(point in text for point in document["points"])


def test_a_finding_is_told_in_one_line_and_a_few_points():
    for finding in study().findings:
        document = finding.to_dict()
        assert len(document["answer"]) < 160
        assert 3 <= len(document["points"]) <= 8
        assert document["sentence"] == ". ".join([document["answer"], *document["points"]]) + "."


def test_the_feature_is_named_in_the_title():
    done = made((firing(2, 1)[0],), {firing(2, 1)[0].partition("@")[0]: "a meaning"}, ablate=0, verify=0, title=None)
    heading = re.search("<h1>(.*?)</h1>", done.to_html())
    assert heading is not None
    assert done.features[0].name in heading[1]
    assert "a meaning" in heading[1]


def test_hostile_texts_make_no_elements(page: Page):
    assert "img" not in page.tags
    assert page.tags.count("script") == 1
    assert HARM in "".join(page.text)
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]


def test_nothing_is_loaded_from_elsewhere_and_no_style_is_inline(page: Page):
    assert not [v for tag, key, v in page.attributes if key in ("src", "action") and tag != "iframe"]
    links = [v for tag, key, v in page.attributes if tag == "link" and key == "href"]
    assert links == ["data:,"]
    assert not [key for _, key, _ in page.attributes if key == "style"]


def test_every_link_within_the_page_leads_somewhere(page: Page):
    ids = {value for _, key, value in page.attributes if key == "id"}
    inside = [v[1:] for tag, key, v in page.attributes if tag == "a" and key == "href" and v.startswith("#")]
    assert inside
    assert set(inside) <= ids


def test_ids_are_not_given_twice(page: Page):
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))


def test_the_policy_allows_the_page_s_and_the_graphs_style_and_script_by_their_hashes_alone(page: Page):
    policy = next(v for tag, key, v in page.attributes if tag == "meta" and key == "content" and "default-src" in v)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert re.search(r"script-src 'sha256-[^;]+' 'sha256-", policy)


def test_the_same_study_made_twice_gives_the_same_page():
    features = (firing(2, 1)[0],)
    one, other = (made(features, ablate=2, max_nodes=14, verify=2) for _ in range(2))
    assert one is not other
    assert one.to_html() == other.to_html()


def test_a_study_without_replacements_ledger_and_graph_has_a_page_too():
    html = made((firing(2, 1)[0],), ablate=0, rule="relu").to_html()
    assert "lost when replaced" not in html
    assert "<iframe" not in html
    assert "A graph takes the rules" in html


def test_a_notebook_shows_the_page_s_blocks_without_a_script():
    shown = Page()
    shown.feed(study()._repr_html_())
    assert shown.tags.count("iframe") == sum(finding.graph is not None for finding in study().findings)
    assert "script" not in shown.tags
    assert "".join(shown.text).count(study().findings[0].to_dict()["answer"]) == 1


def test_a_terminal_shows_the_same_blocks():
    text = str(study().table(3))
    for words in ("What was found", "Which tokens", "Through which heads", "The feature’s card", "How it was made"):
        assert words in text
    assert study().findings[0].to_dict()["answer"] in " ".join(text.split())
