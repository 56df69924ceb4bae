"""Write the C and Python tables of the wire schema from ``fedmote.cddl``.

Run ``python device_sdk/protocol/generate.py`` after a change of the schema, ``--check`` in CI: it fails where a
committed table differs from what the schema gives. Needs the standard library only.

The schema is read line by line in the few forms that its head comment lists; anything else is an error that names the
line, so that the schema cannot say something that the tables do not.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCHEMA = HERE / "fedmote.cddl"
C_HEADER = HERE.parent / "include" / "fedmote" / "fedmote_schema.h"
C_SOURCE = HERE.parent / "src" / "schema.c"
PYTHON = HERE.parent.parent / "host" / "fedmote" / "wire" / "schema.py"

ENUMERATIONS = (
    *("limit", "status", "channel", "role", "phase", "encoding", "section", "opcode", "arrangement"),
    *("activation", "loss", "kind"),
)
# Kinds list their fields as bits in words of 32.
WORD_BITS = 32
# What a C table holds: lower bounds of a byte.
LARGEST_LOW = 255
_CONSTANT = re.compile(rf"^({'|'.join(ENUMERATIONS)})-([a-z0-9-]+) = (\d+)$")
_UINT = re.compile(r"^([a-z0-9_]+) = \( (\d+) => (\d+)\.\.(\d+) \)$")
_STRING = re.compile(r"^([a-z0-9_]+) = \( (\d+) => ([bt])str \.size \((\d+)\.\.(\d+)\) \)$")
_MESSAGE = re.compile(r"^([a-z-]+)-message = \{ (.*?),? \* extension,? \}$")
_IGNORED = re.compile(r"^(extension = \( uint => any \)|head-update = .*|masked-update = .*|selected-samples = .*)$")


@dataclass(frozen=True)
class Field:
    """One field of the schema: its key, its CBOR type ("uint", "bytes", "text") and its bounds (value or length)."""

    name: str
    key: int
    type: str
    low: int
    high: int


@dataclass
class Schema:
    """What ``fedmote.cddl`` says: constants by enumeration, fields by name, messages as (field, is_required)."""

    constants: dict[str, dict[str, int]] = field(default_factory=lambda: {name: {} for name in ENUMERATIONS})
    fields: dict[str, Field] = field(default_factory=dict)
    messages: dict[str, list[tuple[str, bool]]] = field(default_factory=dict)


def statements(text: str) -> list[tuple[int, str]]:
    """The schema's rules, comments removed and broken lines joined, each with the number of its first line."""
    rules: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        code = line.split(";")[0].rstrip()
        if not code:
            continue
        if code[0].isspace() or code == "}":
            first, rule = rules.pop()
            rules.append((first, f"{rule} {code.strip()}"))
        else:
            rules.append((number, code))
    return rules


def parse(text: str) -> Schema:
    """Read the schema; ValueError with the line for anything that is not of a known form, or a number used twice."""
    schema = Schema()
    for number, rule in statements(text):
        if match := _CONSTANT.match(rule):
            group, name, value = match[1], match[2], int(match[3])
            if group != "limit" and value in schema.constants[group].values():
                raise ValueError(f"{SCHEMA.name}:{number}: {group} {value} is used twice")
            schema.constants[group][name] = value
        elif match := _UINT.match(rule):
            schema.fields[match[1]] = Field(match[1], int(match[2]), "uint", int(match[3]), int(match[4]))
        elif match := _STRING.match(rule):
            kind = "bytes" if match[3] == "b" else "text"
            schema.fields[match[1]] = Field(match[1], int(match[2]), kind, int(match[4]), int(match[5]))
        elif match := _MESSAGE.match(rule):
            items = [item.strip() for item in match[2].split(",") if item.strip()]
            schema.messages[match[1]] = [(item.lstrip("? "), not item.startswith("?")) for item in items]
        elif not _IGNORED.match(rule):
            raise ValueError(f"{SCHEMA.name}:{number}: not a form that this generator reads: {rule}")
    _check(schema)
    return schema


