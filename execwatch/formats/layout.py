"""Which column each field of an event has, and the schema of them all."""

from __future__ import annotations

import typing
from typing import Any, Dict, FrozenSet, Mapping, Optional, Tuple, Type

import attrs

from execwatch.events import KINDS
from execwatch.formats.arrow import pa
from execwatch.plain import is_choice

_TIME = pa.timestamp("ns", tz="UTC")
#: Of argv, and of env.
TEXTS = pa.list_(pa.string())
PAIRS = pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))

#: Of these the kernel uses all 64 bits. Other numbers are signed, so that their differences are right.
_UNSIGNED = {
    "cgroup_id",
    "exe_inode",
    "exe_device",
    "creds_cap_effective",
    "creds_cap_permitted",
    "creds_cap_inheritable",
    "creds_cap_ambient",
}


@attrs.frozen
class Plain:
    """A field with a column of its own.

    Attributes:
        column: Its name.
        optional: Whether the field may be None.
        required: Whether an event can't be made without it.
        choices: All that its text may be; None: anything.
    """

    column: str
    optional: bool
    required: bool
    choices: Optional[FrozenSet[str]]


@attrs.frozen
class Nested:
    """A field that holds a value of several.

    Attributes:
        cls: Its class.
        columns: By the value's fields.
        blank: The value of which nothing is known; None where there is no such value. Columns
            don't tell it from None.
    """

    cls: Type[Any]
    columns: Mapping[str, str]
    blank: Any


@attrs.frozen
class Layout:
    """The fields of one kind of event."""

    plain: Mapping[str, Plain]
    nested: Mapping[str, Nested]


def _layout(cls: Type[Any]) -> Layout:
    plain, nested = {}, {}
    required = {field.name for field in attrs.fields(cls) if field.default is attrs.NOTHING}
    for name, (hint, optional) in _types(cls).items():
        if attrs.has(hint):
            inner = _types(hint)
            blank = hint() if all(optional for _, optional in inner.values()) else None
            nested[name] = Nested(hint, {field: f"{name}_{field}" for field in inner}, blank)
        else:
            choices = frozenset(typing.get_args(hint)) if is_choice(hint) else None
            column = "time" if name == "time_ns" else name
            plain[name] = Plain(column, optional, name in required, choices)
    return Layout(plain, nested)


def _types(cls: Type[Any]) -> Dict[str, Tuple[Any, bool]]:
    """Return for each field its type, and whether it may be None instead."""
    hints = typing.get_type_hints(cls)
    fields = {}
    for field in attrs.fields(cls):
        hint = hints[field.name]
        optional = typing.get_origin(hint) is typing.Union
        fields[field.name] = (typing.get_args(hint)[0] if optional else hint, optional)
    return fields


def _schema() -> pa.Schema:
    types: Dict[str, pa.DataType] = {"kind": pa.string()}
    for cls, parts in LAYOUTS.items():
        for name, (hint, _) in _types(cls).items():
            if name in parts.plain:
                column = parts.plain[name].column
                types[column] = _type(column, hint)
            else:
                for field, (inner, _) in _types(hint).items():
                    column = parts.nested[name].columns[field]
                    types[column] = _type(column, inner)
    return pa.schema([*types.items(), ("raw", pa.string())])


def _type(column: str, hint: Any) -> pa.DataType:
    if column == "time":
        return _TIME
    if typing.get_origin(hint) is tuple:
        return PAIRS if column == "env" else TEXTS
    if hint is int:
        return pa.uint64() if column in _UNSIGNED else pa.int64()
    return pa.bool_() if hint is bool else pa.string()


#: Of every kind of event.
LAYOUTS: Mapping[Type[Any], Layout] = {cls: _layout(cls) for cls in KINDS.values()}

#: Of every table, whatever its events.
SCHEMA = _schema()

#: The type of each column.
TYPES: Mapping[str, pa.DataType] = {field.name: field.type for field in SCHEMA}

#: All fields by name.
