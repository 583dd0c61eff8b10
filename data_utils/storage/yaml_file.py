"""YAML files, read within limits and as plain types only (the safe loader's)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from data_utils.errors import DataError
from data_utils.storage.text_files import read_text

LARGEST_YAML = 1 << 19  # bytes
MOST_VALUES = 50_000  # of a file; what an alias (`*name`, `<<: *name`) repeats counts each time
DEEPEST_VALUE = 32  # nested lists and mappings


def compose_yaml(path: Path | str) -> yaml.Node | None:
    """The node tree of a YAML file; None if it is empty.

    Raises:
        DataError: the file cannot be read, is no YAML, or exceeds a limit.
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
        DataError: a value does not fit its tag, such as the date 2024-02-31.
    """
    try:
        return yaml.SafeLoader("").construct_object(node, deep=True)
    except yaml.YAMLError as error:
        raise DataError(f"is no YAML that can be read: {' '.join(str(error).split())}", path) from error
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        OverflowError,
    ) as error:  # raised by a tag's constructor
        line = node.start_mark.line + 1 if node.start_mark else None
        raise DataError(f"holds a value that cannot be read ({error})", path, line) from error


def _count(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """The number of values in a node, itself included; nodes that aliases repeat are looked up in `known`."""
    if depth > DEEPEST_VALUE:  # a node that contains itself ends here too
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
