"""Reading documents from files, and the location in error messages."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from fastgrow.errors import DataError
from fastgrow.training.data.documents import read_documents


def read(path: Path, text_field: str = "text", sample_by: str = "line") -> list[tuple[str, str]]:
    documents = read_documents(path, text_field=text_field, sample_by=sample_by)  # type: ignore[arg-type]
    return [(document.text, document.where) for document in documents]


def test_a_line_is_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo  \n\nжук 汉".encode())
    assert read(path) == [
        ("one", f"{path}:1"),
        ("two  ", f"{path}:2"),
        ("", f"{path}:3"),
        ("жук 汉", f"{path}:4"),
    ]


def test_a_paragraph_is_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\none\ntwo\n \n\nthree\n\nfour\nfive")
    assert read(path, sample_by="paragraph") == [
        ("one\ntwo", f"{path}:2"),
        ("three", f"{path}:6"),
        ("four\nfive", f"{path}:8"),
    ]


def test_a_file_is_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n")
    assert read(path, sample_by="document") == [("one\n\ntwo", f"{path}:1")]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(("before", "line"), [("жук", 1), ("жук\nab", 2)])
def test_invalid_utf8_names_file_line_and_byte_offset(
    tmp_path: Path, mark: bytes, before: str, line: int
) -> None:
    path = tmp_path / "broken.txt"
    start = mark + before.encode()
    path.write_bytes(start + b"\xff\n")
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message
    assert "0xff" in message
    assert f"offset {len(start)} (line {line}" in message


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "one\\ntwo", "id": 1}\n\n{"body": "three"}\n')
    assert read(path, "body") == [("one\ntwo", f"{path}:1"), ("three", f"{path}:3")]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"txt": "x"}', "the field 'text' is missing (fields: 'txt')"),
        ('{"text": 7}', "the field 'text' is int, expected a string"),
        ('{"text": null}', "the field 'text' is NoneType, expected a string"),
        ('["x"]', "expected an object with the field 'text', got list"),
        ('{"text": "x"', "not valid JSON"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert complaint in str(caught.value)


def write_parquet(path: Path, columns: dict[str, list[object]]) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"text {i}" for i in range(3000)]
    write_parquet(path, {"text": list(texts), "n": list(range(3000))})
    documents = read(path)
    assert [text for text, _ in documents] == texts
    assert documents[2500][1] == f"{path}, row 2500"


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, {"body": ["x"]})
    with pytest.raises(DataError, match=r"a\.parquet: no column 'text' \(columns: body\)"):
        read(path)
    write_parquet(path, {"text": ["x", None]})
    with pytest.raises(DataError, match="row 1: the field 'text' is NoneType"):
        read(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"a\.parquet: not a readable Parquet file"):
        read(path)


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path)


def test_json_escapes_and_plain_unicode_agree(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    texts = ["汉字 жук", 'a "quoted" \\ line']
    lines = [json.dumps({"text": text}, ensure_ascii=escape) for escape in (0, 1) for text in texts]
    path.write_text("\n".join(lines))
    assert [text for text, _ in read(path)] == texts * 2
