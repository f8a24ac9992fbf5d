"""Files that are whole or not there."""

import os
from pathlib import Path

import pytest

from depass_sae.errors import UserError
from depass_sae.files import write_text


def test_a_file_is_written_as_utf_8(tmp_path: Path) -> None:
    write_text(tmp_path / "page.html", "Σ ≠ <b>\n")
    assert (tmp_path / "page.html").read_bytes() == "Σ ≠ <b>\n".encode()
    assert os.listdir(tmp_path) == ["page.html"]


def test_an_old_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old and longer")
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old and longer"
    assert path.read_text() == "new"


def test_a_text_that_cannot_be_encoded_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half of it \ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["page.html"]


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    write_text(tmp_path / "page.html", "")
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "page.html").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize(("name", "why"), [("missing/page.html", "No such file or directory"), ("folder", "directory")])
def test_a_place_that_cannot_be_written_to_is_said_in_one_line(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"^cannot write .*{name}: .*{why}") as caught:
        write_text(tmp_path / name, "text")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["folder"]
