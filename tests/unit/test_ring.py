from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import struct
import threading
from typing import Any, Iterator, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execwatch.kernel import ring as ring_module
from execwatch.kernel.ring import PAGE, Ring

BUSY, DISCARD = 1 << 31, 1 << 30


class Kernel:
    """The kernel's side of a ring, over a memfd: consumer page, producer page, data twice.

    The kernel maps the data pages two times; a file has to hold them two times.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE + 2 * size)
        self._memory = mmap.mmap(self.fd, 2 * PAGE + 2 * size)
        self.produced = 0

    @property
    def consumed(self) -> int:
        return int(struct.unpack_from("<Q", self._memory, 0)[0])

    def start_at(self, position: int) -> None:
        """As if so many bytes had gone through already."""
        self.produced = position
        struct.pack_into("<Q", self._memory, 0, position)
        self._publish()

    def reserve(self, length: int) -> int:
        """Return where the record stands; it is busy until submitted."""
        assert self.produced + self._whole(length) - self.consumed <= self.size, "no room"
        at = self.produced
        self._put(at, struct.pack("<II", length | BUSY, at >> 12))
        self.produced += self._whole(length)
        self._publish()
        return at

    def submit(self, at: int, data: bytes, flags: int = 0) -> None:
        self._put(at + 8, data)
        self._put(at, struct.pack("<I", len(data) | flags))

    def write(self, data: bytes, flags: int = 0) -> None:
        self.submit(self.reserve(len(data)), data, flags)

    def has_room(self, length: int) -> bool:
        return self.produced + self._whole(length) - self.consumed <= self.size

    def close(self) -> None:
        self._memory.close()
        os.close(self.fd)

    @staticmethod
    def _whole(length: int) -> int:
        return (length + 8 + 7) // 8 * 8

    def _put(self, at: int, data: bytes) -> None:
        for number, byte in enumerate(data):
            place = (at + number) % self.size
            self._memory[2 * PAGE + place] = byte
            self._memory[2 * PAGE + self.size + place] = byte

    def _publish(self) -> None:
        struct.pack_into("<Q", self._memory, PAGE, self.produced)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel(PAGE)
    yield kernel
    kernel.close()


@pytest.fixture
def ring(kernel: Kernel) -> Iterator[Ring]:
    ring = Ring(kernel.fd, kernel.size)
    yield ring
    ring.close()


def take(ring: Ring, lengths: List[int], position: int, barrier: bool = False) -> tuple[List[bytes], int]:
    """Return the records as bytes: each is as long as ``lengths`` say."""
    data, starts, behind = ring.take(position, barrier)
    return [data[start : start + length] for start, length in zip(starts, lengths)], behind


def test_an_empty_ring_has_nothing(ring: Ring) -> None:
    assert ring.start == 0
    assert ring.take(0, False) == ring.take(0, True) == (b"", [], 0)


def test_records_come_whole_and_in_order(kernel: Kernel, ring: Ring) -> None:
    for data in (b"one", b"twotwotwo", b"", b"x" * 64):
        kernel.write(data)
    records, behind = take(ring, [3, 9, 0, 64], 0)
    assert records == [b"one", b"twotwotwo", b"", b"x" * 64]
    assert behind == kernel.produced


def test_taking_does_not_move_the_consumer(kernel: Kernel, ring: Ring) -> None:
    kernel.write(b"data")
    assert ring.take(0, False) == ring.take(0, False)
    assert kernel.consumed == 0


def test_release_tells_the_kernel(kernel: Kernel, ring: Ring) -> None:
    kernel.write(b"data")
    ring.release(kernel.produced)
    assert kernel.consumed == kernel.produced == 16


def test_stops_at_a_record_that_is_being_written(kernel: Kernel, ring: Ring) -> None:
    kernel.write(b"first")
    busy = kernel.reserve(6)
    kernel.write(b"third")
    records, behind = take(ring, [5], 0)
    assert records == [b"first"]
    assert behind == busy
    assert ring.take(busy, False) == (b"", [], busy)
    kernel.submit(busy, b"second")
    records, behind = take(ring, [6, 5], busy)
    assert records == [b"second", b"third"]
    assert behind == kernel.produced


def test_discarded_records_are_stepped_over(kernel: Kernel, ring: Ring) -> None:
    for data, flags in ((b"a", 0), (b"gone" * 9, DISCARD), (b"bb", 0), (b"last", DISCARD)):
        kernel.write(data, flags)
    records, behind = take(ring, [1, 2], 0)
    assert records == [b"a", b"bb"]
    assert behind == kernel.produced


def test_a_discarded_record_that_is_still_busy_is_waited_for(kernel: Kernel, ring: Ring) -> None:
    kernel.write(b"x", BUSY | DISCARD)
    assert ring.take(0, False) == (b"", [], 0)


def test_a_barrier_waits_for_what_is_being_written_and_takes_nothing_newer(
    kernel: Kernel, ring: Ring
) -> None:
    kernel.write(b"first")
    busy = kernel.reserve(6)
    threads = [threading.Thread(target=finish, args=(kernel, busy))]
    with begun(ring, threads):
        records, behind = take(ring, [5, 6], 0, barrier=True)
    assert records == [b"first", b"second"]
    assert behind == busy + 16
    assert take(ring, [5], behind) == ([b"third"], kernel.produced)


def finish(kernel: Kernel, busy: int) -> None:
    kernel.write(b"third")
    kernel.submit(busy, b"second")


@contextlib.contextmanager
def begun(ring: Ring, threads: List[threading.Thread]) -> Iterator[None]:
    """Start the threads when the ring is looked through for the first time."""
    scan = ring._scan

    def starting(*arguments: Any) -> int:
        for thread in threads:
            if thread.ident is None:
                thread.start()
        return scan(*arguments)

    ring._scan = starting  # type: ignore[method-assign]
    yield
    for thread in threads:
        thread.join()


def test_a_batch_ends_behind_a_whole_record(
    kernel: Kernel, ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(10):
        kernel.write(b"x" * 24)
    monkeypatch.setattr(ring_module, "_BATCH", 40)
    records, behind = take(ring, [24] * 10, 0)
    assert records == [b"x" * 24] * 2
    assert behind == 64
    assert len(take(ring, [24] * 10, 0, barrier=True)[0]) == 10
    monkeypatch.setattr(ring_module, "_BATCH", 1)
    assert len(take(ring, [24] * 10, 0)[0]) == 1


def test_a_record_across_the_end_has_no_seam(kernel: Kernel, ring: Ring) -> None:
    position = 5 * kernel.size - 24
    kernel.start_at(position)
    data = bytes(range(200))
    kernel.write(data)
    records, behind = take(ring, [200], position)
    assert records == [data]
    assert behind == position + 208


def test_a_full_ring_is_read_whole_wherever_it_begins(kernel: Kernel, ring: Ring) -> None:
    position = 7 * kernel.size + 1000
    kernel.start_at(position)
    numbers = list(range(kernel.size // 16))
    for number in numbers:
        kernel.write(struct.pack("<Q", number))
    records, behind = take(ring, [8] * len(numbers), position)
    assert [struct.unpack("<Q", record)[0] for record in records] == numbers
    assert behind == position + kernel.size


def test_positions_beyond_four_gibibytes_are_not_cut(kernel: Kernel, ring: Ring) -> None:
    position = (1 << 40) + kernel.size - 8
    kernel.start_at(position)
    kernel.write(b"far")
    assert take(ring, [3], position) == ([b"far"], position + 16)
    ring.release(position + 16)
    assert kernel.consumed == position + 16


def test_the_mapping_goes_with_close_and_the_descriptor_stays(kernel: Kernel) -> None:
    def mapped() -> int:
        with open("/proc/self/maps") as file:
            return sum("memfd:ring" in line for line in file)

    before = mapped()
    ring = Ring(kernel.fd, kernel.size)
    assert mapped() > before
    ring.close()
    assert mapped() == before
    os.fstat(kernel.fd)


STEPS = st.lists(
    st.tuples(st.integers(0, PAGE - 16), st.sampled_from([0, 0, 0, DISCARD]), st.integers(1, 2 * PAGE)),
    max_size=25,
)


@given(STEPS, st.integers(0, 1 << 34).map(lambda number: number * 8))
def test_nothing_is_lost_or_changed_whatever_the_sizes(steps: List[tuple[int, int, int]], start: int) -> None:
    """Write as long as there is room, else read a part and release it."""
    batch = ring_module._BATCH
    kernel = Kernel(PAGE)
    ring = Ring(kernel.fd, kernel.size)
    try:
        kernel.start_at(start)
        position, written, read = start, [], []
        fill = itertools.cycle(range(1, 251))

        def read_some(limit: int) -> int:
            ring_module._BATCH = limit
            pending = [len(data) for data in written[len(read) :]]
            records, behind = take(ring, pending, position)
            read.extend(records)
            ring.release(behind)
            return behind

        for length, flags, limit in steps:
            while not kernel.has_room(length):
                position = read_some(limit)
            data = bytes((next(fill),)) * length
            kernel.write(data, flags)
            if not flags:
                written.append(data)
        while position < kernel.produced:
            position = read_some(PAGE)
        assert read == written
        assert kernel.consumed == kernel.produced
    finally:
        ring_module._BATCH = batch
        ring.close()
        kernel.close()
