"""pyarrow. Where it is not installed, importing this module is a :class:`~execwatch.MissingExtraError`."""

from __future__ import annotations

from execwatch.errors import MissingExtraError

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
except ImportError:
    raise MissingExtraError("arrow", "pyarrow") from None

__all__ = ("pa", "pc", "pq")
