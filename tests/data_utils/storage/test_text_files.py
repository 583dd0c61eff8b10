"""Lines, texts and JSON: what is well formed comes as it is, all else is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_utils.errors import DataError
from data_utils.storage import text_files
from data_utils.storage.text_files import read_json_lines, read_lines, read_text, write_lines


def write(folder: Path, content: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "found the key 'a' twice"),
        ('{"a": ' + "[" * 70 + "]" * 70 + "}", "nested too deeply; accepted: 64"),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "an integer of too many digits"),
        ('{"a": "\\ud800"}', r"half a surrogate pair"),
        ('{"a": "b\0"}', "found NUL at byte 9"),
    ],
    ids=["key twice", "deep", "very deep", "digits", "half pair", "NUL"],
)
def test_json_that_python_would_read_otherwise_is_refused_by_line(tmp_path: Path, second: str, words: str):
    path = write(tmp_path, ("{}\n" + second + "\n").encode())
    with pytest.raises(DataError, match=words) as caught:
        list(read_json_lines(path))
    assert str(caught.value).startswith(f"{path}, line 2: ")


def test_brackets_in_texts_are_no_depth(tmp_path: Path):
    line = {"a": "[" * 500, "b": [[[0]]] * 100, "c": "{" * 70}
    assert list(read_json_lines(write(tmp_path, json.dumps(line).encode()))) == [(1, line)]


def test_what_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_files, "LONGEST_LINE", 10)
    monkeypatch.setattr(text_files, "LARGEST_FILE", 20)
    assert [line for _, line in read_lines(write(tmp_path, b"123456789\n123456789\n"))] == ["123456789"] * 2
    with pytest.raises(DataError, match=r"file, line 2: is longer than 10 bytes"):
        list(read_lines(write(tmp_path, b"1\n1234567890\n")))
    with pytest.raises(DataError, match=r"file: holds 21 bytes; accepted: at most 20"):
        list(read_lines(write(tmp_path, b"1\n" * 10 + b"1")))
    with pytest.raises(DataError, match=r"file: holds 6 bytes; accepted: at most 5"):
        read_text(write(tmp_path, b"123456"), largest=5)


def test_a_first_line_that_begins_with_a_byte_order_mark_is_written_without(tmp_path: Path):
    """It would be read without."""
    write_lines(tmp_path / "file", ["\ufeff0\ta", "\ufeff1\tb"])
    assert [line for _, line in read_lines(tmp_path / "file")] == ["0\ta", "\ufeff1\tb"]
    assert (tmp_path / "file").read_bytes().startswith(b"0")
