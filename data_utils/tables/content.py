"""What a file of a table holds, unpacked within limits and as text in its encoding."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_utils.errors import DataError, FlagError
from data_utils.storage.text_files import MARK
from data_utils.tables.table import LARGEST_TABLE

MARKS = {  # what begins a file of these encodings; the longer mark first, where one begins another
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
OTHER_ENCODING = "windows-1252"  # what files of older Windows programs are usually in


def suffix_of(path: Path) -> str:
    """The ending that says what format a file has, in lower case, without `.gz`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def stem_of(path: Path) -> str:
    """The name without the endings that say what format a file has."""
    return path.name[: path.name.lower().index(suffix_of(path))] if suffix_of(path) else path.stem


def read_content(path: Path) -> bytes:
    """The bytes of a file, unpacked if its name ends in `.gz`.

    Raises:
        DataError: missing, unreadable, too large, or not packed by gzip.
    """
    packed = path.name.lower().endswith(".gz")
    try:
        with open(path, "rb") as file:
            content = (gzip.GzipFile(fileobj=file) if packed else file).read(LARGEST_TABLE + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"is no whole gzip file ({error})", path) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path) from error
    if len(content) > LARGEST_TABLE:
        raise DataError(f"holds more than {LARGEST_TABLE} bytes, the most that a table may have", path)
    return content


def read_text(path: Path, encoding: str | None = None) -> tuple[str, str]:
    """The text of a file without its mark, and the encoding that it is in.

    A mark at the start (of UTF-8, UTF-16, UTF-32) says which; without a mark `encoding` does, which is UTF-8 if None.

    Raises:
        DataError: as `read_content`; bytes that are no text in the encoding, or NUL; names the line.
        FlagError: no such encoding.
    """
    content = read_content(path)
    marked = next((name for mark, name in MARKS.items() if content.startswith(mark)), None)
    name = marked or check_encoding(encoding)
    try:
        text = content.decode(name)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        at = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        found = f"found the byte {content[error.start]:#04x} at byte {at}, which is not {name.removesuffix('-sig')}"
        hint = f"; --encoding names another, such as {OTHER_ENCODING}" if encoding is None and marked is None else ""
        raise DataError(found + hint, path, line) from error
    text = text.removeprefix(MARK)
    if "\0" in text:
        at = text.index("\0")
        hint = "; for UTF-16 without its mark give --encoding utf-16-le" if encoding is None else ""
        byte = at - text.rfind("\n", 0, at)
        raise DataError(f"found NUL at byte {byte}; accepted is text{hint}", path, text.count("\n", 0, at) + 1)
    if "\n" not in text:
        text = text.replace("\r", "\n")  # the line ends of old Macintosh programs
    return text, name


def check_encoding(name: str | None) -> str:
    """An encoding's name as Python has it.

    Raises:
        FlagError: there is none of that name.
    """
    if name is None:
        return "utf-8"
    try:
        found = codecs.lookup(name)
        "".encode(found.name)  # not one of bytes to bytes, such as zip
    except (LookupError, ValueError) as error:
        raise FlagError(
            f"--encoding: found {name!r}, accepted: utf-8, utf-16, {OTHER_ENCODING} and other encodings of Python"
        ) from error
    return found.name


def lines_of(text: str) -> Iterator[str]:
    r"""The lines of a text with their ends; a line ends at "\n" alone."""
    return iter(io.StringIO(text, newline="\n"))


@contextmanager
def encodable(path: Path, encoding: str) -> Iterator[None]:
    """A character that an encoding lacks, as an error in one line.

    Raises:
        DataError: names the character.
    """
    try:
        yield
    except UnicodeEncodeError as error:
        raise DataError(
            f"cannot be written in {encoding}, which lacks {error.object[error.start]!r}; accepted: a name that ends "
            "in .jsonl, .parquet or .xlsx, or a table in UTF-8",
            path,
        ) from error
