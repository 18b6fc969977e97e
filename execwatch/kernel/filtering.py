"""A filter as the kernel half reads it: entries of maps, and which of them have to hit."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Tuple

import attrs

from execwatch import wire
from execwatch.filters import USER_FIELDS, Filter

#: The kernel's name of each field that it decides.
_FIELDS = {
    "uids": "uid",
    "pids": "pid",
    "ppids": "ppid",
    "comms": "comm",
    "cgroups": "cgroup",
    "mount_ns": "mnt_ns",
    "descendants_of": "tree",
    "containers": "container",
}


@attrs.frozen
class KernelFilter:
    """What goes into the maps.

    Attributes:
        config: Members of ``wire.CONFIG``.
        entries: Of the map ``filters``: key and value.
        roots: Processes whose descendants count, each with the parts that name it.
    """

    config: Mapping[str, int]
    entries: Tuple[Tuple[bytes, bytes], ...]
    roots: Mapping[int, int]


def compile_filter(filter: Optional[Filter]) -> KernelFilter:
    """Return the kernel's part of a filter whose names are resolved."""
    parts: Dict[Tuple[str, Any], int] = {}
    masks = {wire.INCLUDE: 0, wire.EXCLUDE: 0}
    exclude = filter.exclude if filter else None
    for part, half in ((wire.INCLUDE, filter), (wire.EXCLUDE, exclude)):
        for name, members in half.constraints().items() if half else ():
            if name in USER_FIELDS:
                continue
            field = _FIELDS[name]
            masks[part] |= wire.FILTER_BITS[field]
            # What a container's cgroup is, Python finds out as it comes.
            for member in members if name != "containers" else ():
                parts[field, member] = parts.get((field, member), 0) | part
    return KernelFilter(
        config={
            "include": masks[wire.INCLUDE],
            # Without an exclusion a bit that nothing ever hits.
            "exclude": masks[wire.EXCLUDE] if exclude else wire.NEVER,
            "exclude_final": int(bool(exclude and not set(USER_FIELDS) & set(exclude.constraints()))),
        },
        entries=tuple(
            (_key(field, member), bytes((bits,)))
            for (field, member), bits in parts.items()
            if field != "tree"
        ),
        roots={member: bits for (field, member), bits in parts.items() if field == "tree"},
    )


def _key(field: str, member: Any) -> bytes:
    if isinstance(member, str):
        value = member.encode("utf-8", "surrogateescape")
    else:
        value = member.to_bytes(8, "little")
    return wire.pack(wire.FILTER_KEY, {"value": value, "field": wire.FILTER_BITS[field]})