def _check(schema: Schema) -> None:
    keys = [item.key for item in schema.fields.values()]
    if sorted(keys) != list(range(1, len(keys) + 1)):
        raise ValueError(f"{SCHEMA.name}: field keys must be 1 to {len(keys)} without a gap")
    if wide := [item.name for item in schema.fields.values() if item.low > LARGEST_LOW]:
        raise ValueError(f"{SCHEMA.name}: lower bounds are at most {LARGEST_LOW}, that of {wide[0]} is not")
    for kind, items in schema.messages.items():
        if kind not in schema.constants["kind"]:
            raise ValueError(f"{SCHEMA.name}: {kind}-message has no kind-{kind}")
        for name, _ in items:
            if name not in schema.fields:
                raise ValueError(f"{SCHEMA.name}: {kind}-message names an unknown field {name}")
    if missing := set(schema.constants["kind"]) - set(schema.messages):
        raise ValueError(f"{SCHEMA.name}: kinds without a message: {sorted(missing)}")


def _upper(name: str) -> str:
    return name.upper().replace("-", "_")


def _words(schema: Schema) -> int:
    return len(schema.fields) // WORD_BITS + 1


def _bits(schema: Schema, names: list[str]) -> str:
    """The fields of these names as words of bits, a C initializer."""
    bits = sum(1 << schema.fields[name].key for name in names)
    return "{" + ", ".join(f"0x{bits >> WORD_BITS * i & 0xFFFFFFFF:08X}U" for i in range(_words(schema))) + "}"


def c_header(schema: Schema) -> str:
    lines = [
        "/* SPDX-License-Identifier: Apache-2.0",
        " * Generated from protocol/fedmote.cddl by protocol/generate.py; change the schema, not this file. */",
        "#ifndef FEDMOTE_SCHEMA_H",
        "#define FEDMOTE_SCHEMA_H",
        "",
        "#include <stdint.h>",
    ]
    for group in ENUMERATIONS:
        lines += ["", f"enum fedmote_{group} {{"]
        for name, value in schema.constants[group].items():
            sign = "-" if group == "status" and value else ""
            prefix = "FEDMOTE_" if name == "ok" else "FEDMOTE_ERR_" if group == "status" else f"FEDMOTE_{_upper(group)}_"
            lines.append(f"    {prefix}{_upper(name)} = {sign}{value},")
        lines.append("};")
    lines += ["", "/* Keys of the fields; every key has one type in all messages. */", "enum fedmote_field {"]
    lines += [f"    FEDMOTE_FIELD_{_upper(item.name)} = {item.key}," for item in schema.fields.values()]
    lines += [
        f"    FEDMOTE_FIELDS_END = {len(schema.fields) + 1}, /* one more than the highest key */",
        "};",
        "",
        f"#define FEDMOTE_FIELD_WORDS {_words(schema)} /* a bit for each field */",
        "",
        "enum fedmote_type { FEDMOTE_TYPE_NONE, FEDMOTE_TYPE_UINT, FEDMOTE_TYPE_BYTES, FEDMOTE_TYPE_TEXT };",
        "",
        "/* Type and bounds of a field: of the value for integers, of the length for strings. */",
        "struct fedmote_field_rule {",
        "    uint8_t type;",
        "    uint8_t low;",
        "    uint32_t high;",
        "};",
        "",
        "/* Fields of a kind as bits, 32 to a word: bit k stands for the field with key k. */",
        "struct fedmote_kind_rule {",
        "    uint32_t allowed[FEDMOTE_FIELD_WORDS];",
        "    uint32_t required[FEDMOTE_FIELD_WORDS];",
        "};",
        "",
        f"#define FEDMOTE_KINDS_END {max(schema.constants['kind'].values()) + 1}",
        "",
        "extern const struct fedmote_field_rule fedmote_field_rules[FEDMOTE_FIELDS_END];",
        "extern const struct fedmote_kind_rule fedmote_kind_rules[FEDMOTE_KINDS_END];",
        "extern const char *const fedmote_kind_names[FEDMOTE_KINDS_END]; /* last topic levels; index 0 is unused */",
        "",
        "#endif",
        "",
    ]
    return "\n".join(lines)


