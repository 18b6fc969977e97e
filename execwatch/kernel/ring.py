"""The BPF ring buffer, read through mmap(2): no library, no callback.

Two positions count bytes and never wrap: the kernel moves the producer's, we
move the consumer's. A record is a head of 8 bytes, its length and two flags,
then its data, padded to 8. The data pages are mapped twice in a row, so a record
never has a seam. See Documentation/bpf/ringbuf.rst and kernel/bpf/ringbuf.c.

Memory order: the kernel publishes a head with release semantics, so a reader has
to load heads before data. x86 keeps loads in order. Elsewhere the uncontended lock
taken between the two is the barrier.
"""

from __future__ import annotations

import mmap
import threading
from typing import List, Tuple

PAGE = mmap.PAGESIZE

_BUSY, _DISCARD = 1 << 31, 1 << 30
_LENGTH = _DISCARD - 1
_HEAD = 8

#: Bytes that one take copies at most, but for a barrier.
_BATCH = 1 << 20


class Ring:
    """One ring buffer map, mapped.

    The position is the caller's: :meth:`take` doesn't move it, :meth:`release`
    tells the kernel. So nothing is lost where a reader is interrupted between.

    Args:
        fd: The map; it stays the caller's.
        size: Its size in bytes, a power of two and whole pages.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._consumer = mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer = mmap.mmap(fd, PAGE + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=PAGE)
        self._barrier = threading.Lock()
        self._views = (
            memoryview(self._consumer).cast("Q"),
            memoryview(self._producer)[:8].cast("Q"),
            memoryview(self._producer)[PAGE:].cast("I"),
        )

    start = 0

    def fileno(self) -> int:
        """Return the map: it polls readable while there is a record behind what was released."""
        return self._fd

    def take(self, position: int, barrier: bool) -> Tuple[bytes, List[int], int]:
        """Copy the finished records from ``position`` on.

        Args:
            position: Where the last take ended.
            barrier: Take all that was reserved before the call, and wait for those
                that are still being written: a program on another CPU, microseconds.
                Otherwise stop there, and after about a megabyte.

        Returns:
            The bytes of the records, where in them each record's data begins, and
            the position behind.
        """
        end = self._views[1][0]
        starts: List[int] = []
        at = self._scan(position, end if barrier else min(end, position + _BATCH), position, starts)
        while barrier and at < end:
            at = self._scan(at, end, position, starts)
        with self._barrier:
            pass
        begin = PAGE + (position & (self._size - 1))
        return self._producer[begin : begin + at - position], starts, at

    def _scan(self, at: int, stop: int, position: int, starts: List[int]) -> int:
        """Note where finished records begin, relative to ``position``; return the position behind."""
        words, mask, append = self._views[2], self._size - 1, starts.append
        data = _HEAD - position
        while at < stop:
            head = words[(at & mask) >> 2]
            if head <= _LENGTH:
                append(at + data)
            elif head & _BUSY:
                break
            at += ((head & _LENGTH) + _HEAD + 7) & -8
        return at

    def release(self, position: int) -> None:
        """Give the kernel back all that lies before ``position``."""
        self._views[0][0] = position

    def close(self) -> None:
        """Unmap. Nobody may be reading."""
        for view in self._views:
            view.release()
        self._producer.close()
        self._consumer.close()
