"""The kernel as a source of events: one tracer's programs, maps and buffer.

Reading changes nothing here but the position, and that is the caller's: see
:class:`~execwatch.kernel.ring.Ring`.
"""

from __future__ import annotations

import os
import struct
import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from execwatch import wire
from execwatch.events import AnyEvent, ExecEvent, LostEvents
from execwatch.filters import Filter, user_part
from execwatch.kernel import bpf, filtering, loader, offsets, subtree
from execwatch.kernel.image import ProgramImage
from execwatch.kernel.ring import PAGE, Ring
from execwatch.source import Batch, Counts

_PROGRAMS = tuple(f"raw_tracepoint__sched_process_{what}" for what in ("exec", "fork", "exit"))

#: Bytes of the ring that one read takes at most, but for a barrier.
_BATCH = 1 << 20

#: The clock was set if Unix time moved so much against the time since boot.
_CLOCK_STEP_NS = 1_000_000

#: inode of the initial pid namespace: PROC_PID_INIT_INO, include/linux/proc_ns.h.
_INITIAL_PID_NS = 0xEFFFFFFC

#: Seconds between two lines about lost events.
_LOG_PAUSE = 10.0

_COUNTERS = wire.struct_of(wire.COUNTERS)


class Position(NamedTuple):
    """How far a reader has come.

    Attributes:
        ring: Bytes of the ring.
        lost: For each CPU that lost something: how many of that were told.
        skipped: How many skipped runs were told.
    """

    ring: int = 0
    lost: Tuple[Tuple[int, int], ...] = ()
    skipped: int = 0


