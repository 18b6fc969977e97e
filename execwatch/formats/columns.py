"""Events as columns: one flat Arrow schema for every kind of event.

Needs pyarrow; importing this module without it is a :class:`~execwatch.MissingExtraError`.

A column is named after its field, those of nested values after both
(``creds_uid``, ``exe_path``); ``time`` is ``time_ns`` as a timestamp. What a kind of
event doesn't have is null. Text is valid UTF-8, with U+FFFD for other bytes; the
true ones stand in ``raw``, as JSON, as :meth:`Event.to_dict` has them there.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Type

from execwatch.events import AnyEvent, event_from_dict
from execwatch.formats import jsontext
from execwatch.formats.arrow import pa, pc
from execwatch.formats.layout import LAYOUTS, SCHEMA, TEXTS, TYPES, Nested

#: Rows that are made at once: enough that what each column takes whatever their number is little.
CHUNK = 4096

Arrays = Dict[str, "pa.Array"]

_EMPTY = SCHEMA.empty_table()
#: For each kind of event a number.
_NUMBERS: Mapping[Type[Any], int] = {cls: number for number, cls in enumerate(LAYOUTS)}


class Piece(NamedTuple):
    """Rows of a table, kind by kind as yet: :func:`joined` puts them into their order.

    Attributes:
        kinds: For each row the number of its kind.
        tables: By the kind's number: its rows, with the columns that such events have.
    """

    kinds: pa.Array
    tables: Dict[int, pa.Table]

    @property
    def nbytes(self) -> int:
        return sum(table.get_total_buffer_size() for table in self.tables.values())


def table(events: Sequence[AnyEvent]) -> pa.Table:
    """Return the events as a table, a row each; its schema is always the same.

    Raises:
        ValueError: A number doesn't fit into its column, or text holds a surrogate that stands
            for no byte; the kernel has none such.
    """
    chunks = (events[start : start + CHUNK] for start in range(0, len(events), CHUNK))
    return pa.concat_tables([joined([piece(chunk)]) for chunk in chunks] or [_EMPTY])


def piece(events: Sequence[AnyEvent]) -> Piece:
    """Return the events as columns; raise as :func:`table` does."""
    classes = list(map(type, events))
    tables = {}
    for cls in dict.fromkeys(classes):
        same = [event for event in events if type(event) is cls]
        try:
            arrays = _columns(cls, same)
        except (_Odd, UnicodeEncodeError):
            shown, raw = zip(*map(_shown, same))
            arrays = _columns(cls, shown, raw)
        tables[_NUMBERS[cls]] = pa.table(arrays)
    return Piece(pa.array(list(map(_NUMBERS.__getitem__, classes)), pa.int8()), tables)


def joined(pieces: Sequence[Piece]) -> pa.Table:
    """Return the rows of all pieces, one piece after the other."""
    numbers = sorted({number for piece in pieces for number in piece.tables})
    by_kind = [piece.tables[number] for number in numbers for piece in pieces if number in piece.tables]
    rows = pa.concat_tables([_EMPTY, *by_kind], promote_options="default")
    if len(numbers) == 1:
        return rows.combine_chunks()
    # To sort them by kind would lead here; this is the way back.
    sorting = pc.sort_indices(pa.concat_arrays([piece.kinds for piece in pieces]))
    return rows.take(pc.sort_indices(sorting))


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


def _columns(
    cls: Type[Any], events: Sequence[AnyEvent], raw: Optional[Sequence[Optional[str]]] = None
) -> Arrays:
    """Return the columns of events of one kind; without ``raw``, _Odd where it is needed."""
    arrays = {"kind": _array("kind", [cls.kind] * len(events))}
    for name, plain in LAYOUTS[cls].plain.items():
        arrays[plain.column] = _array(plain.column, _taker(name)(events))
    for name, nested in LAYOUTS[cls].nested.items():
        arrays.update(_spread(nested, _taker(name)(events), raw is not None))
    if raw is not None:
        arrays["raw"] = _array("raw", raw)
    return arrays


def _spread(nested: Nested, values: List[Any], raw: bool) -> Arrays:
    """Return the columns of nested values. Events share many of them: each is taken apart once."""
    if not any(values):
        return {}
    ids = list(map(id, values))
    by_id = dict(zip(ids, values))
    none = id(None) in by_id
    # Both are in the order of their first appearance.
    distinct = list(by_id.values())
    arrays = {column: _array(column, _items(distinct, name)) for name, column in nested.columns.items()}
    if not raw and nested.blank is not None:
        some_null = all(array.null_count > none for array in arrays.values())
        if some_null and nested.blank in distinct:
            raise _Odd
    if len(distinct) == len(values):
        return arrays
    if len(distinct) == 1:
        return {column: pa.repeat(array[0], len(values)) for column, array in arrays.items()}
    numbers = pa.array(ids, pa.uint64()).dictionary_encode().indices
    spread = pa.RecordBatch.from_arrays(list(arrays.values()), list(arrays)).take(numbers)
    return dict(zip(arrays, spread.columns))


@cache
def _taker(name: str) -> Callable[[Sequence[Any]], List[Any]]:
    """Return what takes an attribute of each value: code made for it, twice as fast as ``attrgetter``."""
    taker: Callable[[Sequence[Any]], List[Any]] = eval(f"lambda values: [value.{name} for value in values]")
    return taker


def _items(values: Sequence[Any], name: str) -> List[Any]:
    try:
        return _taker(name)(values)
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
