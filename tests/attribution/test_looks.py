"""What answers look like in every medium: what their tables say, and token texts that would break a page or a line."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import depass_sae as ds
from depass_sae.texts import is_hidden
from depass_sae.view.blocks import HeatMap, Note, Strip, Table, Token
from depass_sae.view.words import error, number, place, shown, signed

from ..passes.models import D_MODEL
from .tiny import HOSTILE, TEXT, handle, random_sae

HARMLESS = [shown(text) for text in HOSTILE]
SHADED = re.compile(r'class="[^"]*(pos|neg) s[1-9]')
"""A cell or a token that is drawn in a colour."""


class Page(HTMLParser):
    """The tags and the visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def hostile(lm: ds.LM) -> list[ds.TokenAttribution]:
    """Answers at each of the hostile tokens, for a feature and for a hostile token's logit."""
    text = "a" + "".join(HOSTILE)
    features = [lm.attribute_tokens(text, "1/3", pos=pos) for pos in range(2, 2 + len(HOSTILE))]
    return [*features, *(lm.attribute_tokens(text, logit=token) for token in HOSTILE)]


@pytest.fixture(scope="module")
def att(lm: ds.LM) -> ds.TokenAttribution:
    return lm.attribute_tokens(TEXT, "1/3")


def only(answer: Any, kind: type, top: int | None = None) -> Any:
    (found,) = (block for block in answer.blocks(top) if isinstance(block, kind))
    return found


# ------------------------------------------------------------------------------------------------------- hostile texts


def test_hostile_tokens_are_plain_text_in_every_table(hostile: list[ds.TokenAttribution]) -> None:
    for answer in hostile:
        for text in (str(answer.table()), repr(answer)):
            assert not {char for char in text if is_hidden(char)} - {"\n"}
            lines = text.splitlines()
            for pos, harmless in enumerate(HARMLESS[: answer.target.pos - 1], start=2):
                assert any(f"{harmless} ({pos})" in line for line in lines), harmless
            assert f" at {shown(answer.target.token)} ({answer.target.pos})" in " ".join(lines)


def test_the_name_of_a_hostile_logit_is_plain_text(hostile: list[ds.TokenAttribution]) -> None:
    for token, answer in zip(HOSTILE, hostile[len(HOSTILE) :], strict=True):
        assert f"logit {token!r} at " in answer.table()


def test_hostile_tokens_are_plain_text_in_the_prompt(hostile: list[ds.TokenAttribution]) -> None:
    for answer in hostile:
        said = "<bos>a" + "".join(HARMLESS[: answer.target.pos - 1])
        assert said.replace(" ", "") in "".join(str(answer.table()).split())


def test_hostile_tokens_are_plain_text_in_html(hostile: list[ds.TokenAttribution]) -> None:
    for answer in hostile:
        for html in (answer._repr_html_(), answer.plot()._repr_html_()):
            page = Page(html)
            assert not {"script", "img", "b", "a"} & set(page.tags)
            assert not any(name.startswith("on") for name in page.attributes)
            assert "<script>alert(1)</script>" in page.text


def test_hostile_tokens_are_plain_text_in_features_and_contrasts(lm: ds.LM) -> None:
    text = "a" + "".join(HOSTILE)
    for answer, last in (
        (lm.features(text), len(HOSTILE)),
        (lm.contrast(text, text + "a", logit=HOSTILE[0], pos=4), 3),
    ):
        page = Page(answer._repr_html_())
        assert "script" not in page.tags
        for said in (str(answer.table()), page.text):
            assert not {char for char in said if is_hidden(char)} - {"\n", "\t"}
        for pos, harmless in enumerate(HARMLESS[:last], start=2):
            assert f"{harmless} ({pos})" in page.text


# -------------------------------------------------------------------------------------------------------------- tokens


def test_an_answer_opens_with_what_gives_most_of_what_a_reader_can_change(lm: ds.LM) -> None:
    for pos in (4, 9, 20):
        att = lm.attribute_tokens(TEXT, "1/3", pos=pos, ablate=2)
        first = max(range(1, pos + 1), key=lambda i: abs(att.contributions[i].item()))
        note, value = att.blocks()[0], att.contributions[first].item()
        assert isinstance(note, Note)
        assert note.role == "answer"
        assert note.text.startswith(place(att.target.sources[first].text, first))
        assert f"of feature 1/3 at {place(att.target.token, pos)}" in note.text
        share = value / att.pre_activation
        assert (f"gives {100 * share:.0f} %" in note.text) == (att.pre_activation > 0 and share > 0.005)
        assert note.text.endswith(f"; replaced: {signed(-att.target.measured.mean[first], 1)}")
        assert ("which does not fire" in note.text) == (att.activation == 0)