def c_source(schema: Schema) -> str:
    lines = [
        "/* SPDX-License-Identifier: Apache-2.0",
        " * Generated from protocol/fedmote.cddl by protocol/generate.py; change the schema, not this file. */",
        '#include "fedmote/fedmote_schema.h"',
        "",
        "/* clang-format off */",
        "",
        "const struct fedmote_field_rule fedmote_field_rules[FEDMOTE_FIELDS_END] = {",
        "    {FEDMOTE_TYPE_NONE, 0U, 0U},",
    ]
    for item in schema.fields.values():
        lines.append(f"    {{FEDMOTE_TYPE_{item.type.upper()}, {item.low}U, {item.high}U}}, /* {item.key} {item.name} */")
    lines += ["};", "", "const struct fedmote_kind_rule fedmote_kind_rules[FEDMOTE_KINDS_END] = {"]
    kinds = {schema.constants["kind"][kind]: (kind, items) for kind, items in schema.messages.items()}
    nothing: tuple[str, list[tuple[str, bool]]] = ("none", [])
    for number in range(max(kinds) + 1):
        kind, items = kinds.get(number, nothing)
        allowed = _bits(schema, [name for name, _ in items])
        required = _bits(schema, [name for name, is_required in items if is_required])
        lines.append(f"    {{{allowed}, {required}}}, /* {number} {kind} */")
    lines += ["};", "", "const char *const fedmote_kind_names[FEDMOTE_KINDS_END] = {"]
    for number in range(max(kinds) + 1):
        lines.append(f'    "{kinds[number][0] if number in kinds else ""}",')
    lines += ["};", ""]
    return "\n".join(lines)


def python_source(schema: Schema) -> str:
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        '"""Numbers of the wire schema.',
        "",
        "Generated from device_sdk/protocol/fedmote.cddl by device_sdk/protocol/generate.py; change the schema, not this file.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "from dataclasses import dataclass",
        "from enum import IntEnum",
        "from typing import Final, Literal",
        "",
    ]
    for name, value in schema.constants["limit"].items():
        lines.append(f"LIMIT_{_upper(name)}: Final = {value}")
    for group in ENUMERATIONS[1:]:
        lines += ["", "", f"class {group.capitalize()}(IntEnum):", f'    """`{group}-*` of the schema."""', ""]
        lines += [f"    {_upper(name)} = {value}" for name, value in schema.constants[group].items()]
    lines += [
        "",
        "",
        "@dataclass(frozen=True)",
        "class FieldRule:",
        '    """Key, CBOR type and bounds of a field: of the value for integers, of the length in bytes for strings."""',
        "",
        "    key: int",
        "    type: type[int] | type[bytes] | type[str]",
        "    low: int",
        "    high: int",
        "",
        "",
        "# Names of the fields by type, for the type checker.",
    ]
    types = {"uint": "int", "bytes": "bytes", "text": "str"}
    for group, title in (("uint", "NumberField"), ("bytes", "BytesField"), ("text", "TextField")):
        lines.append(f"{title} = Literal[")
        lines += [f'    "{item.name}",' for item in schema.fields.values() if item.type == group]
        lines.append("]")
    lines += [
        "",
        "FIELDS: Final[dict[str, FieldRule]] = {",
    ]
    for item in schema.fields.values():
        lines.append(f'    "{item.name}": FieldRule({item.key}, {types[item.type]}, {item.low}, {item.high}),')
    lines += ["}", "", "# Fields of a kind, True where the field is required."]
    lines.append("MESSAGES: Final[dict[Kind, dict[str, bool]]] = {")
    for kind, items in schema.messages.items():
        lines.append(f"    Kind.{_upper(kind)}: {{")
        lines += [f'        "{name}": {is_required},' for name, is_required in items]
        lines.append("    },")
    lines += ["}", ""]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare with the committed tables, write nothing")
    options = parser.parse_args(arguments)
    schema = parse(SCHEMA.read_text(encoding="utf-8"))
    outputs = {C_HEADER: c_header(schema), C_SOURCE: c_source(schema), PYTHON: python_source(schema)}
    stale = [path for path, text in outputs.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if options.check:
        for path in stale:
            print(f"{path.relative_to(HERE.parent.parent)} differs from {SCHEMA.name}; run {Path(__file__).name}")
        return 1 if stale else 0
    for path, text in outputs.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