class KernelSource:
    """Load and attach at construction; then read until closed.

    Args:
        image: The kernel half.
        filter: With its names resolved, or None.
        ring_size: Bytes, a power of two and whole pages.
        argv_size: Bytes of argv to keep for an event.
        lost: Whether gaps are events.

    Raises:
        PrivilegeError, NotSupportedError, LoadError, AttachError: See there.
        ValueError: The filter names a process that is not there.
    """

    def __init__(
        self,
        image: ProgramImage,
        filter: Optional[Filter],
        *,
        ring_size: int,
        argv_size: int,
        lost: bool,
    ) -> None:
        _check_pids(filter)
        self._tell_lost = lost
        self._include = user_part(filter) if filter else None
        self._exclude = user_part(filter.exclude) if filter and filter.exclude else None
        self._cpus = loader.possible_cpus()
        self._final: Optional[Counts] = None
        self._subtree_full = 0
        self._silent_until = 0.0
        self._clock = _clock()
        self._links: List[int] = []
        self._ring: Optional[Ring] = None

        kernel_filter = filtering.compile_filter(filter)
        namespace = _pid_namespace()
        self._exec, *tree = (name + ("__nested" if namespace else "") for name in _PROGRAMS)
        self._tree = tree if kernel_filter.roots else []
        self._image = loader.LoadedImage(image, [self._exec, *self._tree], _sizes(kernel_filter, ring_size))
        try:
            self._ring = Ring(self._image.maps["events"], ring_size)
            self._attach(kernel_filter, {"pid_ns": namespace, "argv_size": argv_size})
        except BaseException:
            self.close()
            raise

    def _attach(self, kernel_filter: filtering.KernelFilter, options: Dict[str, int]) -> None:
        maps = self._image.maps
        config = {**_environment(self._clock), **kernel_filter.config, **options}
        arming = 0
        for parts in kernel_filter.roots.values():
            arming |= parts
        self._configure({**config, "arming": arming})
        for key, value in kernel_filter.entries:
            bpf.map_update(maps["filters"], key, value)
        if kernel_filter.roots:
            known = subtree.scan()
            self._links += [self._image.attach(name) for name in self._tree]
            self._subtree_full = subtree.fill(maps["tree"], maps["forks"], kernel_filter.roots, known)
            self._configure(config)
        self._links.append(self._image.attach(self._exec))

    def _configure(self, config: Dict[str, int]) -> None:
        bpf.map_update(self._image.maps["config"], struct.pack("<I", 0), wire.pack(wire.CONFIG, config))

    # -- Reading ----------------------------------------------------------------

    @property
    def start(self) -> Position:
        return Position()

    def fileno(self) -> int:
        """Return a descriptor that polls readable while the ring holds something."""
        return self._image.maps["events"]

    def read(self, position: Position, barrier: bool) -> Batch:
        """Return what is behind ``position``.

        Args:
            position: Where the last read ended.
            barrier: Return all that was complete before the call, however much,
                and wait for records that are being written.
        """
        assert self._ring is not None
        end = self._ring.produced()
        data, starts, at = self._ring.take(position.ring, end, end if barrier else _BATCH)
        while barrier and at < end:
            # A program on another CPU is between reserve and submit: microseconds.
            more, more_starts, behind = self._ring.take(at, end, end)
            starts += [start + len(data) for start in more_starts]
            data, at = data + more, behind
        clock = self._clock = _clock(self._clock)
        return self._decode(data, starts, position._replace(ring=at), clock)

    def _decode(self, data: bytes, starts: List[int], position: Position, clock: wire.Clock) -> Batch:
        events: List[AnyEvent] = []
        add, decode = events.append, wire.decode
        passes = self._passes if self._include or self._exclude else None
        told = dict(position.lost)
        filtered = undecodable = 0
        for start in starts:
            try:
                event, lost, flags = decode(data, start, clock)
            except ValueError as exc:
                undecodable += 1
                _log().error("left out a record: %s", exc)
                continue
            if lost > told.get(event.cpu, 0):  # less: gaps() has told of later ones already
                # The gap lies before this record.
                self._note_lost(events, event, lost - told.get(event.cpu, 0))
                told[event.cpu] = lost
            if passes is None or passes(event, flags):
                add(event)
            else:
                filtered += 1
        # Two CPUs can step over each other by less than a microsecond.
        events.sort(key=_boottime)
        position = position._replace(lost=tuple(told.items()))
        return Batch(events, position, len(starts), filtered, undecodable)

    def _passes(self, event: ExecEvent, flags: int) -> bool:
        """The part of the filter that the kernel can't decide."""
        if self._include and not self._include(event):
            return False
        return not (self._exclude and flags & wire.FLAGS["EXCLUDED"] and self._exclude(event))

    # -- Loss ---------------------------------------------------------------------

    def _note_lost(self, events: List[AnyEvent], before: ExecEvent, count: int) -> None:
        if self._tell_lost:
            events.append(_lost(before.time_ns, before.boottime_ns, before.cpu, count, "buffer_full"))
        else:
            self._log_lost(count)

    def _log_lost(self, count: int) -> None:
        """Say so in the log, but not more often than every ten seconds."""
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + _LOG_PAUSE
            _log().warning(
                "%d execs lost, see ExecTracer.stats(): read faster, or give a larger buffer_size", count
            )

    def gaps(self, position: Position) -> Batch:
        """Return the losses that no record has told of: those at the end of a storm."""
        now = _clock_ns(time.CLOCK_BOOTTIME)
        told: Dict[int, int] = dict(position.lost)
        events: List[LostEvents] = []
        for cpu, values in enumerate(self._values()):
            count = values["lost"] - told.get(cpu, 0)
            if count > 0:
                events.append(_lost(now + self._clock.offset_ns, now, cpu, count, "buffer_full"))
                told[cpu] = values["lost"]
        skipped = self._image.skipped(self._exec)
        if skipped > position.skipped:
            count = skipped - position.skipped
            events.append(_lost(now + self._clock.offset_ns, now, None, count, "skipped"))
        if events and not self._tell_lost:
            self._log_lost(sum(event.count for event in events))
            events = []
        position = position._replace(lost=tuple(told.items()), skipped=max(skipped, position.skipped))
        return Batch(events, position, 0)

    def _values(self) -> List[Dict[str, int]]:
        values = loader.percpu_values(self._image.maps["counters"], 0, _COUNTERS.size, self._cpus)
        return [wire.unpack(wire.COUNTERS, value) for value in values]

    def counts(self) -> Counts:
        """Return the counters; after close the last ones."""
        if self._final is not None:
            return self._final
        totals = {name: 0 for _, name in wire.COUNTERS}
        for values in self._values():
            for name, value in values.items():
                totals[name] += value
        skipped = self._image.skipped(self._exec)
        return Counts(
            seen=totals["seen"] + skipped,
            filtered=totals["filtered"],
            buffer_full=totals["lost"],
            skipped=skipped,
            subtree_full=totals["tree_full"] + self._subtree_full,
            argv_unreadable=totals["argv_unreadable"],
            argv_truncated=totals["argv_truncated"],
        )

    # -- Letting go ---------------------------------------------------------------

    def release(self, position: Position) -> None:
        """Give the kernel back the room before ``position``."""
        assert self._ring is not None
        self._ring.release(position.ring)

    def detach(self) -> None:
        """Stop the programs; what is in the ring stays. From any thread or signal handler, no lock."""
        while True:
            try:
                link = self._links.pop()
            except IndexError:
                return
            os.close(link)

    def close(self) -> None:
        """Free everything. Nobody may be reading."""
        self.detach()
        if self._final is None:
            self._final = self.counts() if self._ring else Counts()
        if self._ring:
            self._ring.close()
            self._ring = None
        self._image.close()