def test_a_table_has_all_sources_largest_first_and_what_they_sum_to(att: ds.TokenAttribution) -> None:
    table = only(att, Table)
    ranked = [row for row in table.rows if row.role == "ranked"]
    values = att.contributions.tolist()
    assert [row.cells[0] for row in ranked] == [
        Token(att.target.sources[i].text, i) for i in sorted(range(1, len(values)), key=lambda i: -abs(values[i]))
    ]
    assert [row.cells[1] for row in ranked] == sorted(values[1:], key=abs, reverse=True)
    assert [row.pos for row in ranked] == [row.cells[0].pos for row in ranked]
    *summed, total = [row.cells[1] for row in table.rows]
    assert total == att.pre_activation
    assert sum(summed) == pytest.approx(total, abs=1e-5)
    assert [row.role for row in table.rows if row.role != "ranked"] == ["aside"] * 3 + ["total"]


def test_special_tokens_and_the_constant_stand_apart_below_the_ranking(att: ds.TokenAttribution) -> None:
    aside = [row.cells[0] for row in only(att, Table).rows if row.role == "aside"]
    assert aside == [Token(att.tokens[0], 0), "bias", "constant"]
    assert att.to_dict()["special"] == [0]


def test_a_short_table_sums_what_it_leaves_out(lm: ds.LM) -> None:
    att = lm.attribute_tokens(TEXT, "1/3", pos=20)
    others = sum(sorted(att.contributions.tolist()[1:], key=abs)[:17])
    (row,) = (row for row in only(att, Table, 3).rows if row.cells[0] == "17 others")
    assert row.cells[1] == pytest.approx(others)
    assert "others" not in str(att.table(top=20))


def test_a_table_says_by_which_rule_and_how_exactly(lm: ds.LM) -> None:
    for rule, said in (("softmax", "rule softmax, T = 0.1, by word"), ("half", "rule half, by word")):
        att = lm.attribute_tokens(TEXT, "1/3", rule=rule, by="word")
        text = " ".join(str(att.table()).split())
        assert said in text
        assert f"completeness error {error(att.completeness_error)}" in text
        assert f"activation {number(att.activation)}" in text


def test_there_is_a_table_for_every_target_and_a_line_for_each(lm: ds.LM) -> None:
    att = lm.attribute_tokens(TEXT, "1/3", pos="all")
    assert len(att.targets) > 1
    for target in att.targets:
        for text in (str(att.table()), att._repr_html_(), att.plot()):
            assert f"feature 1/3 at {place(target.token, target.pos)}" in text
    answer = att.blocks()[0]
    assert len(answer.points) + 1 >= min(5, len(att.targets))


def test_the_strip_has_a_value_for_every_source_and_the_target_underlined(att: ds.TokenAttribution) -> None:
    strip = only(att, Strip)
    assert [mark.value for mark in strip.marks] == att.contributions.tolist()
    assert [mark.pos for mark in strip.marks if mark.aimed] == [att.target.pos]


def test_by_depth_there_is_a_map_with_the_answer_on_top(lm: ds.LM) -> None:
    att = lm.attribute_tokens(TEXT, "1/3", by_depth=True)
    grown = only(att, HeatMap)
    assert grown.rows == ("1", "0", "embeddings")
    assert grown.values[0][: len(att.contributions)] == pytest.approx(att.contributions.tolist(), abs=1e-6)
    assert grown.totals[0] == pytest.approx(att.pre_activation, abs=1e-5)


# --------------------------------------------------------------------------------------------------------------- parts


def test_heads_are_a_map_with_layers_upwards_and_modules_one_of_two_columns(lm: ds.LM) -> None:
    heads, modules = lm.attribute_heads(TEXT, "1/3"), lm.attribute_modules(TEXT, "1/3")
    matrix = heads.contributions
    found = only(heads, HeatMap)
    assert found.rows == ("1", "0")
    assert torch.tensor(found.values, dtype=matrix.dtype).equal(matrix.flip(0))
    assert found.totals == pytest.approx(matrix.sum(1).flip(0).tolist())
    assert only(modules, HeatMap).columns == ("attn", "mlp")
    assert not [block for block in lm.attribute_neurons(TEXT, "1/3").blocks() if isinstance(block, HeatMap)]


def test_the_largest_parts_of_all_layers_are_ranked(lm: ds.LM) -> None:
    for attribute in (lm.attribute_heads, lm.attribute_modules, lm.attribute_neurons):
        found = attribute(TEXT, "1/3")
        values = sorted((v for row in found.target.rows for v in row.values.tolist()), key=abs, reverse=True)
        table = only(found, Table, 3)
        assert [row.cells[1] for row in table.rows] == values[:3]
        name = table.rows[0].cells[0]
        assert found.blocks()[0].text.startswith(f"{name} ")


