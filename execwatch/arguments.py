"""Checks of arguments: each names the argument, what it accepts, and what it got."""

from __future__ import annotations

import inspect
import time
from typing import Any, FrozenSet, Iterable, Mapping, Optional, Tuple


def deadline(timeout: Optional[float]) -> Optional[float]:
    """Return when a timeout that begins now ends, by :func:`time.monotonic`."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout: expected seconds or None, got {timeout!r}")
    if not timeout >= 0:
        raise ValueError(f"timeout: expected 0 or more seconds, or None, got {timeout!r}")
    return time.monotonic() + timeout


def check_int(name: str, value: Any, least: int, most: Optional[int]) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if value < least or (most is not None and value > most):
        accepted = f"{least:,} or more" if most is None else f"{least:,} to {most:,}"
        raise ValueError(f"{name}: expected {accepted}, got {value!r}")


def check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


def check_choice(name: str, value: Any, choices: Tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def check_callback(fn: Any) -> None:
    if not callable(fn):
        raise TypeError(f"fn: expected a callable, got {fn!r}")
    if inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__):
        raise TypeError(f"fn: {fn!r} is a coroutine function; use 'async for' over the tracer instead")


def check_collection(name: str, value: Any, expected: str) -> Tuple[Any, ...]:
    """Return the members; strings and mappings are none, though they could be iterated over."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    return tuple(value)


def check_choices(name: str, value: Any, choices: Tuple[str, ...]) -> FrozenSet[Any]:
    expected = f"a collection of {', '.join(map(repr, choices))}"
    members = check_collection(name, value, expected)
    for member in members:
        if not isinstance(member, str):
            raise TypeError(f"{name}: expected {expected}, got {member!r}")
        if member not in choices:
            raise ValueError(f"{name}: expected {expected}, got {member!r}")
    return frozenset(members)
