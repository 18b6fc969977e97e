"""Columns into events again. What it reads may come from anybody."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, Callable, Dict, List, Sequence, Set, Tuple, Type

from execwatch.events import KINDS, AnyEvent, event_from_dict
from execwatch.formats import jsontext
from execwatch.formats.arrow import pa
from execwatch.formats.layout import LAYOUTS, PAIRS, TEXTS, TYPES, Nested, Plain
from execwatch.plain import from_plain, short


def check(schema: pa.Schema) -> None:
    """Raise ValueError where a column is there twice, or with another type than events have it with."""
    seen: Set[str] = set()
    for field in schema:
        name = short(field.name)
        if field.name in seen:
            raise ValueError(f"column {name}: there twice")
        seen.add(field.name)
        expected = TYPES.get(field.name, field.type)
        if field.type != expected:
            raise ValueError(f"column {name}: expected {expected}, got {short(str(field.type))}")
    if "kind" not in seen:
        raise ValueError("column 'kind': missing")


def batch_events(batch: pa.RecordBatch) -> List[AnyEvent]:
    """Return the events of a piece of a table that passed :func:`check`, those of unknown kinds aside.

    Raises:
        ValueError: They are no events: the message names the column.
    """
    by_kind: Dict[str, List[int]] = {}
    for index, kind in enumerate(_values(batch, "kind")):
        by_kind.setdefault(kind, []).append(index)
    found: Dict[int, AnyEvent] = {}
    for kind, indices in by_kind.items():
        if kind is None:
            raise ValueError("column 'kind': expected text, got null")
        if kind in KINDS:
            same = batch if len(by_kind) == 1 else batch.take(pa.array(indices, pa.int32()))
            found.update(zip(indices, _events(KINDS[kind], same)))
    return [found[index] for index in sorted(found)]


def _events(cls: Type[AnyEvent], batch: pa.RecordBatch) -> Sequence[AnyEvent]:
    """Return the events of one kind that these rows are."""
    parts, there = LAYOUTS[cls], set(batch.schema.names)
    fields: Dict[str, Sequence[Any]] = {}
    for name, plain in parts.plain.items():
        if plain.column in there:
            fields[name] = _plain(batch, plain)
        elif plain.required:
            raise ValueError(f"column {plain.column!r}: missing")
    for name, nested in parts.nested.items():
        fields[name] = _nested(batch, name, nested, there)
    names = tuple(fields)
    events = [cls(**dict(zip(names, row))) for row in zip(*fields.values())]
    raw = _values(batch, "raw") if "raw" in there else ()
    for index, text in enumerate(raw):
        if text is not None:
            events[index] = _true(events[index], text)
    return events


def _plain(batch: pa.RecordBatch, plain: Plain) -> Sequence[Any]:
    """Return the values of a field, checked."""
    array = batch.column(plain.column)
    if array.null_count and not plain.optional:
        raise ValueError(f"column {plain.column!r}: expected no null among events of this kind")
    values = _values(batch, plain.column)
    if plain.choices is not None:
        others = set(values) - plain.choices - {None}
        if others:
            choices = ", ".join(sorted(plain.choices))
            raise ValueError(f"column {plain.column!r}: expected one of {choices}, got {short(others.pop())}")
    return values


def _nested(batch: pa.RecordBatch, name: str, nested: Nested, there: Set[str]) -> Sequence[Any]:
    """Return the values of a field that has several columns; equal ones are one."""
    fields = tuple(field for field, column in nested.columns.items() if column in there)
    cls: Any = nested.cls
    make = _maker(cls, fields)
    columns = [_values(batch, nested.columns[field]) for field in fields]
    try:
        return [make(row) for row in zip(*columns)] if fields else [None] * batch.num_rows
    except ValueError as exc:
        raise ValueError(f"columns of {name}: {exc}") from None


@cache
def _maker(cls: Any, fields: Tuple[str, ...]) -> Callable[[Tuple[Any, ...]], Any]:
    @lru_cache(maxsize=4096)
    def make(row: Tuple[Any, ...]) -> Any:
        return None if row.count(None) == len(row) else from_plain(cls, dict(zip(fields, row)))

    return make


def _values(batch: pa.RecordBatch, column: str) -> Sequence[Any]:
    array = batch.column(column)
    try:
        if array.type == TYPES["time"]:
            return array.view(pa.int64()).to_pylist()  # type: ignore[no-any-return]
        values = array.to_pylist()
    except UnicodeDecodeError as exc:
        raise ValueError(f"column {column!r}: expected UTF-8: {exc.reason}") from None
    if array.type not in (TEXTS, PAIRS):
        return values  # type: ignore[no-any-return]
    inner = array.flatten()
    if inner.null_count or any(part.null_count for part in (inner.flatten() if array.type == PAIRS else ())):
        raise ValueError(f"column {column!r}: expected no null in a list")
    if array.type == PAIRS:
        values = [v and [(pair["name"], pair["value"]) for pair in v] for v in values]
    return [None if value is None else tuple(value) for value in values]


def _true(event: AnyEvent, raw: str) -> AnyEvent:
    """Return the event with the true bytes of its text."""
    try:
        true = jsontext.loads(raw.encode())
        data = event.to_dict()
        for name in LAYOUTS[type(event)].nested:
            if data[name] is None and isinstance(true, dict) and true.get(name) == {}:
                data[name] = {}  # a value of which nothing is known
        return event_from_dict({**data, "raw": true})
    except ValueError as exc:
        raise ValueError(f"column 'raw': {exc}") from None