def test_a_head_that_is_split_by_token_says_what_it_carries(lm: ds.LM) -> None:
    found = lm.attribute_heads(TEXT, "1/3", by_token=True)
    largest, ledger = (block for block in found.blocks() if isinstance(block, HeatMap))
    rows = {f"L{row.layer}H{i}": row for row in found.target.rows for i in range(len(row.values))}
    for name, values, total in zip(ledger.rows, ledger.values, ledger.totals, strict=True):
        shares = rows[name].by_token[int(name[3:])]
        assert values == pytest.approx(shares.tolist())
        assert sum(values) == pytest.approx(total, abs=1e-5)
    assert "of which from" in largest.notes(0, 0)


# ------------------------------------------------------------------------------------------------------- what is drawn


def test_the_largest_head_says_how_much_of_it_comes_from_its_first_token(lm: ds.LM) -> None:
    answer = lm.attribute_heads(TEXT, "1/3", by_token=True)
    head = max(answer.to_dict()["targets"][0]["heads"], key=lambda head: abs(head["value"]))
    first = max(head["by_token"], key=lambda source: abs(source["value"]))
    line = next(block.text for block in answer.blocks() if isinstance(block, Note) and block.role == "answer")
    assert f"{signed(first['value'])} of it from {place(first['token'], first['pos'])}:" in line


@pytest.mark.parametrize("question", ["attribute_tokens", "attribute_heads"])
def test_an_answer_opens_with_the_target_that_its_fields_are_of(lm: ds.LM, question: str) -> None:
    """Of a direction the largest is the strongest, and none that is further below zero."""
    for direction in (torch.ones(D_MODEL), -torch.ones(D_MODEL)):
        answer = getattr(lm, question)(TEXT, direction=direction, layer=1, pos="all")
        whole = [target.pre_activation for target in answer.targets]
        line = next(block.text for block in answer.blocks() if isinstance(block, Note) and block.role == "answer")
        assert answer.pre_activation == max(whole)
        assert f"direction at {place(answer.target.token, answer.target.pos)}" in line


def test_a_contrast_names_a_source_that_both_prompts_have_once(lm: ds.LM) -> None:
    answer = lm.contrast(TEXT, TEXT.replace("demand", "price"), "1/3", pos=4)
    line = next(block.text for block in answer.blocks() if isinstance(block, Note) and block.role == "answer")
    assert " of it from " in line
    assert "instead of" not in line


def test_where_even_the_largest_is_shown_as_0_nothing_is_drawn(lm: ds.LM) -> None:
    rows, w = torch.eye(D_MODEL), torch.randn(D_MODEL, generator=torch.Generator().manual_seed(0))

    def drawn(size: float) -> list[bool]:
        question: Any = {"direction": size * w, "layer": 1}
        answers = [
            lm.attribute_tokens(TEXT, **question),
            lm.attribute_heads(TEXT, by_token=True, **question),
            lm.attribute_subspace(TEXT, subspace=ds.Subspace([rows[:3], rows[3:]], 0), **question),
            lm.contrast(TEXT, TEXT + " apple", **question),
        ]
        return [*("█" in str(answer) for answer in answers), *(bool(SHADED.search(a.plot())) for a in answers[:2])]

    assert all(drawn(1.0))
    assert not any(drawn(1e-9))


# --------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", ["html", "json", "csv", "tsv", "tex", "png", "svg", "pdf"])
def test_every_answer_is_written_in_every_format(lm: ds.LM, tmp_path: Path, suffix: str) -> None:
    two = handle([random_sae(hook="0.resid_post"), random_sae()])
    for i, answer in enumerate(
        (
            lm.attribute_tokens(TEXT, "1/3"), lm.attribute_heads(TEXT, "1/3"), lm.attribute_neurons(TEXT, "1/3"),
            lm.features(TEXT), lm.attribute_attention(TEXT, 1, 2, 6, 4), lm.contrast(TEXT, TEXT, "1/3"),
            two.attribute_subspace(TEXT, "1/3", subspace=two.decoder_directions(["0/4"])),
            lm.importance([TEXT, "a marked apple"], "1/3"),
        )
    ):  # fmt: skip
        answer.write(tmp_path / f"{i}.{suffix}")
        assert (tmp_path / f"{i}.{suffix}").stat().st_size > 100
    assert len(os.listdir(tmp_path)) == 8


def test_a_page_names_the_feature_in_its_title(att: ds.TokenAttribution, tmp_path: Path) -> None:
    att.write(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<title>Which tokens drive feature 1/3?</title>" in page
    att.plot().save(tmp_path / "plot.html")
    assert (tmp_path / "plot.html").read_text(encoding="utf-8").startswith("<!doctype html>")
