"""Atomic writes: after a failure, the old content is kept, and no temporary file is left."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from fastgrow import _files
from fastgrow.errors import CheckpointError


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_file_appears_only_when_finished(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with _files.atomic_file(path) as temporary:
        temporary.write_text("content")
        assert not path.exists()
    assert path.read_text() == "content"
    assert names(path.parent) == ["a.txt"]


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with _files.atomic_file(path) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def no_space() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def tensors_without_space() -> None:
    raise SafetensorError("Error while serializing: I/O error: … (os error 28)")


@pytest.mark.parametrize("fail", [no_space, tensors_without_space])
@pytest.mark.parametrize("inside", [False, True])
def test_a_full_disk_names_the_file(tmp_path: Path, fail: Callable[[], None], inside: bool) -> None:
    def write() -> None:
        with _files.atomic_folder(tmp_path / "model", owned=[]) as folder:
            if not inside:
                fail()
            with _files.atomic_file(folder / "part"):
                fail()

    with pytest.raises(OSError, match="No space left on device") as caught:
        write()
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "model")
    assert names(tmp_path) == []


def test_errors_of_other_files_and_kinds_are_unchanged(tmp_path: Path) -> None:
    for error in (FileNotFoundError(2, "No such file", "source.txt"), SafetensorError("too long")):
        with pytest.raises(type(error)) as caught, _files.atomic_file(tmp_path / "a.txt"):
            raise error
        assert caught.value is error


def test_finished_file_follows_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        _files.write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(previous)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for content in ("one", "two"):
        with _files.atomic_folder(path, owned=["a.txt", "b.txt"]) as temporary:
            (temporary / ("a.txt" if content == "one" else "b.txt")).write_text(content)
    assert names(path) == ["b.txt"]
    assert names(tmp_path) == ["model"]


def test_failed_folder_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with _files.atomic_folder(path, owned=["a.txt"]) as temporary:
        (temporary / "a.txt").write_text("old")

    def fail() -> None:
        with _files.atomic_folder(path, owned=["a.txt"]) as temporary:
            (temporary / "a.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_folder_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "home"
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")

    def attempt() -> None:
        with _files.atomic_folder(path, owned=["config.json"]) as temporary:
            (temporary / "config.json").write_text("{}")

    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        attempt()
    assert (path / "thesis.tex").read_text() == "years of work"
    assert names(tmp_path) == ["home"]


def test_folder_over_a_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_text("a file")
    with pytest.raises(FileExistsError, match="is a file"), _files.atomic_folder(path, owned=[]):
        pass
    assert path.read_text() == "a file"


KILLED_WHILE_REPLACING = """
import itertools, sys
from pathlib import Path
from fastgrow import _files
path = Path(sys.argv[1])
for i in itertools.count():
    with _files.atomic_folder(path, owned=["a.txt"]) as temporary:
        (temporary / "a.txt").write_text(str(i))
    if i == 0:
        print("ready", flush=True)
"""


def test_a_reader_always_finds_a_complete_folder(tmp_path: Path) -> None:
    path = tmp_path / "model"
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED_WHILE_REPLACING, str(path)], stdout=subprocess.PIPE
    )
    try:
        assert writer.stdout is not None
        writer.stdout.readline()
        changes, last = 0, 0
        while changes < 20:
            # stat raises if there is ever a moment without the folder.
            now = path.stat().st_ino
            changes += now != last
            last = now
            assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()
    assert (path / "a.txt").read_text().isdigit()


def test_json_errors_name_the_file(tmp_path: Path) -> None:
    broken = tmp_path / "config.json"
    broken.write_text('{"a": 1')
    for path in (broken, tmp_path / "absent.json"):
        with pytest.raises(CheckpointError, match=path.name):
            _files.read_json(path)


def test_leftovers_of_a_killed_writer_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".model.abcd_123.tmp").mkdir()
    (tmp_path / ".model.abcd_123.tmp" / "half.safetensors").write_text("half")
    (tmp_path / ".model.wxyz0000.tmp").write_text("half")
    kept = [".model.tmp", "model", ".models.abcd_123.tmp", ".model.mine.tmp", "model.abcd_123.tmp"]
    for name in kept:
        (tmp_path / name).write_text("the user's")
    _files.remove_leftovers(tmp_path / "model")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(kept)
