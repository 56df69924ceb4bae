# SPDX-License-Identifier: Apache-2.0
"""What every table of a configuration has: bounds of its numbers, forms of its texts, one check of its own.

The rules stand in the annotations (`Annotated[int, Bounds(1, 9)]`) and hold for tables made in code as for tables read
from a file.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated

from fedmote.errors import ConfigError

# The same 32 as `limit-identifier` of the wire schema; a test compares them (this room may not import the schema).
MAX_IDENTIFIER_BYTES = 32
HIDDEN = "(hidden)"


class BadValueError(ConfigError):
    """A value of a configuration is not what its key takes.

    Attributes:
        source: the file, "environment" or "--set"; empty for tables made in code.
        key: path of the key, for example "cells.0.name".
        found: the value that was found, as it was written.
        expected: what the key takes.
    """

    def __init__(self, key: str, found: object, expected: str, source: str = "") -> None:
        place = f"{source}: {key}" if source else key
        words = "nothing" if found is None else repr(found)
        super().__init__(f"{place}: found {words}, expected {expected}")
        self.source = source
        self.key = key
        self.found = found
        self.expected = expected


@dataclass(frozen=True)
class Bounds:
    """A number in [low, high]; open ends are left out."""

    low: float
    high: float
    is_low_open: bool = False
    is_high_open: bool = False

    def problem(self, value: object) -> str | None:
        """What was expected, where the value is outside. A NaN is outside of everything."""
        if not isinstance(value, int | float):
            return "a number"
        is_above = value > self.low if self.is_low_open else value >= self.low
        is_below = value < self.high if self.is_high_open else value <= self.high
        if is_above and is_below:
            return None
        start = "more than" if self.is_low_open else "from"
        end = "to less than" if self.is_high_open else "to"
        return f"a number {start} {self.low} {end} {self.high}"


@dataclass(frozen=True)
class Form:
    """A text that matches a pattern."""

    pattern: str
    words: str

    def problem(self, value: object) -> str | None:
        """What was expected, where the value does not match."""
        return None if isinstance(value, str) and re.fullmatch(self.pattern, value) else self.words


@dataclass(frozen=True)
class Secret:
    """A text that no message and no listing may show; its field has `repr=False` as well.

    Attributes:
        pattern: what it must match; none: it may be any text.
        words: what is expected then.
    """

    pattern: str | None = None
    words: str = ""

    def problem(self, value: object) -> str | None:
        """What was expected, where the value does not match."""
        is_fit = self.pattern is None or (isinstance(value, str) and re.fullmatch(self.pattern, value) is not None)
        return None if is_fit else self.words


_IDENTIFIER = Form(rf"[a-z0-9-]{{1,{MAX_IDENTIFIER_BYTES}}}", f"1 to {MAX_IDENTIFIER_BYTES} characters of a-z, 0-9 and '-'")
Identifier = Annotated[str, _IDENTIFIER]
TcpUrl = Annotated[str, Form(r"tcp://[^\s/]+:\d{1,5}", "tcp://host:port")]
MqttUrl = Annotated[str, Form(r"mqtts?://[^\s/:@]+(:\d{1,5})?", "mqtt://host:port or mqtts://host:port")]
SecretKey = Annotated[str, Secret(r"[0-9a-fA-F]{64}", "64 hexadecimal digits (32 bytes)")]
SecretBytes = Annotated[str, Secret(r"([0-9a-fA-F]{2})+", "hexadecimal digits, two for each byte")]
U32 = Bounds(0, 2**32 - 1)

Rule = Bounds | Form | Secret


@dataclass(frozen=True)
class Table:
    """Base of all configuration tables."""

    def __post_init__(self) -> None:
        for name, rules in rules_of(type(self)).items():
            given = getattr(self, name)
            for value in given if isinstance(given, tuple) else (given,):
                for rule in rules if value is not None else ():
                    if expected := rule.problem(value):
                        raise BadValueError(name, HIDDEN if is_secret(rules) else value, expected)
        self.check()

    def check(self) -> None:
        """Rules between several keys; raises ConfigError."""


def require_identifier(key: str, value: str) -> None:
    """Refuse what is no name of a site, a cell or a participant; BadValueError."""
    if expected := _IDENTIFIER.problem(value):
        raise BadValueError(key, value, expected)


_HINTS: dict[object, Mapping[str, object]] = {}  # by table
_RULES: dict[object, Mapping[str, tuple[Rule, ...]]] = {}


def hints_of(kind: type[Table]) -> Mapping[str, object]:
    """Type of every field, rules included."""
    if kind not in _HINTS:
        hints = typing.get_type_hints(kind, include_extras=True)
        _HINTS[kind] = {item.name: hints[item.name] for item in fields(kind)}
    return _HINTS[kind]


def rules_of(kind: type[Table]) -> Mapping[str, tuple[Rule, ...]]:
    """Rules of every field; those of a list hold for each of its elements."""
    if kind not in _RULES:
        _RULES[kind] = {name: tuple(_rules(hint)) for name, hint in hints_of(kind).items()}
    return _RULES[kind]


def is_secret(rules: Sequence[Rule]) -> bool:
    """Whether a value with these rules must not be shown."""
    return any(isinstance(rule, Secret) for rule in rules)


def has_secrets(kind: type[Table]) -> bool:
    """Whether a table, or one inside it, has a secret value: its file is for its owner alone."""
    inner = [bare(hint) for hint in hints_of(kind).values()]
    inner += [bare(one) for hint in inner if typing.get_origin(hint) is tuple for one in typing.get_args(hint)[:1]]
    tables = [one for one in inner if isinstance(one, type) and issubclass(one, Table)]
    return any(is_secret(rules) for rules in rules_of(kind).values()) or any(has_secrets(one) for one in tables)


def _rules(hint: object) -> Sequence[Rule]:
    if typing.get_origin(hint) is Annotated:
        return [rule for rule in typing.get_args(hint)[1:] if isinstance(rule, Rule)]
    return [rule for inner in typing.get_args(hint) for rule in _rules(inner)]


def bare(hint: object) -> object:
    """A type without its rules and without `| None`."""
    if typing.get_origin(hint) is Annotated:
        return bare(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return bare(next(option for option in typing.get_args(hint) if option is not types.NoneType))
    return hint
