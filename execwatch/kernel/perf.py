"""perf buffers: one ring for each CPU, read through mmap(2).

The older transport of BPF programs (bpf_perf_event_output, perf_event_open(2)).
Records of different CPUs come in no order of time, so they are put into one: up
to the last millisecond, in which one may still be missing on another CPU.

A program whose record does not fit, or whose CPU has no buffer yet, gets an error
and counts it; the kernel's own PERF_RECORD_LOST says the same again.

Nobody is woken for a record (that would cost the traced program 6 us): a timer
makes the reader look.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import struct
import time
from typing import Dict, List, Optional, Tuple

from execwatch import wire
from execwatch.errors import LoadError, PrivilegeError
from execwatch.kernel import bpf, privileges

_SYSCALLS = {"x86_64": (298, 283, 286), "aarch64": (241, 85, 86)}  # perf_event_open, timerfd_*

_TYPE_SOFTWARE, _COUNT_SW_BPF_OUTPUT, _SAMPLE_RAW = 1, 10, 1 << 10
_FLAG_FD_CLOEXEC = 8
_IOC_ENABLE = 0x2400

_RECORD_SAMPLE = 9
_HEAD = struct.Struct("<IHH")
#: A sample: head, length of the data, data.
_DATA_AT = _HEAD.size + 4
_DATA_HEAD, _DATA_TAIL = 1024 // 8, 1032 // 8  # struct perf_event_mmap_page

#: What may still be missing on another CPU: so far back records are held.
_HOLD_NS = 1_000_000

#: Bytes of one CPU's buffer at the least: some records of the largest size.
_LEAST = 1 << 16

#: Seconds between two looks at which CPUs there are, and at the least between two of the timer's ticks.
_CPUS_EVERY, _TICK = 0.1, 0.001

_BOOTTIME = struct.Struct("<Q")
_BOOTTIME_AT = wire.offset_of(wire.RECORD, "boottime_ns")

#: For each CPU how far its buffer was read; a CPU that was away starts again at 0, as another one.
Position = Tuple[Tuple[Tuple[int, int], int], ...]


class PerfBuffers:
    """The buffers of all CPUs that are online, and of those that come.

    Args:
        events: The map of type PERF_EVENT_ARRAY; it stays the caller's.
        size: Bytes of all buffers together.
        latency: Seconds between two looks.

    Raises:
        PrivilegeError, LoadError: The kernel refused.
    """

    start: Position = ()

    def __init__(self, events: int, size: int, latency: float) -> None:
        self._events = events
        cpus = online_cpus()
        self._size = mmap.PAGESIZE
        while self._size * len(cpus) < size or self._size < _LEAST:
            self._size *= 2
        self._buffers: Dict[Tuple[int, int], _Buffer] = {}
        self._generation: Dict[int, int] = {}
        self._look_at = 0.0
        self._timer = _timer(max(latency, _TICK))
        try:
            self._follow_cpus()
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Return a timer: it polls readable from a tick on until the next take."""
        return self._timer

    def take(self, position: Position, barrier: bool) -> Tuple[bytes, List[int], Position]:
        """Copy the records from ``position`` on, in the order of their time.

        Args:
            position: Where the last take ended.
            barrier: Take all; otherwise those of the last millisecond are left.

        Returns:
            Bytes, where in them each record begins, and the position behind.
        """
        self._untick()
        self._follow_cpus()
        done = dict(position)
        # Snapshot all heads first: what is older than this moment lies before them.
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        heads = {key: buffer.head() for key, buffer in self._buffers.items()}
        until = None if barrier else now - _HOLD_NS
        records: List[Tuple[int, bytes]] = []
        for key, head in heads.items():
            done[key] = self._buffers[key].take(done.get(key, 0), head, until, records)
        records.sort(key=_time)
        starts, at = [], 0
        for _, data in records:
            starts.append(at)
            at += len(data)
        return b"".join(data for _, data in records), starts, tuple(done.items())

    def release(self, position: Position) -> None:
        """Give the kernel back all that lies before ``position``."""
        for key, at in position:
            if key in self._buffers:
                self._buffers[key].release(at)

    def close(self) -> None:
        """Unmap and close. Nobody may be reading."""
        while self._buffers:
            self._buffers.popitem()[1].close()
        if self._timer >= 0:
            os.close(self._timer)
            self._timer = -1

    def _follow_cpus(self) -> None:
        """Open buffers for CPUs that have come.

        A CPU that goes offline takes its event out of use, and coming back doesn't
        bring it back: it needs a new one. The old buffer stays readable.
        """
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _CPUS_EVERY
        online = online_cpus()
        for cpu in online:
            if cpu not in self._generation or self._generation[cpu] < 0:
                generation = abs(self._generation.get(cpu, 0)) + 1
                try:
                    self._buffers[cpu, generation] = _Buffer(self._events, cpu, self._size)
                except LoadError as exc:
                    if exc.errno == errno.ENODEV:  # gone again: until the next look
                        continue
                    raise
                self._generation[cpu] = generation
        for cpu in self._generation:
            if cpu not in online:
                self._generation[cpu] = -abs(self._generation[cpu])

    def _untick(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it has not ticked yet
            os.read(self._timer, 8)


class _Buffer:
    """One CPU's buffer: a page of numbers, then the data, which wraps around."""

    def __init__(self, events: int, cpu: int, size: int) -> None:
        self._size = size
        self._fd = _open_output(cpu)
        try:
            self._map = _mapped(self._fd, mmap.PAGESIZE + size)
            self._numbers = memoryview(self._map)[: mmap.PAGESIZE].cast("Q")
            bpf.map_update(events, struct.pack("<I", cpu), struct.pack("<I", self._fd))
            _ioctl(self._fd, _IOC_ENABLE)
        except BaseException:
            os.close(self._fd)
            raise

    def head(self) -> int:
        return self._numbers[_DATA_HEAD]

    def take(self, at: int, head: int, until: Optional[int], records: List[Tuple[int, bytes]]) -> int:
        """Append the records' times and bytes; return the position behind the last."""
        while at < head:
            kind, _, size = _HEAD.unpack(self._copy(at, _HEAD.size))
            if kind == _RECORD_SAMPLE:
                data = self._copy(at + _DATA_AT, size - _DATA_AT)
                boottime_ns = _BOOTTIME.unpack_from(data, _BOOTTIME_AT)[0]
                if until is not None and boottime_ns > until:
                    break
                records.append((boottime_ns, data))
            at += size
        return at

    def _copy(self, at: int, size: int) -> bytes:
        begin = at % self._size
        end = begin + size
        page = mmap.PAGESIZE
        if end <= self._size:
            return self._map[page + begin : page + end]
        return self._map[page + begin :] + self._map[page : page + end - self._size]

    def release(self, at: int) -> None:
        self._numbers[_DATA_TAIL] = at

    def close(self) -> None:
        self._numbers.release()
        self._map.close()
        os.close(self._fd)


def _mapped(fd: int, size: int) -> mmap.mmap:
    try:
        return mmap.mmap(fd, size)
    except PermissionError as exc:
        raise PrivilegeError(
            f"a perf buffer of {size} bytes a CPU is more than this user may lock: a smaller buffer_size, or "
            "sysctl kernel.perf_event_mlock_kb, ulimit -l, or CAP_IPC_LOCK"
        ) from exc


def online_cpus(path: str = "/sys/devices/system/cpu/online") -> List[int]:
    """Return the CPUs that run, e.g. of ``0-2,5``."""
    with open(path) as file:
        parts = [part.split("-") for part in file.read().strip().split(",")]
    return [cpu for part in parts for cpu in range(int(part[0]), int(part[-1]) + 1)]


def _open_output(cpu: int) -> int:
    """perf_event_open(2) for what programs on this CPU put out."""
    # type, size, config, sample_period, sample_type, read_format, flags, wakeup (a watermark nobody reaches)
    attributes = struct.pack(
        "<IIQQQQQII", _TYPE_SOFTWARE, 112, _COUNT_SW_BPF_OUTPUT, 1, _SAMPLE_RAW, 0, 1 << 14, 1 << 31, 0
    )
    try:
        return open_event(attributes, cpu)
    except PermissionError as exc:
        raise privileges.explain() from exc
    except OSError as exc:
        raise LoadError(exc.errno or 0, f"perf buffer of CPU {cpu}") from exc


def open_event(attributes: bytes, cpu: int) -> int:
    """Call perf_event_open(2) for every process.

    Raises:
        OSError: With the kernel's errno.
    """
    buffer = ctypes.create_string_buffer(attributes, 112)
    return bpf.syscall(_numbers()[0], ctypes.addressof(buffer), -1, cpu, -1, _FLAG_FD_CLOEXEC)


def _timer(seconds: float) -> int:
    """timerfd_create(2): the standard library has it only since Python 3.13."""
    _, create, settime = _numbers()
    fd = bpf.syscall(create, time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    tick = divmod(int(seconds * 1e9), 1_000_000_000)
    spec = ctypes.create_string_buffer(struct.pack("<qqqq", *tick, *tick))
    try:
        bpf.syscall(settime, fd, 0, ctypes.addressof(spec), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _numbers() -> Tuple[int, int, int]:
    return _SYSCALLS[os.uname().machine]


def _ioctl(fd: int, request: int) -> None:
    import fcntl

    fcntl.ioctl(fd, request, 0)


def _time(record: Tuple[int, bytes]) -> int:
    return record[0]
