# SPDX-License-Identifier: Apache-2.0
"""From TOML text to a frozen table, with the origin of every value.

Sources in rising order: default, file, environment (`FEDMOTE_CONFIG__RUN__ROUNDS=5`, two underscores between the
levels), `--set run.rounds=5`. Elements of a list of tables are named by their number: `cells.0.name`. A relative path is
relative to the directory of the file that it stands in; from the environment and `--set`, to the working directory.
"""

from __future__ import annotations

import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from fedmote.config.table import HIDDEN, BadValueError, Table, bare, has_secrets, hints_of, is_secret, rules_of
from fedmote.errors import ConfigError
from fedmote.private_files import refuse_shared

ENVIRONMENT_PREFIX = "FEDMOTE_CONFIG__"

T = TypeVar("T", bound=Table)


@dataclass(frozen=True)
class Effective:
    """One line of `config show`: the key's path, its value as text, where it came from."""

    key: str
    value: str
    origin: str


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A configuration and the origin of its values: "default", "file", "environment" or "--set", by key path."""

    config: T
    origins: Mapping[str, str]

    def effective(self) -> list[Effective]:
        """Every value, in the order of the tables; secrets hidden."""
        return [
            Effective(key, HIDDEN if is_hidden else _text(value), self.origins.get(key, "default"))
            for key, is_hidden, value in _leaves(self.config, "")
        ]


def load(kind: type[T], path: Path | str, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> T:
    """The configuration of a file; ConfigError names file, key, value found and what was expected."""
    return load_with_origins(kind, path, overrides, environment).config


def load_with_origins(
    kind: type[T], path: Path | str, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Loaded[T]:
    """As `load`, with the origin of every value.

    Args:
        kind: the table that the file holds.
        path: the file.
        overrides: texts "a.b=c" of `--set`, the last of a key wins.
        environment: variables to look at; none at all where it is None, so that libraries and tests see the file alone.

    Raises:
        ConfigError: it names file, key, value found and what was expected; or the file has secrets and others may read it.
    """
    path = Path(path)
    if has_secrets(kind):
        refuse_shared(path)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:  # the parser follows brackets as deep as they go
        raise ConfigError(f"{path}: not TOML: {error}") from error
    given = _Node.of(tree, "file")
    for key, text in _from_environment(environment or {}):
        given.put(key, text, "environment")
    for key, text in map(_split_override, overrides):
        given.put(key, text, "--set")
    reader = _Reader(path, is_hiding_tables=has_secrets(kind))
    return Loaded(reader.table(kind, given, ""), reader.origins)


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX):
            yield name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", "."), environment[name]


def _split_override(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {text}: expected key.path=value")
    return key.strip(), value.strip()


class _Words(str):
    """A value from the environment or `--set`: text whose type is that of its key."""


@dataclass
class _Node:
    """A value as it was given, with its origin; `children` where it is a table or a list."""

    value: object
    origin: str
    children: dict[str, _Node] | None = None

    @classmethod
    def of(cls, value: object, origin: str) -> _Node:
        if isinstance(value, dict):
            return cls(value, origin, {key: cls.of(item, origin) for key, item in value.items()})
        if isinstance(value, list):
            return cls(value, origin, {str(index): cls.of(item, origin) for index, item in enumerate(value)})
        return cls(value, origin)

    def put(self, path: str, text: str, origin: str) -> None:
        """Set the value at a key path; levels that are not there are made."""
        node = self
        *levels, last = path.split(".")
        for level in levels:
            if node.children is None:
                raise BadValueError(path, text, f"a key; {level} is not inside a table", origin)
            node = node.children.setdefault(level, _Node({}, origin, {}))
        if node.children is None:
            raise BadValueError(path, text, "a key inside a table", origin)
        node.children[last] = _Node(_Words(text), origin)


class _Reader:
    """Turns given nodes into typed values and notes their origins."""

    def __init__(self, path: Path, is_hiding_tables: bool) -> None:
        self.path = path
        self._is_hiding_tables = is_hiding_tables  # a list or table that stands in the wrong place may hold secrets
        self.origins: dict[str, str] = {}

    def table(self, kind: type[T], node: _Node, prefix: str) -> T:
        if node.children is None or isinstance(node.value, list):
            raise self._bad_table(prefix, node, f"a table [{prefix}]")
        hints = hints_of(kind)
        known = {item.name: item for item in fields(kind)}
        if unknown := sorted(set(node.children) - set(known)):
            source = self._source(node.children[unknown[0]])  # the value stays out of the message: it may be a secret
            raise BadValueError(prefix or "top level", unknown[0], f"one of the keys {', '.join(known)}", source)
        values: dict[str, object] = {}
        for name, item in known.items():
            key = _join(prefix, name)
            if name in node.children:
                values[name] = self._value(hints[name], node.children[name], key, is_secret(rules_of(kind)[name]))
            elif _is_required(item):
                raise BadValueError(key, None, f"a value: {_describe(hints[name])}; the key is required", str(self.path))
        return self._make(kind, values, node, prefix)

    def _make(self, kind: type[T], values: dict[str, object], node: _Node, prefix: str) -> T:
        try:
            return kind(**values)
        except BadValueError as error:
            given = (node.children or {}).get(error.key)
            raise BadValueError(_join(prefix, error.key), error.found, error.expected, self._source(given or node)) from error
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {prefix + ': ' if prefix else ''}{error}") from error

    def _value(self, hint: object, node: _Node, key: str, is_hidden: bool = False) -> object:
        hint = bare(hint)
        if is_dataclass(hint):
            return self.table(typing.cast(type[Table], hint), node, key)
        if typing.get_origin(hint) is tuple:
            return self._list(typing.get_args(hint)[0], node, key)
        self.origins[key] = node.origin
        if node.children is not None and not is_hidden:
            raise self._bad(key, node, _describe(hint))
        value = _parse(node.value, hint) if isinstance(node.value, _Words) else node.value
        if is_hidden:
            node = _Node(HIDDEN, node.origin)
        return self._scalar(hint, value, node, key)

    def _list(self, hint: object, node: _Node, key: str) -> tuple[object, ...]:
        if isinstance(node.value, _Words):
            node = _Node.of(_parse(node.value, list), node.origin)
        if node.children is None or not isinstance(node.value, list):
            raise self._bad_table(key, node, f"a list of {_describe(hint)}")
        if list(node.children) != [str(index) for index in range(len(node.children))]:
            raise self._bad_table(key, node, f"elements numbered from 0 to {len(node.children) - 1}")
        if not is_dataclass(hint):
            self.origins[key] = node.origin
        return tuple(self._value(hint, child, f"{key}.{index}") for index, child in node.children.items())

    def _scalar(self, hint: object, value: object, node: _Node, key: str) -> object:
        if typing.get_origin(hint) is Literal:
            if isinstance(value, str) and value in typing.get_args(hint):
                return value
        elif hint is Path:
            if isinstance(value, str) and value:
                return (self.path.parent if node.origin == "file" else Path()) / Path(value).expanduser()
        elif hint is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
        elif type(value) is hint or (hint is str and isinstance(value, str)):
            return str(value) if hint is str else value
        raise self._bad(key, node, _describe(hint))

    def _bad_table(self, key: str, node: _Node, expected: str) -> BadValueError:
        return self._bad(key, _Node(HIDDEN, node.origin) if self._is_hiding_tables else node, expected)

    def _bad(self, key: str, node: _Node, expected: str) -> BadValueError:
        found = str(node.value) if isinstance(node.value, _Words) else node.value
        return BadValueError(key, found, expected, self._source(node))

    def _source(self, node: _Node) -> str:
        return str(self.path) if node.origin == "file" else node.origin


def _parse(text: str, hint: object) -> object:
    """A text as the TOML value it spells; texts, paths and choices need no quotes."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return str(text)
    is_text_wanted = hint in (str, Path) or typing.get_origin(hint) is Literal
    return str(text) if is_text_wanted and not isinstance(value, str) else value


def _is_required(item: Field[object]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _describe(hint: object) -> str:
    """What a type takes, in words."""
    hint = bare(hint)
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"a list of {_describe(typing.get_args(hint)[0])}"
    if is_dataclass(hint):
        return "a table"
    words: dict[object, str] = {int: "an integer", float: "a number", str: "a text", bool: "true or false", Path: "a path"}
    return words[hint]


def _text(value: object) -> str:
    """A value as it would be written in TOML; absent ones as "none"."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    return f'"{value}"' if isinstance(value, str | Path) else str(value)


def _leaves(table: Table, prefix: str) -> Iterator[tuple[str, bool, object]]:
    """Key path, "is it secret?" and value of everything that is not a table itself."""
    for name, rules in rules_of(type(table)).items():
        key, value = _join(prefix, name), getattr(table, name)
        children = value if isinstance(value, tuple) else ()
        if isinstance(value, Table):
            yield from _leaves(value, key)
        elif children and isinstance(children[0], Table):
            for index, child in enumerate(children):
                yield from _leaves(child, f"{key}.{index}")
        else:
            yield key, is_secret(rules), value
