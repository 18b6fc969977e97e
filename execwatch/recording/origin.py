"""Where a recording comes from: what stands at the beginning of its file."""

from __future__ import annotations

import contextlib
import platform
import time
from typing import Any, Dict, Mapping, Optional

from execwatch.filters import Filter
from execwatch.formats import Header


def here(filter: Optional[Filter], options: Mapping[str, Any]) -> Header:
    """Return the header of a recording that begins now, on this machine."""
    boot_id = offset = None
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        boot_id = file.read().strip().replace("-", "")
        offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return Header(
        version=version(),
        host=platform.node() or None,
        boot_id=boot_id,
        clock_offset_ns=offset,
        started_ns=time.time_ns(),
        filter=_filter(filter) if filter else None,
        options={name: _plain(value) for name, value in options.items()},
    )


def version() -> str:
    """Return that of this package, which is not there yet while it is imported."""
    import execwatch

    return execwatch.__version__


def _filter(filter: Filter) -> Dict[str, Any]:
    fields = {name: _plain(members) for name, members in filter.constraints().items()}
    if filter.exclude is not None:
        fields["exclude"] = _filter(filter.exclude)
    return fields


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; sets in an order that doesn't change."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return sorted(value, key=str)
