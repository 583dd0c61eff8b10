"""Flags declared as dataclass fields: parsing, help and checks come from the one declaration.

A field `epochs: int = flag(5, "passes over the data", at_least=1)` is the flag `--epochs`, the attribute `.epochs` and
the check of its value, wherever the value comes from: a command line, a checkpoint or a caller. Field types are str,
int, float, bool, tuple[str, ...], or one of these `| None`. A switch is given alone or with true or false.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, partial
from typing import Any, get_args, get_origin, get_type_hints

from data_utils.errors import FlagError, OneLineParser, nearest

TYPE_NAMES = {str: "text", int: "an integer", float: "a number", bool: "true or false", tuple: "names split by commas"}
TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class Flag:
    """What a flag accepts and means.

    Attributes:
        help: shown by `--help`, unless there is a notice.
        choices: the accepted values, where they can be counted.
        pattern, pattern_shown: texts that are accepted in addition to the choices, and their form in words.
        at_least, above, below: bounds of a number, the last two exclusive.
        notice: the message for a user who gives the flag although it has no effect here.
        const: the value of a switch that is given alone; False for a switch that turns something off.
        shown: the default in `--help`, if the field's own value does not say enough.
    """

    help: str
    choices: tuple[str | int, ...] = ()
    pattern: re.Pattern[str] | None = None
    pattern_shown: str = ""
    at_least: float | None = None
    above: float | None = None
    below: float | None = None
    notice: str = ""
    const: bool = True
    shown: str = ""

    @property
    def choices_shown(self) -> tuple[str, ...]:
        """What a flag with choices accepts, in words."""
        return (*map(str, self.choices), *filter(None, [self.pattern_shown]))


def flag(default: Any, help: str, **settings: Any) -> Any:
    """A dataclass field that is a flag; `settings` are the attributes of `Flag`."""
    return field(default=default, metadata={"flag": Flag(help, **settings)})


def flags_of(group: type) -> dict[str, Flag]:
    """The flags of a dataclass by name, in the order of their declaration."""
    return {item.name: item.metadata["flag"] for item in fields(group) if "flag" in item.metadata}


def truth(text: str) -> bool:
    """A switch's value, as argparse's `type`.

    Raises:
        FlagError: it is none.
    """
    try:
        return TRUTH[text.lower()]
    except KeyError:
        raise FlagError(f"found {text!r} for a switch, accepted: true or false") from None


class FlagParser(OneLineParser):
    """Returns only the flags that were given; an error about an unknown flag suggests the nearest name."""

    def __init__(self, **settings: Any):
        super().__init__(argument_default=argparse.SUPPRESS, **settings)

    def given(self, argv: Sequence[str] | None = None) -> dict[str, Any]:
        """The flags in `argv` with their values, without defaults.

        Raises:
            FlagError: a flag is unknown, or a word belongs to no flag.
        """
        namespace, unknown = self.parse_known_args(argv)
        if unknown:
            accepted = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
            words = [word.split("=")[0] for word in unknown if word.startswith("-")]
            if not words:
                self.error(f"found {unknown[0]!r}, which belongs to no flag; several names are split by commas: a,b")
            hints = [f"{word}{nearest(word, accepted)}" for word in words]
            self.error(f"unknown flag {', '.join(hints)}; --help lists all")
        return vars(namespace)


def add_flags(section: argparse._ArgumentGroup, flags: Iterable[tuple[type, str]]) -> None:
    """Declare flags in a section of the help.

    Args:
        flags: (dataclass, name of the flag) pairs.
    """
    for group, name in flags:
        spec = flags_of(group)[name]
        settings: dict[str, Any] = {"type": partial(convert, group, name), "metavar": metavar(group, name)}
        if kind_of(group, name)[0] is bool:
            settings |= {"nargs": "?", "const": spec.const}
        (default,) = (item.default for item in fields(group) if item.name == name)
        text = f"{spec.notice or spec.help} (default: {spec.shown or plain_text(default)})"
        section.add_argument(f"--{name}", help=text.replace("%", "%%"), **settings)


def metavar(group: type, name: str) -> str:
    spec = flags_of(group)[name]
    if spec.choices:
        return "{" + ",".join(spec.choices_shown) + "}"
    kind = kind_of(group, name)[0]
    return {str: "TEXT", int: "N", float: "X", bool: "true|false", tuple: "NAME,..."}[kind]


def plain_text(value: object) -> str:
    """A value as a user would write it."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    return {True: "true", False: "false", None: "none"}[value] if isinstance(value, bool | None) else str(value)


@cache
def kind_of(group: type, name: str) -> tuple[type, bool]:
    """The type of a field (str, int, float, bool or tuple) and whether it may be None."""
    hint = get_type_hints(group)[name]
    optional = type(None) in get_args(hint)
    kind = next(member for member in get_args(hint) if member is not type(None)) if optional else hint
    return get_origin(kind) or kind, optional


def convert(group: type, name: str, text: str) -> Any:
    """The value of a flag from its text; an empty text is None, if the flag may be None.

    Raises:
        FlagError: the text is of another kind. `check_flags` checks bounds.
    """
    kind, optional = kind_of(group, name)
    choices = flags_of(group)[name].choices
    if optional and not text:
        return None
    try:
        if kind is tuple:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        if kind is bool:
            return TRUTH[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        hint = nearest(text, map(str, choices))
        raise FlagError(f"--{name}: found {text!r}, accepted: {accepted(group, name)}{hint}") from None


def accepted(group: type, name: str) -> str:
    """What a flag accepts, in words."""
    spec = flags_of(group)[name]
    if spec.choices:
        return ", ".join(spec.choices_shown)
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (("at least", spec.at_least), ("above", spec.above), ("below", spec.below))
        if bound is not None
    ]
    return ", ".join([TYPE_NAMES[kind_of(group, name)[0]], *bounds])


def is_accepted(group: type, name: str, value: object) -> bool:
    """Whether a flag of the dataclass `group` may have a value: its type, finiteness, bounds and choices."""
    kind, optional = kind_of(group, name)
    return (value is None and optional) or (_has_kind(value, kind) and _within(value, flags_of(group)[name]))


def check_flags(group: Any) -> None:
    """Check all flags of a dataclass instance; FlagError at the first mistake."""
    for name in flags_of(type(group)):
        check_flag(group, name)


def check_flag(group: Any, name: str) -> None:
    """Check type, finiteness, bounds and choices of one flag of a dataclass instance."""
    declared: type = type(group)
    value, spec = getattr(group, name), flags_of(declared)[name]
    if not is_accepted(declared, name, value):
        hint = nearest(value, map(str, spec.choices)) if isinstance(value, str) else ""
        raise FlagError(f"--{name}: found {plain_text(value)!r}, accepted: {accepted(declared, name)}{hint}")


def _has_kind(value: object, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    if kind is tuple:
        return isinstance(value, tuple) and bool(value) and all(isinstance(part, str) for part in value)
    return isinstance(value, kind)


def _within(value: Any, spec: Flag) -> bool:
    if spec.choices:
        return value in spec.choices or (spec.pattern is not None and spec.pattern.fullmatch(value) is not None)
    return (
        (spec.at_least is None or value >= spec.at_least)
        and (spec.above is None or value > spec.above)
        and (spec.below is None or value < spec.below)
    )


def build(group: type, values: Mapping[str, Any]) -> Any:
    """The dataclass `group` from those of `values` that are its flags; lists become tuples."""
    chosen = {name: values[name] for name in flags_of(group) if name in values}
    return group(**{name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()})
