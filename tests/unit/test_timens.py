"""Start times that /proc tells with or without the shift of a time namespace."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from execwatch.kernel import timens

TICKS = st.integers(1, 10**9)


@given(st.integers(-(10**9), 10**9), TICKS, TICKS)
def test_a_shift_that_is_there_is_not_added(offset: int, age: int, up: int) -> None:
    assume(age <= up)
    now = up + offset
    assert timens.shift(offset, now, [offset, now - age]) == 0


@given(st.integers(1, 10**9) | st.integers(-(10**9), -1), TICKS)
def test_one_that_is_missing_is_added(offset: int, up: int) -> None:
    """The first process started at the machine's beginning, this one just now."""
    now = up + offset
    assert timens.shift(offset, now, [0, up]) == offset


def test_without_a_namespace_nothing_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timens, "boot_offset_ns", lambda: 0)
    timens._proc_shift_ticks.cache_clear()
    assert timens.proc_shift_ticks() == 0
