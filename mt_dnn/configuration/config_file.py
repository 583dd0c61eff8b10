"""The flags of a run as a YAML file: what `--config` reads, and what every run writes to its output folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from data_utils.errors import DataError, FlagError, nearest
from data_utils.storage.yaml_file import compose_yaml, construct_yaml
from mt_dnn.configuration.flags import convert, flags_of, kind_of

Made = TypeVar("Made")


class ConfigFile:
    """Reads `NAME: VALUE` lines, the names without their dashes.

    Args:
        path: the file.
        groups: the dataclasses whose flags are accepted.

    Attributes:
        values: by flag name, those at their default left out; a text is read as on a command line.
        names: of all flags in the file.

    Raises:
        DataError: the file is missing or no YAML, a flag is unknown or appears twice, or a value is of another kind.
    """

    def __init__(self, path: Path | str, groups: Iterable[type]):
        self.path = Path(path)
        self.values: dict[str, Any] = {}
        self._lines: dict[str, int] = {}
        group_of = {name: group for group in groups for name in flags_of(group)}
        node = compose_yaml(path)
        if not isinstance(node, yaml.MappingNode):
            raise DataError("found no mapping, accepted: flags as NAME: VALUE, a line each", path)
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name not in group_of:
                raise DataError(f"unknown flag {name!r}{nearest(name, group_of)}; --help lists all", path, line)
            if name in self._lines:
                raise DataError(f"flag {name!r} stands in line {self._lines[name]} already", path, line)
            self._lines[name] = line
            try:
                found = _value_of(group_of[name], name, construct_yaml(value, path))
            except FlagError as error:
                raise DataError(str(error), path, line) from error
            (default,) = (item.default for item in fields(group_of[name]) if item.name == name)
            if found != default:
                self.values[name] = found

    @property
    def names(self) -> set[str]:
        return set(self._lines)

    def combined_with(self, given: Mapping[str, Any], make: Callable[[dict[str, Any]], Made]) -> Made:
        """Call `make` with the file's flags and those of `given`, which win.

        An error about a flag of the file names file and line.

        Raises:
            UserError: `make`'s.
        """
        try:
            return make({**self.values, **given})
        except FlagError as error:
            name = str(error).removeprefix("--").split(":")[0].split(" ")[0]
            if name in given:
                raise
            raise DataError(str(error), self.path, self._lines.get(name)) from error


def _value_of(group: type, name: str, value: Any) -> Any:
    """A flag's value from its value in YAML, which may read a text as a number or a switch."""
    kind, _ = kind_of(group, name)
    if kind is tuple and isinstance(value, (list, int, float)) and not isinstance(value, bool):
        return tuple(map(str, value if isinstance(value, list) else [value]))
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return convert(group, name, value) if isinstance(value, str) else value


def config_text(flags: Mapping[str, Mapping[str, Any]]) -> str:
    """Flags as YAML that `ConfigFile` reads: by name, under the title of their group."""
    parts = [
        f"# {title}\n" + yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=1000)
        for title, values in flags.items()
        if values
    ]
    return "\n".join(parts)
