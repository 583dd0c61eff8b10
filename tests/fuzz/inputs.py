"""Inputs that are nearly right: valid content with a few changes, of its bytes, its lines and fields, or its values."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import note
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
    b"&a ", b"<<: ", b"!!python/object:os.system ", b"!!timestamp 2001-13-45", b"1_000", "\uff11".encode(), b"- ",
    b"# ",
)  # fmt: skip
DEEP: list[Any] = []
for _ in range(70):
    DEEP = [DEEP]
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 256, 2**31, 2**32, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0, 1e300,
    float("inf"), float("nan"), "", " ", "x", "0", "1", "-1", "[1]", "['a']", "\ud800", "a\ud83d", "../../../x",
    "x" * 5000, *CHARACTERS.values(), "a\tb\nc", [], {}, [[]], [None], [0], [1, 0], [-1], ["a"], [0.5], [True],
    [[0, 1]], [None, [0, 1]], {"a": 1}, {"text": 1}, {"text": ["a"]}, DEEP, [0] * 600,
)  # fmt: skip
CUT, DROP, REPEAT, INSERT, REPLACE, FLIP, DROP_LINE, REPEAT_LINE, REPLACE_FIELD, DROP_FIELD, ADD_FIELD = range(11)

# A single draw an input is fast, and bytes that become zeros make it simpler.
DRAWN = st.binary(min_size=32, max_size=32)


class Choices:
    """Choices by drawn bytes, two each; when there are no more, always the first.

    Args:
        drawn: of `DRAWN`.
    """

    def __init__(self, drawn: bytes):
        self.drawn = drawn
        self.used = 0

    def below(self, count: int) -> int:
        part = self.drawn[self.used : self.used + 2]
        self.used += 2
        return int.from_bytes(part, "big") % count

    def of(self, options: Sequence[Any]) -> Any:
        return options[self.below(len(options))]

    def text(self, seeds: Sequence[bytes], most: int = 3) -> bytes:
        """One of the seeds with some changes of its bytes, lines and fields."""
        content = self.of(seeds)
        for _ in range(self.below(most + 1)):
            content = changed_bytes(content, self)
        note(repr(content))
        return content

    def value(self, seeds: Sequence[Any]) -> Any:
        """One of the seeds with up to two changes of what it holds."""
        value = copy.deepcopy(self.of(seeds))
        for _ in range(self.below(3)):
            value = changed_value(value, self)
        return value

    def json(self, seeds: Sequence[Any]) -> bytes:
        """A JSON text of changed values, of changed bytes, or of both; half a pair as an escape, or as bytes that UTF-8
        does not have."""
        content = json.dumps(self.value(seeds), ensure_ascii=self.below(2) == 0).encode("utf-8", "surrogatepass")
        return self.text([content], most=1)

    def json_lines(self, seeds: Sequence[Any]) -> bytes:
        """Up to three lines, one of them changed."""
        lines = [json.dumps(self.of(seeds)).encode() for _ in range(self.below(3))]
        lines.insert(self.below(len(lines) + 1), self.json(seeds))
        return self.text([b"\n".join(lines) + b"\n"], most=1)


def changed_bytes(content: bytes, choices: Choices) -> bytes:
    """One change: which, where and with what."""
    kind, what = choices.below(ADD_FIELD + 1), choices.of(BYTES)
    if kind <= FLIP:
        at, size = choices.below(len(content) + 1), 1 + choices.below(20)
        if kind == CUT:
            return content[:at]
        if kind == DROP:
            return content[:at] + content[at + size :]
        if kind == REPEAT:
            return content[: at + size] + content[at:]
        if kind == FLIP:
            return content[:at] + bytes(byte ^ (1 << size % 8) for byte in content[at : at + 1]) + content[at + 1 :]
        return content[:at] + what + content[at + (len(what) if kind == REPLACE else 0) :]
    lines = content.split(b"\n")
    row = choices.below(len(lines))
    if kind == DROP_LINE:
        del lines[row]
    elif kind == REPEAT_LINE:
        lines.insert(row, lines[row])
    else:
        fields = lines[row].split(b"\t")
        column = choices.below(len(fields))
        fields[column : column + (kind != ADD_FIELD)] = [] if kind == DROP_FIELD else [what]
        lines[row] = b"\t".join(fields)
    return b"\n".join(lines)


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """Each place below a value of JSON: the object or list, and the key or index there."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        inside = waiting.pop()
        for key in range(len(inside)) if isinstance(inside, list) else list(inside):
            found.append((inside, key))
            if isinstance(inside[key], list | dict):
                waiting.append(inside[key])
    return found


def changed_value(value: Any, choices: Choices) -> Any:
    """The value of JSON with one change: another value at a place (mostly), a place less, or a place more."""
    other, kind = copy.deepcopy(choices.of(VALUES)), choices.below(10)
    places = places_in(value) if isinstance(value, list | dict) else []
    if not places:
        return other
    inside, key = choices.of(places)
    if kind == 0:
        del inside[key]
    elif kind == 1 and isinstance(inside, dict):
        inside["extra"] = other
    elif kind == 2 and isinstance(inside, list):
        inside.append(other)
    else:
        inside[key] = other
    return value
