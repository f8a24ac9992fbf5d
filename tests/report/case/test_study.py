"""A case study's YAML file: whatever is wrong in it is one line, in no time, with its place."""

from itertools import pairwise
from pathlib import Path

import pytest

from depass_sae.errors import UserError
from depass_sae.report.case.study import Study, read_study

GOOD = "prompt: a\nfeatures: [17/1]\n"


def chain(first: str, each: str) -> str:
    """Ten keys, each holding the one before it nine times: a few lines for three billion values."""
    names = "abcdefghij"
    lines = [each.format(name=b, inner=",".join([f"*{a}"] * 9)) for a, b in pairwise(names)]
    return "\n".join([f"a: &a {first}", *lines])


WRONG = {
    'seed: !!int ""': "this cannot be read as int at line 3, column 7",
    "seed: !!int banana": "this cannot be read as int at line 3, column 7",
    'temperature: !!float ""': "this cannot be read as float at line 3",
    "title: !!bool banana": "this cannot be read as bool at line 3",
    "title: !!timestamp banana": "this cannot be read as timestamp at line 3",
    "title: 2024-13-45": "this cannot be read as timestamp at line 3",
    "title: !!omap [a]": "expected a mapping of length 1",
    "title: !!seq a": "expected a sequence node",
    "title: !!str [a]": "expected a scalar node",
    "title: !!python/object/apply:os.system [true]": "could not determine a constructor",
    "seed: " + "9" * 5000: "this cannot be read as int at line 3",
    "seed: " + "9" * 30: "seed should be less than 18446744073709551616",
    "temperature: .inf": "temperature should be a finite number",
    "temperature: .nan": "temperature should be a finite number",
    "temperature: 0": "temperature should be greater than 0",
    "ablate: -1": "ablate should be greater than or equal to 0",
    "layer: [1.5]": "layer should be a valid integer",
    "title: yes": "title should be a valid string",
    "title: one\ntitle: two": "title is there twice at line 4, column 1",
    "labels: {17/1: a, 17/1: b}": "17/1 is there twice at line 3, column 19",
    "seeds: 1": "there is no key 'seeds'",
    "1: 2": "Keys should be strings",
    "a: &a [*a]": "not repeated by an alias; write it out at line 3, column 8",
    "a: *b": "found undefined alias 'b'",
    "title: a\n\tb: c": "found character '\\\\t'|mapping values are not allowed",
    "title: \x00": "unacceptable character #x0000",
    "? [a]\n: b": "found unhashable key",
    chain("[x]", "{name}: &{name} [{inner}]"): "not repeated by an alias",
    chain("{x: 1}", "{name}: &{name} {{<<: [{inner}]}}"): "not repeated by an alias",
}


@pytest.mark.parametrize("line", WRONG, ids=lambda line: line[:30])
def test_a_wrong_value_is_one_line_that_says_where(tmp_path: Path, line: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"{GOOD}{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"^cannot read .*study.yaml: .*({WRONG[line]})") as caught:
        read_study(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "a", "42", "--- a\n--- b", "[" * 20_000, "{a: " * 20_000, "- " * 20_000, "%YAML 9.9\n---\na", "&"],
)
def test_what_is_no_study_at_all_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(
        UserError, match=r"^cannot read .*study.yaml: (not YAML|a case study is a mapping|lists and obj)"
    ):
        read_study(path)


def test_a_name_for_a_text_and_a_merged_mapping_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("prompt: &said a\nfeatures: [17/1]\ntitle: *said\n<<: {top: 3}\n")
    assert read_study(path) == Study(prompt="a", features=["17/1"], title="a", top=3)
