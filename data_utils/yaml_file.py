"""YAML files as data: within limits, and with the safe loader's plain types alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from data_utils.errors import DataError
from data_utils.text_files import read_text

LARGEST_YAML = 1 << 19  # bytes
MOST_VALUES = 50_000  # of a file, those that an alias (`*name`, `<<: *name`) repeats counted each time
DEEPEST_VALUE = 32  # lists and mappings in one another


def compose_yaml(path: Path | str) -> yaml.Node | None:
    """The tree of a YAML file; None where it is empty.

    Raises:
        DataError: unreadable, no YAML, or beyond a limit.
    """
    text = read_text(path, LARGEST_YAML)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None and _count(node, {}, 0) > MOST_VALUES:
            raise DataError(f"holds more than {MOST_VALUES} values, those of aliases included", path)
    except yaml.YAMLError as error:
        raise DataError(f"is no YAML that can be read: {' '.join(str(error).split())}", path) from error
    except RecursionError as error:
        raise DataError(f"holds values nested too deeply; accepted: {DEEPEST_VALUE} in one another", path) from error
    return node


def construct_yaml(node: yaml.Node, path: Path | str) -> Any:
    """The value of a node of `compose_yaml`.

    Raises:
        DataError: a value that its tag does not fit, such as a day that no calendar has.
    """
    try:
        return yaml.SafeLoader("").construct_object(node, deep=True)
    except yaml.YAMLError as error:
        raise DataError(f"is no YAML that can be read: {' '.join(str(error).split())}", path) from error
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:  # of a tag's constructor
        line = node.start_mark.line + 1 if node.start_mark else None
        raise DataError(f"holds a value that cannot be read ({error})", path, line) from error


def _count(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Values below a node and itself; counting stays fast where aliases repeat much."""
    if depth > DEEPEST_VALUE:  # also where a node holds itself
        raise RecursionError
    if id(node) not in known:
        known[id(node)] = 1 + sum(_count(part, known, depth + 1) for part in _parts(node))
    return known[id(node)]


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.ScalarNode):
        try:
            node.value.encode()
        except UnicodeEncodeError as error:
            raise yaml.YAMLError(f"{node.value!r} has half a surrogate pair, which is no character") from error
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from (key, value)
    else:
        yield from node.value
