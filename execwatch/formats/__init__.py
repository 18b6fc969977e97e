"""Recordings in files: one module a format.

A file begins with a :class:`Header` and ends with the final counters. Which
format is written goes by the file's name; which is read, by its content:

- ``.ndjson``, ``.jsonl``, ``.json``: NDJSON, a JSON object a line; with ``.gz`` behind it compressed.
  What was written has been handed to the operating system (with gzip at a later write, a second after the
  one before), and a file that was cut anywhere is read up to its last whole line.
- ``.parquet``: for tables; needs ``pip install 'execwatch[arrow]'``. It can be read only once it was closed:
  where the program that writes it is killed, nothing is left.

What is read may come from anybody: it is what it says, or an error, and NDJSON is read with bounded memory.
Parquet can say that a few large values stand in every row, so that a small file takes any amount.
"""

from __future__ import annotations

import os
from io import BufferedReader
from typing import Union

from execwatch.errors import RecordingError
from execwatch.formats.base import Reader as Reader
from execwatch.formats.base import Writer as Writer
from execwatch.formats.header import FORMAT as FORMAT
from execwatch.formats.header import Header as Header

_Path = Union[str, "os.PathLike[str]"]

_NDJSON = (".ndjson", ".jsonl", ".json")
_GZIP = tuple(f"{suffix}.gz" for suffix in _NDJSON)
_PARQUET = ".parquet"

#: What the name of a recording ends with.
SUFFIXES = (*_NDJSON, *_GZIP, _PARQUET)


def open_writer(path: _Path, header: Header) -> Writer:
    """Return a writer of a new file, in the format that its name ends with.

    The file can be read and written by its owner alone. One that is there already is emptied, and keeps
    its owner and permissions.

    Raises:
        ValueError: The name ends otherwise.
        MissingExtraError: The format needs a package that is not installed.
        OSError: The file can't be made; ELOOP: it is a symbolic link.
    """
    name = os.fspath(path)
    if name.endswith(_NDJSON + _GZIP):
        from execwatch.formats.ndjson import NdjsonWriter

        return NdjsonWriter(name, header, compressed=name.endswith(_GZIP))
    if name.endswith(_PARQUET):
        from execwatch.formats.parquet import ParquetWriter

        return ParquetWriter(name, header)
    raise ValueError(f"path: expected a name that ends with one of {', '.join(SUFFIXES)}, got {name!r}")


def open_reader(path: _Path) -> Reader:
    """Return a reader of a file, whatever its name.

    Raises:
        RecordingError: It is a folder, no recording, or one of a newer format.
        MissingExtraError: The format needs a package that is not installed.
        OSError: It can't be read.
    """
    name = os.fspath(path)
    try:
        file = open(name, "rb")  # noqa: SIM115
    except IsADirectoryError:
        raise RecordingError(f"{name!r}: expected a file, got a folder") from None
    try:
        return _reader(file, name)
    except BaseException:
        file.close()
        raise


def _reader(file: BufferedReader, name: str) -> Reader:
    magic = file.peek(4)[:4]
    if magic == b"PAR1":
        from execwatch.formats.parquet import ParquetReader

        return ParquetReader(file, name)
    from execwatch.formats.ndjson import NdjsonReader

    return NdjsonReader(file, name, compressed=magic[:2] == b"\x1f\x8b")
