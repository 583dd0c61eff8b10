"""Inputs that are nearly right: valid content with a few changes, of its bytes, its lines and fields, or its values."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

# Characters that are line ends to some, or no characters to others, each by a name that a table can show.
CHARACTERS = {
    "next line": "\x85",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "vertical tab": "\x0b",
    "form feed": "\x0c",
    "file separator": "\x1c",
    "carriage return": "\r",
    "byte order mark": "\ufeff",
    "right-to-left override": "\u202e",
    "right-to-left text": "\u05e9\u05dc\u05d5\u05dd",
    "NUL": "\0",
    "escape": "\x1b[31m",
    "no-break space": "\xa0",
    "unassigned": "\u0378",
    "noncharacter": "\uffff",
    "last code point": "\U0010ffff",
    "combining marks": "e\u0301\u0323",
    "family of emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
}
BYTES = (
    *(character.encode() for character in CHARACTERS.values()),
    b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", b"\x80", b"\r\n", b"\n", b"\n\n", b"\t", b"\t\t", b'"', b"'", b",", b":",
    b"\\ud800", b"\\u0000", b"\\udc00\\ud800", b"9" * 400, b"9" * 5000, b"1e400", b"NaN", b"-Infinity", b"-1", b"0.5",
    b"[" * 70, b"{" * 70, b'{"a":' * 1200, b"[" * 1200, b"]", b"}", b"[]", b"{}", b"null", b"true", b"../../x", b"*a",
    b"&a ", b"<<: ", b"!!python/object:os.system ", b"!!timestamp 2001-13-45", b"1_000", "\uff11".encode(), b"- ", b"# ",
)  # fmt: skip
DEEP: list[Any] = []
for _ in range(70):
    DEEP = [DEEP]
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 256, 2**31, 2**32, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0, 1e300,
    float("inf"), float("nan"), "", " ", "x", "0", "1", "-1", "[1]", "['a']", "\ud800", "a\ud83d", "../../../x", "x" * 5000,
    *CHARACTERS.values(), "a\tb\nc", [], {}, [[]], [None], [0], [1, 0], [-1], ["a"], [0.5], [True], [[0, 1]], [None, [0, 1]],
    {"a": 1}, {"text": 1}, {"text": ["a"]}, DEEP, [0] * 600,
)  # fmt: skip
PLACES = st.integers(0, 2**20)
CUT, DROP, REPEAT, INSERT, REPLACE, FLIP, DROP_LINE, REPEAT_LINE, REPLACE_FIELD, DROP_FIELD, ADD_FIELD = range(11)
CHANGES = st.tuples(st.integers(CUT, ADD_FIELD), PLACES, st.integers(0, len(BYTES) - 1))


def changed_bytes(content: bytes, change: tuple[int, int, int]) -> bytes:
    """One change; what it is and where is given by numbers, which any content can take."""
    kind, place, number = change
    what = BYTES[number]
    at = place % (len(content) + 1)
    if kind <= FLIP:
        size = 1 + number % 20
        return {
            CUT: content[:at],
            DROP: content[:at] + content[at + size :],
            REPEAT: content[: at + size] + content[at:],
            INSERT: content[:at] + what + content[at:],
            REPLACE: content[:at] + what + content[at + len(what) :],
            FLIP: content[:at] + bytes(byte ^ (1 << number % 8) for byte in content[at : at + 1]) + content[at + 1 :],
        }[kind]
    lines = content.split(b"\n")
    row = place % len(lines)
    if kind == DROP_LINE:
        del lines[row]
    elif kind == REPEAT_LINE:
        lines.insert(row, lines[row])
    else:
        fields = lines[row].split(b"\t")
        column = number % len(fields)
        if kind == DROP_FIELD:
            del fields[column]
        elif kind == ADD_FIELD:
            fields.insert(column, what)
        else:
            fields[column] = what
        lines[row] = b"\t".join(fields)
    return b"\n".join(lines)


@st.composite
def texts(draw: st.DrawFn, seeds: Sequence[bytes], most: int = 3) -> bytes:
    """One of the seeds with some changes of its bytes, lines and fields."""
    content = seeds[draw(st.integers(0, len(seeds) - 1))]
    for change in draw(st.lists(CHANGES, max_size=most)):
        content = changed_bytes(content, change)
    return content


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """Each place below a value of JSON: the object or list, and the key or index there."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        inside = waiting.pop()
        keys = range(len(inside)) if isinstance(inside, list) else list(inside)
        for key in keys:
            found.append((inside, key))
            if isinstance(inside[key], list | dict):
                waiting.append(inside[key])
    return found


def another(number: int) -> Any:
    value = VALUES[number]
    return copy.deepcopy(value) if isinstance(value, list | dict) else value


def changed_value(value: Any, place: int, number: int, kind: int) -> Any:
    """The value of JSON with one change: another value at a place (mostly), a place less, or a key more."""
    places = places_in(value)
    if not places:
        return another(number)
    inside, key = places[place % len(places)]
    if kind == 0:
        del inside[key]
    elif kind == 1 and isinstance(inside, dict):
        inside["extra"] = another(number)
    elif kind == 2 and isinstance(inside, list):
        inside.append(another(number))
    else:
        inside[key] = another(number)
    return value


VALUE_CHANGES = st.tuples(PLACES, st.integers(0, len(VALUES) - 1), st.integers(0, 9))


@st.composite
def values(draw: st.DrawFn, seeds: Sequence[Any], most: int = 3) -> Any:
    """One of the seeds with some changes of what it holds."""
    value = copy.deepcopy(seeds[draw(st.integers(0, len(seeds) - 1))])
    for place, number, kind in draw(st.lists(VALUE_CHANGES, max_size=most)):
        value = changed_value(value, place, number, kind)
    return value


def as_json(value: Any, plain: bool) -> bytes:
    """JSON with every character as an escape, or as it is; half a pair is then the bytes that UTF-8 does not have."""
    return json.dumps(value, ensure_ascii=plain).encode("utf-8", "surrogatepass")


@st.composite
def json_texts(draw: st.DrawFn, seeds: Sequence[Any]) -> bytes:
    """A JSON text of changed values, of changed bytes, or of both."""
    content = as_json(draw(values(seeds, most=2)), draw(st.booleans()))
    for change in draw(st.lists(CHANGES, max_size=1)):
        content = changed_bytes(content, change)
    return content


@st.composite
def json_lines(draw: st.DrawFn, seeds: Sequence[Any]) -> bytes:
    """JSON lines, up to four, of which one or two are changed."""
    rows = [seeds[number] for number in draw(st.lists(st.integers(0, len(seeds) - 1), max_size=2))]
    lines = [json.dumps(row).encode() for row in rows]
    lines.insert(draw(st.integers(0, len(lines))), as_json(draw(values(seeds, most=2)), draw(st.booleans())))
    content = b"\n".join(lines) + b"\n"
    for change in draw(st.lists(CHANGES, max_size=1)):
        content = changed_bytes(content, change)
    return content
