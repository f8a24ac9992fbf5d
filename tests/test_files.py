"""Files that are whole or not there."""

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from depass_sae.errors import UserError
from depass_sae.files import check_place, parse_json, same_place, whole_file, whole_folder, write_files, write_text
from depass_sae.graph.export import write_graph
from depass_sae.texts import visible

from .graph.sample import sample_graph


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


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o751])
def test_what_is_replaced_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    (tmp_path / "g.json").touch()
    (tmp_path / "g.json").chmod(mode)
    write_text(tmp_path / "g.json", "new")
    assert stat.S_IMODE((tmp_path / "g.json").stat().st_mode) == mode


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_a_link_and_what_it_leads_to_is_written(tmp_path: Path, there: bool) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "g.json", tmp_path / "link.json"
    if there:
        target.write_text("old")
    link.symlink_to(Path("elsewhere") / "g.json")
    check_place(link)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "link.json"]
    assert os.listdir(tmp_path / "elsewhere") == ["g.json"]


def test_a_device_or_a_pipe_is_written_into_and_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    check_place(pipe)
    write_text(pipe, "through it")
    assert os.read(reader, 100) == b"through it"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_folders_that_are_missing_are_made_when_the_file_is_written_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "page.html"
    check_place(path)
    check_place(path.parent, folder=True)
    assert not list(tmp_path.iterdir())
    write_text(path, "text")
    assert path.read_text() == "text"


def test_of_several_files_that_cannot_all_be_written_none_is_and_no_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("old")
    (tmp_path / "folder").mkdir()
    contents = {tmp_path / "old.json": b"new", tmp_path / "new" / "a.json": b"", tmp_path / "folder": b""}
    with pytest.raises(UserError, match=r"^cannot write .*folder: Is a directory$"):
        write_files(contents)
    assert (tmp_path / "old.json").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["folder", "old.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON: Expecting value at line 1, column 1"),
        ("{", "not JSON: Expecting property name enclosed in double quotes at line 1, column 2"),
        ("{} {}", "not JSON: Extra data at line 1, column 4"),
        ('"\n"', "not JSON: Invalid control character at at line 1, column 2"),
        ("[" * 200_000, "lists and objects are nested too deeply (more than 100 levels)"),
        ('{"a":' * 200_000, "lists and objects are nested too deeply (more than 100 levels)"),
        ("[" * 900 + "]" * 900, "lists and objects are nested too deeply (more than 100 levels)"),
        ("9" * 5000, "it holds a number of too many digits"),
        ('{"a": 1, "a": 2}', 'it names "a" twice in one object'),
        ('[{"\\u202e": 1, "\\u202e": 2}]', 'it names "\\u202e" twice in one object'),
    ],
    ids=lambda value: value[:20],
)
def test_json_that_is_wrong_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_json(text)
    assert str(caught.value) == message


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_no_json_are_refused_where_numbers_count(number: str) -> None:
    assert isinstance(parse_json(f"[{number}]")[0], float)
    with pytest.raises(UserError, match=f"^not JSON: it holds {number}, and numbers must be finite$"):
        parse_json(f"[{number}]", finite=True)


def test_json_of_a_hundred_levels_is_read_and_where_names_may_stand_twice_the_last_counts() -> None:
    assert parse_json("[" * 100 + "]" * 100)
    assert parse_json('{"a": 1, "a": 2}', twice=True) == {"a": 2}


def test_two_ways_to_write_one_folder_are_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to("tiny")
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "./tiny", "tiny/", "link", str(tmp_path / "tiny"), "other/../tiny"):
        assert same_place("tiny", name)
    for name in ("other", "missing", "owner/tiny", "ti\0ny", ""):
        assert not same_place("tiny", name)
        assert same_place(name, name)


