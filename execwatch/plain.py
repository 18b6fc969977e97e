"""Values as JSON types and back, exactly, for every attrs class whose fields say what they hold.

Text that is not UTF-8 shows as U+FFFD, and its true bytes stand beside, in
``raw``. The way back takes what the declared types allow and nothing else:
what it reads may come from anybody.
"""

from __future__ import annotations

import reprlib
import typing
from operator import attrgetter
from typing import Any, Callable, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Tuple, Type, TypeVar

import attrs
import typing_extensions

T = TypeVar("T")

#: Takes a JSON value and what stands for it in ``raw``; ValueError where it is something else.
Parser = Callable[[Any, Any], Any]

#: The kernel's numbers have 64 bits, signed or not.
_LEAST, _MOST = -(2**63), 2**64 - 1

#: For messages: of hostile text a small part, of nested lists a few levels.
_short = reprlib.Repr()
_short.maxlevel, _short.maxdict, _short.maxlist, _short.maxstring = 2, 2, 3, 60


class _Field(NamedTuple):
    name: str
    optional: bool
    parse: Parser


class _Class(NamedTuple):
    """What is to be known of a class: in the order of ``fields`` their names, and what gets their values."""

    fields: Tuple[_Field, ...]
    names: Tuple[str, ...]
    values: Callable[[Any], Tuple[Any, ...]]
    required: FrozenSet[str]


_CLASSES: Dict[type, _Class] = {}


def to_plain(value: Any) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Return the fields of an attrs value as JSON types, and the true bytes of those that need it.

    Raises:
        ValueError: A number has more than 64 bits; or text holds a surrogate that stands for no byte.
    """
    _, names, values, _ = _class(type(value))
    data: Dict[str, Any] = {}
    raw: Dict[str, Any] = {}
    for name, item in zip(names, values(value)):
        data[name], lost = _to_json(item)
        if lost is not None:
            raw[name] = lost
    return data, raw


def from_plain(cls: Type[T], data: Mapping[str, Any], raw: Any = None) -> T:
    """Return the value of ``cls`` that :func:`to_plain` told of; keys that it doesn't have are ignored.

    Raises:
        ValueError: A field is missing or not of its declared type, or a number has more than
            64 bits; the message names it.
    """
    raws = {} if raw is None else raw
    if type(raws) is not dict:
        raise ValueError(f"raw: expected an object, got {_short.repr(raws)}")
    fields: Dict[str, Any] = {}
    known = _class(cls)
    for name, optional, parse in known.fields:
        if name not in data:
            continue
        value = data[name]
        if value is None and optional and name not in raws:
            fields[name] = None
            continue
        try:
            fields[name] = parse(value, raws.get(name))
        except _Mismatch as exc:
            raise exc.within(name) from None
    missing = known.required - fields.keys()
    if missing:
        raise _Mismatch(f"{', '.join(sorted(missing))}: missing")
    return cls(**fields)


def short(value: Any) -> str:
    """Return ``repr(value)``, cut where it is long or deep."""
    return _short.repr(value)


def is_choice(hint: Any) -> bool:
    """Whether a declared type is a ``Literal``; before Python 3.10.1 typing_extensions has its own."""
    return typing.get_origin(hint) in (typing.Literal, typing_extensions.Literal)


class _Mismatch(ValueError):
    """Not what the field is declared to hold; the message begins with where."""

    def within(self, name: str) -> _Mismatch:
        inner = str(self)
        return _Mismatch(f"{name}{inner}" if inner.startswith((":", "[", ".")) else f"{name}.{inner}")


def _class(cls: type) -> _Class:
    found = _CLASSES.get(cls)
    if found is None:
        found = _CLASSES[cls] = _inspect(cls)
    return found


def _inspect(cls: Any) -> _Class:
    hints = typing.get_type_hints(cls)
    fields, names, required = [], [], []
    for field in attrs.fields(cls):
        hint = hints[field.name]
        optional = typing.get_origin(hint) is typing.Union  # Optional is the only one that values have
        fields.append(_Field(field.name, optional, _parser(typing.get_args(hint)[0] if optional else hint)))
        names.append(field.name)
        if field.default is attrs.NOTHING:
            required.append(field.name)
    # A name more: of a single one attrgetter makes no tuple.
    return _Class(tuple(fields), tuple(names), attrgetter(*names, "__class__"), frozenset(required))


def _to_json(value: Any) -> Tuple[Any, Any]:
    """Return the value as JSON types, and its true bytes where those types can't hold them."""
    if value is None or type(value) in (bool, dict):
        return value, None
    if type(value) is int:
        if _LEAST <= value <= _MOST:
            return value, None
        raise ValueError(f"expected an integer of 64 bits, got {short(value)}")
    if isinstance(value, str):
        return (value, None) if value.isascii() else _to_unicode(value)
    if isinstance(value, tuple):
        pairs = [_to_json(item) for item in value]
        lost = [raw for _, raw in pairs]
        return [item for item, _ in pairs], (lost if any(raw is not None for raw in lost) else None)
    if attrs.has(type(value)):
        data, true = to_plain(value)
        return data, true or None
    return value, None