def _lost(time_ns: int, boottime_ns: int, cpu: Optional[int], count: int, reason: Any) -> LostEvents:
    return LostEvents(
        time_ns=time_ns, boottime_ns=boottime_ns, cpu=cpu, count=count, reason=reason, of=ExecEvent.kind
    )


def _log() -> Any:
    import logging  # only where there is something to say: it costs 8 ms

    return logging.getLogger("execwatch")


def _boottime(event: AnyEvent) -> int:
    return event.boottime_ns


def _sizes(kernel_filter: filtering.KernelFilter, ring_size: int) -> Dict[str, int]:
    processes = _pid_limit() if kernel_filter.roots else 1
    return {
        "events": ring_size,
        "filters": max(1, len(kernel_filter.entries)),
        "tree": processes,
        "forks": processes,
    }


def _pid_limit() -> int:
    with open("/proc/sys/kernel/pid_max") as file:
        # Preallocated, about 80 bytes each.
        return min(int(file.read()), 65536)


def _environment(clock: wire.Clock) -> Dict[str, int]:
    """The config's members that the machine decides."""
    found = offsets.load()
    return {
        **{f"offset_{name}": found[name] for name in wire.OFFSETS},
        "tick_ns": clock.tick_ns,
        "cgroup_index": _cgroup_index(found),
    }


def _pid_namespace() -> int:
    """Return the inode of this process's pid namespace; 0 where that is the initial one."""
    inode = os.stat("/proc/self/ns/pid").st_ino
    return 0 if inode == _INITIAL_PID_NS else inode


def _cgroup_index(found: Dict[str, int]) -> int:
    """Which v1 hierarchy tells a task's cgroup; ABSENT for cgroup v2.

    /proc/cgroups shows a hierarchy number above 0 where a controller is mounted as v1.
    """
    mounted = {}
    try:
        with open("/proc/cgroups") as file:
            for line in file:
                name, hierarchy, *_ = line.split()
                mounted[name] = hierarchy
    except FileNotFoundError:
        pass
    for controller in ("memory", "pids"):
        if mounted.get(controller, "0") != "0":
            return found[f"cgroup_index_{controller}"]
    return wire.ABSENT


def _clock(previous: Optional[wire.Clock] = None) -> wire.Clock:
    """Return the clock; the previous one as long as nobody set the time."""
    offset = time.time_ns() - _clock_ns(time.CLOCK_BOOTTIME)
    if previous is not None:
        if abs(offset - previous.offset_ns) < _CLOCK_STEP_NS:
            return previous
        return wire.Clock(previous.boot_id, previous.tick_ns, offset)
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot_id = file.read().strip().replace("-", "")
    return wire.Clock(boot_id, 1_000_000_000 // os.sysconf("SC_CLK_TCK"), offset)


def _clock_ns(clock: int) -> int:
    return time.clock_gettime_ns(clock)


def _check_pids(filter: Optional[Filter]) -> None:
    for half in (filter, filter.exclude if filter else None):
        for name in ("pids", "ppids", "descendants_of"):
            for pid in (half.constraints().get(name) or ()) if half else ():
                if subtree.stat(pid) is None:
                    raise ValueError(f"{name}: there is no process {pid}; expected pids of running processes")


def ring_size(buffer_size: int) -> int:
    """Return the size that the kernel accepts: a power of two and whole pages, rounded up."""
    size = PAGE
    while size < buffer_size:
        size *= 2
    return size
