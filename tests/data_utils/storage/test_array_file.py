"""Arrays in a file: what is written comes back, mapped; what is damaged or made from something else does not."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from data_utils.errors import DataError
from data_utils.storage.array_file import ALIGNMENT, map_arrays, write_arrays

ARRAYS = {
    "numbers": np.arange(1000, dtype=np.uint32),
    "none": np.zeros(0, dtype=np.float32),
    "parts": np.array([0.5, -1, np.nan], dtype=np.float32),
    "bytes": np.frombuffer("aé".encode(), np.uint8),
}
MADE_FROM = {"size": 7, "mtime_ns": 2**60 + 1, "kind": "x"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_arrays(tmp_path / "file", MADE_FROM, ARRAYS)
    return tmp_path / "file"


def test_what_is_written_comes_back_in_place_and_cannot_be_changed(path: Path) -> None:
    found = map_arrays(path, MADE_FROM)
    assert found is not None and list(found) == list(ARRAYS)
    for name, values in ARRAYS.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)
        assert found[name].ctypes.data % ALIGNMENT == 0
        assert not found[name].flags.writeable and not found[name].flags.owndata


def test_arrays_made_from_something_else_are_not_taken(path: Path) -> None:
    for other in ({**MADE_FROM, "size": 8}, {"size": 7}, {}):
        assert map_arrays(path, other) is None
    assert map_arrays(path.with_name("nothing"), MADE_FROM) is None
    assert map_arrays(path.parent, MADE_FROM) is None


def test_no_byte_may_differ_or_lack(path: Path) -> None:
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert map_arrays(path, MADE_FROM) is None, position
        path.write_bytes(whole[:position])
        assert map_arrays(path, MADE_FROM) is None, position
    path.write_bytes(whole + b"\0")
    assert map_arrays(path, MADE_FROM) is None
    path.write_bytes(whole)
    assert map_arrays(path, MADE_FROM) is not None


def test_a_file_replaced_while_it_is_mapped_stays_what_it_was(path: Path) -> None:
    found = map_arrays(path, MADE_FROM)
    write_arrays(path, MADE_FROM, {"numbers": np.zeros(3, np.uint8)})
    assert found is not None and found["numbers"].sum() == 999 * 500
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder" / "x").mkdir(parents=True)
    with pytest.raises(DataError, match="folder: cannot be written"):
        write_arrays(tmp_path / "folder", MADE_FROM, ARRAYS)
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 5000,
        b"[]",
        b'{"made_from": {}, "arrays": []}',
        b'{"made_from": {}, "arrays": {"a": ["|u1", 1e30]}}',
        b'{"made_from": {}, "arrays": {"a": ["|O", 1]}}',
        b'{"made_from": {}, "arrays": {"a": ["|u1", 9999999999999999999999]}}',
    ],
)
def test_a_header_that_fits_its_checksum_alone_is_not_taken(tmp_path: Path, header: bytes) -> None:
    content = header + b"\n" + bytes(64)
    (tmp_path / "file").write_bytes(b"%08x\n" % zlib.crc32(content) + content)
    assert map_arrays(tmp_path / "file", {}) is None