def _to_unicode(text: str) -> Tuple[str, Optional[str]]:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        import base64  # only where it is needed: rare

        true = text.encode("utf-8", "surrogateescape")
        return true.decode("utf-8", "replace"), base64.b64encode(true).decode("ascii")
    return text, None


def _parser(hint: Any) -> Parser:
    """Return what takes JSON for a declared type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if is_choice(hint):
        return _choice(arguments)
    if origin is tuple:
        several = arguments[-1] is ...
        return _sequence(_parser(arguments[0]), None if several else len(arguments))
    if origin is dict:
        return _object
    if attrs.has(hint):
        return _value(hint)
    return {int: _integer, str: _text, bool: _boolean}[hint]


def _expected(what: str, value: Any, raw: Any) -> _Mismatch:
    if raw is not None:
        return _Mismatch(f": expected {what}, got {short(value)} with raw {short(raw)}")
    return _Mismatch(f": expected {what}, got {short(value)}")


def _integer(value: Any, raw: Any) -> int:
    if type(value) is int and _LEAST <= value <= _MOST and raw is None:
        return value
    raise _expected("an integer of 64 bits", value, raw)


def _boolean(value: Any, raw: Any) -> bool:
    if (value is True or value is False) and raw is None:
        return value
    raise _expected("true or false", value, raw)


def _text(value: Any, raw: Any) -> str:
    if type(value) is not str:
        raise _expected("text", value, raw)
    if raw is not None:
        return _true_text(value, raw)
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise _expected("text in Unicode", value, raw) from None
    return value


def _true_text(value: str, raw: Any) -> str:
    import base64
    import binascii

    if type(raw) is str and raw.isascii():
        try:
            return base64.b64decode(raw, validate=True).decode("utf-8", "surrogateescape")
        except binascii.Error:
            pass
    raise _expected("text, and in raw its base64", value, raw)


def _object(value: Any, raw: Any) -> Dict[str, Any]:
    if type(value) is dict and raw is None:
        return value
    raise _expected("an object", value, raw)


def _choice(choices: Tuple[str, ...]) -> Parser:
    def parse(value: Any, raw: Any) -> str:
        # Text first: a list has no hash, and 1 == True.
        if type(value) is str and value in choices and raw is None:
            return value
        raise _expected(f"one of {', '.join(choices)}", value, raw)

    return parse


def _sequence(parse_item: Parser, length: Optional[int]) -> Parser:
    def parse(value: Any, raw: Any) -> Tuple[Any, ...]:
        if type(value) is not list or (length is not None and len(value) != length):
            raise _expected("a list" if length is None else f"a list of {length}", value, raw)
        raws: List[Any] = [None] * len(value) if raw is None else raw
        if type(raws) is not list or len(raws) != len(value):
            raise _expected("a list, and in raw one of the same length", value, raw)
        items = []
        try:
            for item, true in zip(value, raws):
                items.append(parse_item(item, true))
        except _Mismatch as exc:
            raise exc.within(f"[{len(items)}]") from None
        return tuple(items)

    return parse


def _value(cls: type) -> Parser:
    def parse(value: Any, raw: Any) -> Any:
        if type(value) is not dict:
            raise _expected("an object", value, raw)
        if raw is not None and type(raw) is not dict:
            raise _expected("an object, and in raw another", value, raw)
        return from_plain(cls, value, raw)

    return parse
