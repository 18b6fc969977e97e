"""What a file begins with, and what it ends with."""

from __future__ import annotations

from typing import Any, Dict, Optional

import attrs
from typing_extensions import final

from execwatch.events import Stats
from execwatch.plain import from_plain, short, to_plain

#: The format that is written. Every older one is read.
FORMAT = 1


@final
@attrs.frozen(kw_only=True, weakref_slot=False)
class Header:
    """What a recording says of itself before its first event.

    Attributes:
        format: Number of the file's format.
        version: Of the execwatch that recorded it.
        host: Name of the machine.
        boot_id: Names the boot, as in ``process_key``.
        clock_offset_ns: Unix time less CLOCK_BOOTTIME, when it began.
        started_ns: Unix time at which it began.
        filter: What was asked for, in JSON types; None: everything.
        options: Of the tracer, in JSON types.
    """

    format: int = FORMAT
    version: str
    host: Optional[str] = None
    boot_id: Optional[str] = None
    clock_offset_ns: Optional[int] = None
    started_ns: Optional[int] = None
    filter: Optional[Dict[str, Any]] = None
    options: Dict[str, Any] = attrs.field(factory=dict)


def header_to_dict(header: Header) -> Dict[str, Any]:
    """Return it as JSON types, of the format that is written now."""
    data, raw = to_plain(attrs.evolve(header, format=FORMAT))
    return {"kind": "header", **data, **({"raw": raw} if raw else {})}


def header_from_dict(data: Any) -> Header:
    """Return what :func:`header_to_dict` told of; keys that this version doesn't know are ignored.

    Raises:
        ValueError: It is no header, or that of a newer format.
    """
    if type(data) is not dict or data.get("kind") != "header":
        raise ValueError(f'expected a header, {{"kind": "header", ...}}, got {short(data)}')
    number = data.get("format")
    if type(number) is not int or number < 1:
        raise ValueError(f"format: expected a number from 1 to {FORMAT}, got {short(number)}")
    if number > FORMAT:
        raise ValueError(
            f"format {short(number)} is newer than {FORMAT}, the last that this version of execwatch reads: "
            "pip install --upgrade execwatch"
        )
    return from_plain(Header, data, data.get("raw"))


def stats_from_dict(data: Any) -> Stats:
    """Return the final counters.

    Raises:
        ValueError: They are none.
    """
    if type(data) is not dict:
        raise ValueError(f"stats: expected an object, got {short(data)}")
    try:
        return from_plain(Stats, data)
    except ValueError as exc:
        raise ValueError(f"stats: {exc}") from None
