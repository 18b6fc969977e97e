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
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Sequence, Tuple, Type

from execwatch.errors import MissingExtraError
from execwatch.events import AnyEvent, event_from_dict
from execwatch.formats import jsontext
from execwatch.formats.arrow import pa
from execwatch.formats.layout import LAYOUTS, SCHEMA, TEXTS, Nested
from execwatch.formats.rows import events as events

if TYPE_CHECKING:
    import pandas

#: Rows that are made at once: few enough to stay in the processor's cache on their way.
CHUNK = 4096

Arrays = Dict[str, "pa.Array"]


def schema() -> pa.Schema:
    """Return the schema, always the same."""
    return SCHEMA


def table(events: Sequence[AnyEvent]) -> pa.Table:
    """Return the events as a table, a row each.

    Raises:
        ValueError: A number doesn't fit into its column; the kernel has none such.
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


def data_frame(events: Sequence[AnyEvent]) -> pandas.DataFrame:
    """Return :func:`table` as a pandas frame. Whole numbers stay whole, what is not there is ``<NA>``.

    Raises:
        MissingExtraError: pandas is not there.
        ValueError: As of :func:`table`.
    """
    try:
        import pandas
    except ImportError:
        raise MissingExtraError("pandas") from None

    types = {
        pa.int64(): pandas.Int64Dtype(),
        pa.uint64(): pandas.UInt64Dtype(),
        pa.bool_(): pandas.BooleanDtype(),
        pa.string(): pandas.StringDtype(),
    }
    rows = table(events)
    frame = rows.to_pandas(types_mapper=types.get)
    for name in ("argv", "env"):  # lists, where pandas makes arrays
        frame[name] = pandas.Series(rows[name].to_pylist(), dtype=object)
    return frame


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
    by_class: Dict[Type[AnyEvent], List[int]] = {}
    for index, event in enumerate(events):
        by_class.setdefault(type(event), []).append(index)
    parts = []
    for cls, indices in by_class.items():
        same = events if len(by_class) == 1 else [events[index] for index in indices]
        parts.append((len(same), _arrays(cls, same, raw is not None)))
    # Kinds lie apart now. Where the n-th event went:
    places = None
    if len(parts) > 1:
        places = [0] * len(events)
        for place, index in enumerate(itertools.chain.from_iterable(by_class.values())):
            places[index] = place
        places = pa.array(places, pa.int32())
    columns = [_joined(field, parts, places) for field in SCHEMA]
    if raw is not None:
        columns[-1] = pa.array(raw, pa.string())
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _joined(field: pa.Field, parts: Sequence[Tuple[int, Arrays]], places: Optional[pa.Array]) -> pa.Array:
    """Return a column out of what each kind has of it, in the order of the events."""
    arrays = [part.get(field.name) for _, part in parts]
    if not any(array is not None for array in arrays):
        return pa.nulls(sum(count for count, _ in parts), field.type)
    if places is None:
        return arrays[0]
    filled = [
        pa.nulls(count, field.type) if array is None else array for array, (count, _) in zip(arrays, parts)
    ]
    return pa.concat_arrays(filled).take(places)


def _arrays(cls: Type[AnyEvent], events: Sequence[AnyEvent], raw: bool) -> Arrays:
    """Return the columns that events of one kind have."""
    arrays = {"kind": pa.repeat(pa.scalar(cls.kind, pa.string()), len(events))}
    for name, plain in LAYOUTS[cls].plain.items():
        arrays[plain.column] = _array(plain.column, list(map(attrgetter(name), events)))
    for name, nested in LAYOUTS[cls].nested.items():
        arrays.update(_spread(nested, list(map(attrgetter(name), events)), raw))
    return arrays


def _spread(nested: Nested, values: List[Any], raw: bool) -> Arrays:
    """Return the columns of nested values. Events share many of them: each is taken apart once."""
    by_id = dict(zip(map(id, values), values))
    nones = id(None) in by_id
    if nones and len(by_id) == 1:
        return {}
    ids = pa.array(list(map(id, values)), pa.uint64()).dictionary_encode()
    distinct = [by_id[i] for i in ids.dictionary.to_pylist()]
    arrays = {}
    for name, column in nested.columns.items():
        items = [None if value is None else getattr(value, name) for value in distinct]
        arrays[column] = _array(column, items)
    some_null = all(array.null_count > nones for array in arrays.values())
    if some_null and not raw and nested.blank is not None and nested.blank in distinct:
        raise _Odd
    return {column: array.take(ids.indices) for column, array in arrays.items()}


def _array(column: str, values: Sequence[Any]) -> pa.Array:
    type_ = SCHEMA.field(column).type
    try:
        if type_ == TEXTS:
            return _texts(values)
        return pa.array(values, type_)
    except (OverflowError, pa.ArrowInvalid) as exc:
        raise ValueError(f"column {column!r} holds {type_}: {exc}") from None


def _texts(values: Sequence[Any]) -> pa.Array:
    try:
        flat = list(itertools.chain.from_iterable(values))
    except TypeError:  # a None among them
        return pa.array(values, TEXTS)
    offsets = [0, *itertools.accumulate(map(len, values))]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat, pa.string()))
