"""Events as columns: one flat Arrow schema for every kind of event.

Needs pyarrow; importing this module without it is a :class:`~execwatch.MissingExtraError`.

A column is named after its field, those of nested values after both
(``creds_uid``, ``exe_path``); ``time`` is ``time_ns`` as a timestamp. What a kind of
event doesn't have is null. Text is valid UTF-8, with U+FFFD for other bytes; the
true ones stand in ``raw``, as JSON, as :meth:`Event.to_dict` has them there.
"""

from __future__ import annotations

import itertools
from operator import attrgetter
from typing import Any, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from execwatch.events import AnyEvent, event_from_dict
from execwatch.formats import jsontext
from execwatch.formats.arrow import pa
from execwatch.formats.layout import FIELDS, LAYOUTS, SCHEMA, TEXTS, TYPES, Nested

#: Rows that are made at once: few enough to stay in the processor's cache on their way.
CHUNK = 4096

Arrays = Dict[str, "pa.Array"]


def table(events: Sequence[AnyEvent]) -> pa.Table:
    """Return the events as a table, a row each; its schema is always the same.

    Raises:
        ValueError: A number doesn't fit into its column, or text holds a surrogate that stands
            for no byte; the kernel has none such.
    """
    return pa.Table.from_batches(batches(events), SCHEMA)


def batches(events: Sequence[AnyEvent]) -> Iterator[pa.RecordBatch]:
    """Yield the pieces of the table, one after the other; raise as :func:`table` does."""
    for start in range(0, len(events), CHUNK):
        chunk = events[start : start + CHUNK]
        try:
            yield _batch(chunk)
        except (_Odd, UnicodeEncodeError):
            shown, raw = zip(*map(_shown, chunk))
            yield _batch(shown, raw)


class _Odd(Exception):
    """Columns alone can't tell it; ``raw`` has to."""


def _shown(event: AnyEvent) -> Tuple[AnyEvent, Optional[str]]:
    """Return the event as columns show it, and what belongs into ``raw``."""
    data = event.to_dict()
    raw = data.pop("raw", {})
    for name, nested in LAYOUTS[type(event)].nested.items():
        value = getattr(event, name)
        if value is not None and value == nested.blank:
            # All its columns are null, as if it were not there. That it is, an empty object tells.
            raw[name] = {}
    return (event_from_dict(data), jsontext.dumps(raw).decode()) if raw else (event, None)


def _batch(events: Sequence[AnyEvent], raw: Optional[Sequence[Optional[str]]] = None) -> pa.RecordBatch:
    """Return the events as one piece of a table; without ``raw``, _Odd where it is needed."""
    classes = list(map(type, events))
    present = frozenset(classes)
    rows: Dict[FrozenSet[type], _Rows] = {present: _Rows(events, None)}
    arrays = {"kind": _array("kind", list(map(attrgetter("kind"), events)))}
    for name, field in FIELDS.items():
        having = field.classes & present
        if not having:
            continue
        if having not in rows:
            rows[having] = _rows(events, classes, having)
        same, places = rows[having]
        values = list(map(attrgetter(name), same))
        if field.nested is not None:
            arrays.update(_spread(field.nested, values, places, raw is not None))
        if field.column is not None:
            arrays[field.column] = _placed(_array(field.column, values), places)
    if raw is not None:
        arrays["raw"] = _array("raw", raw)
    columns = [
        arrays[column] if column in arrays else pa.nulls(len(events), type_)
        for column, type_ in TYPES.items()
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


class _Rows(NamedTuple):
    """The events of some kinds.

    Attributes:
        places: For each row of the piece its number among them, null for one of another kind;
            None: they are all that there are.
    """

    events: Sequence[AnyEvent]
    places: Optional[pa.Array]


def _rows(events: Sequence[AnyEvent], classes: Sequence[type], having: FrozenSet[type]) -> _Rows:
    mask = list(map(having.__contains__, classes))
    numbers = itertools.count()
    places = [next(numbers) if there else None for there in mask]
    return _Rows(list(itertools.compress(events, mask)), pa.array(places, pa.int32()))


def _placed(array: pa.Array, places: Optional[pa.Array]) -> pa.Array:
    return array if places is None else array.take(places)


def _spread(nested: Nested, values: List[Any], places: Optional[pa.Array], raw: bool) -> Arrays:
    """Return the columns of nested values. Events share many of them: each is taken apart once."""
    ids = list(map(id, values))
    by_id = dict(zip(ids, values))
    none = id(None) in by_id
    if none and len(by_id) == 1:
        return {}
    # Both are in the order of their first appearance.
    distinct = list(by_id.values())
    numbers = _placed(pa.array(ids, pa.uint64()).dictionary_encode().indices, places)
    arrays = {column: _array(column, _items(distinct, name)) for name, column in nested.columns.items()}
    if not raw and nested.blank is not None:
        some_null = all(array.null_count > none for array in arrays.values())
        if some_null and nested.blank in distinct:
            raise _Odd
    return {column: array.take(numbers) for column, array in arrays.items()}


def _items(values: Sequence[Any], name: str) -> List[Any]:
    try:
        return list(map(attrgetter(name), values))
    except AttributeError:  # a None among them
        return [None if value is None else getattr(value, name) for value in values]


def _array(column: str, values: Sequence[Any]) -> pa.Array:
    type_ = TYPES[column]
    first = values[0]
    try:
        # Much is the same in all events, and that is told in a tenth of the time.
        if first == values[-1] and values.count(first) == len(values):
            return pa.repeat(pa.scalar(first, type_), len(values))
        return _texts(values) if type_ == TEXTS else pa.array(values, type_)
    except (OverflowError, pa.ArrowInvalid) as exc:
        raise ValueError(f"column {column!r} holds {type_}: {exc}") from None


def _texts(values: Sequence[Any]) -> pa.Array:
    try:
        flat = list(itertools.chain.from_iterable(values))
    except TypeError:  # a None among them
        return pa.array(values, TEXTS)
    offsets = [0, *itertools.accumulate(map(len, values))]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat, pa.string()))
