"""Events as a pandas frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

from execwatch.errors import MissingExtraError
from execwatch.events import AnyEvent

if TYPE_CHECKING:
    import pandas


def data_frame(events: Sequence[AnyEvent]) -> pandas.DataFrame:
    """Return the table of :mod:`~execwatch.formats.columns` as a pandas frame.

    Whole numbers stay whole; what is not there is ``<NA>`` (in ``argv`` and ``env`` None, in ``time`` NaT).

    Raises:
        MissingExtraError: pandas or pyarrow is not there.
        ValueError: As of :func:`~execwatch.formats.columns.table`.
    """
    try:
        import pandas
    except ImportError:
        raise MissingExtraError("pandas", "pandas") from None
    from execwatch.formats import columns
    from execwatch.formats.arrow import pa

    types = {
        pa.int64(): pandas.Int64Dtype(),
        pa.uint64(): pandas.UInt64Dtype(),
        pa.bool_(): pandas.BooleanDtype(),
        pa.string(): pandas.StringDtype(),
    }
    rows = columns.table(events)
    frame = rows.to_pandas(types_mapper=types.get)
    for name in ("argv", "env"):  # lists, where pandas makes arrays
        frame[name] = pandas.Series(rows[name].to_pylist(), dtype=object)
    return frame