LONG = "n" * 256


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("folder", "[Ii].*a (folder|directory)"),
        ("file/page.html", "Not a directory"),
        ("file/a/b/page.html", "Not a directory"),
        (LONG, "File name too long"),
        (f"missing/{LONG}", "File name too long"),
        (f"{LONG}/page.html", "File name too long"),
        (f"missing/{LONG}/page.html", "File name too long"),
        ("loop", "Too many levels of symbolic links"),
        ("nu\0ll", "embedded null byte"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_one_line_before_the_work_and_after_it(
    tmp_path: Path, name: str, why: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.rglob("*"))
    for attempt in (lambda: check_place(tmp_path / name), lambda: write_text(tmp_path / name, "text")):
        with pytest.raises(UserError, match=f"^cannot write .*{visible(name)}: {why}") as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_name_may_be_as_long_as_the_system_lets_it(tmp_path: Path) -> None:
    check_place(tmp_path / LONG[:255])
    write_text(tmp_path / LONG[:255], "text")
    assert os.listdir(tmp_path) == [LONG[:255]]


@pytest.mark.parametrize("folder", [False, True])
def test_an_empty_name_is_told_of(folder: bool) -> None:
    with pytest.raises(UserError, match=f"^cannot write: the {'folder' if folder else 'file'} has no name$"):
        check_place("", folder=folder)


def test_where_a_folder_is_to_be_there_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^cannot write .*file: it is no folder$"):
        check_place(tmp_path / "file", folder=True)
    check_place(tmp_path, folder=True)


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder with a file and a graph, none of them to be written to."""
    folder = tmp_path / "closed"
    folder.mkdir()
    mounted = os.geteuid() == 0  # to whom permissions mean nothing
    if mounted and subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    (folder / "old.json").write_text("old")
    write_graph(sample_graph(), folder / "g.json")
    if mounted:
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    else:
        for path in folder.iterdir():
            path.chmod(0o444)
        folder.chmod(0o555)
    yield folder
    if mounted:
        subprocess.run(["umount", folder], check=True)
    folder.chmod(0o755)


@pytest.mark.parametrize("name", ["old.json", "new.json", "missing/new.json"])
def test_a_folder_that_is_read_only_is_one_line_before_the_work_and_after_it(closed: Path, name: str) -> None:
    for attempt in (lambda: check_place(closed / name), lambda: write_text(closed / name, "text")):
        with pytest.raises(UserError, match=f"^cannot write .*{name}: (Read-only file|Permission|it is write-prot)"):
            attempt()
    with pytest.raises(UserError, match=r"^cannot write .*: (Read-only file|Permission|it is write-prot)"):
        check_place(closed / "missing" / "folder", folder=True)
    assert sorted(os.listdir(closed)) == ["g.json", "old.json"]
    assert (closed / "old.json").read_text() == "old"


def test_what_is_written_piece_by_piece_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path, folder = tmp_path / "made" / "a.txt", tmp_path / "b" / "c"
    with whole_file(path) as file, whole_folder(folder) as inner:
        file.write(b"one")
        (inner / "x").write_bytes(b"two")
        assert not path.exists()
        assert not folder.exists()
        file.write(b"three")
    assert path.read_bytes() == b"onethree"
    assert (folder / "x").read_bytes() == b"two"
    path.chmod(0o600)
    with whole_file(path) as file:
        file.write(b"other")
    assert path.read_bytes() == b"other"
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.txt", "b", "c", "made", "x"]


def test_of_what_is_not_finished_nothing_is_left(tmp_path: Path) -> None:
    old = tmp_path / "old.txt"
    old.write_text("old")
    for error, expected in ((KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "disk full"), UserError)):
        for whole in (whole_file(tmp_path / "x" / "a.txt"), whole_folder(tmp_path / "x" / "y"), whole_file(old)):
            with pytest.raises(expected), whole:
                raise error
    assert [p.name for p in tmp_path.rglob("*")] == ["old.txt"]
    assert old.read_text() == "old"
    with pytest.raises(UserError, match="cannot write"), whole_file(tmp_path):
        pass
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "z").touch()
    with pytest.raises(UserError, match="cannot write"), whole_folder(tmp_path / "full"):
        pass
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["full", "old.txt", "z"]
