"""The kernel as a source of events: one tracer's programs, maps and buffer.

Reading changes nothing here but the position, and that is the caller's: see
:class:`~execwatch.kernel.ring.Ring`. (And how much of the next events is decoded at once.)
"""

from __future__ import annotations

import os
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Union

import attrs

from execwatch import decoder, wire
from execwatch.errors import LoadError, NotSupportedError
from execwatch.events import AnyEvent, AnyProcessEvent, LostEvents
from execwatch.filters import Filter, container_test, user_exclusion, user_part
from execwatch.kernel import bpf, filtering, kprobe, loader, setup
from execwatch.kernel.image import ProgramImage
from execwatch.kernel.losses import Ledger, Losses
from execwatch.kernel.perf import PerfBuffers
from execwatch.kernel.ring import Ring
from execwatch.source import COUNTED, Batch, Counts, KindCounts

if TYPE_CHECKING:
    from execwatch.processes import Process

_boottime = attrgetter("boottime_ns")
_COUNTERS = wire.struct_of(wire.COUNTERS)
_EXCLUDED, _UNDECIDED, _UNWANTED = (wire.FLAGS[name] for name in ("EXCLUDED", "UNDECIDED", "UNWANTED"))

#: The kinds in the order of their counters.
_KINDS = dict(zip(COUNTED, wire.KINDS.values()))


#: What the table of processes is made of.
_TRACKED = ("exec", "fork", "exit")

#: Returns the image, given what may be left out of it.
LoadImage = Callable[[Tuple[str, ...]], ProgramImage]


class Position(NamedTuple):
    """How far a reader has come.

    Attributes:
        buffer: In the ring or in the perf buffers, as those count.
        ledger: Which losses were told.
    """

    buffer: Any
    ledger: Ledger = Ledger()


class KernelSource:
    """Load and attach at construction; then read until closed.

    Args:
        load_image: Returns the kernel half, with the macros given that leave out parts of it.
        filter: With its names resolved, or None.
        options: What to trace, through which buffer.
        lost: Whether gaps are events.

    Raises:
        PrivilegeError, NotSupportedError, LoadError, AttachError: See there.
        ValueError: The filter names a process that is not there.
    """

    def __init__(
        self, load_image: LoadImage, filter: Optional[Filter], options: setup.Options, *, lost: bool
    ) -> None:
        _check_pids(filter)
        self._load_image = load_image
        self._options = options
        self._tracking = False
        self._detached = False
        self._losses = Losses(as_events=lost)
        self._filter = filter
        self._include = user_part(filter) if filter else None
        self._exclude = user_exclusion(filter.exclude) if filter and filter.exclude else None
        self._env = options.env
        self._cpus = loader.possible_cpus()
        self._final: Optional[Counts] = None
        self._subtree_full = 0
        self._clock = setup.read_clock()
        self._links: List[int] = []
        self._buffer: Union[Ring, PerfBuffers, None] = None

        kernel_filter = filtering.compile_filter(filter)
        image = load_image(setup.defines(options, bool(kernel_filter.roots)))
        plan = setup.plan(options, kernel_filter, self._clock)
        try:
            self._image = _load(image, plan)
        except LoadError as exc:
            if not plan.types or not exc.log:  # without: no verifier's word
                raise
            _log_untyped(exc)
            plan = setup.plan(options, kernel_filter, self._clock, typed=False)
            self._image = _load(image, plan)
        #: Never changed in place: other threads count while one attaches more.
        self._programs = dict(plan.programs)
        self._planned = frozenset(plan.programs.values())
        self._kinds = plan.kinds
        self._missed = 0
        self._demand = decoder.Demand()
        self._left = 0  # events of the last batch that have not been decoded whole
        try:
            if options.buffer == "perf":
                self._buffer = PerfBuffers(
                    self._image.maps["perf_events"], options.buffer_size, options.latency
                )
            else:
                self._buffer = Ring(self._image.maps["events"], options.buffer_size)
            self._attach(kernel_filter, plan)
        except BaseException:
            self.close()
            raise
        self.start: Position = Position(self._buffer.start)

    def _attach(self, kernel_filter: filtering.KernelFilter, plan: setup.Setup) -> None:
        maps = self._image.maps
        arming = 0
        for parts in kernel_filter.roots.values():
            arming |= parts
        if arming:
            from execwatch.kernel import subtree  # late: most filters name no processes
        self._switch(arming=arming)
        for key, value in kernel_filter.entries:
            bpf.map_update(maps["filters"], key, value)
        known = subtree.scan() if arming else {}
        for name, target in plan.attachments:
            if arming and plan.programs[name] not in ("fork", "exit"):
                self._subtree_full = subtree.fill(maps["tree"], maps["forks"], kernel_filter.roots, known)
                self._switch(arming=0)
                arming = 0
            self._link(name, target)

    def _link(self, name: str, target: str) -> None:
        try:
            self._links.append(self._image.attach(name, target))
        except NotSupportedError:
            if target not in kprobe.OPTIONAL:
                raise
        if self._detached:  # meanwhile: that had not this one yet
            self.detach()

    def _switch(self, **values: int) -> None:
        """Tell the programs that run: members of ``wire.SWITCHES``, others are 0."""
        bpf.map_update(self._image.maps["switches"], bytes(4), wire.pack(wire.SWITCHES, values))

    # -- Reading ----------------------------------------------------------------

    def fileno(self) -> int:
        """Return a descriptor that polls readable while the buffer holds something."""
        assert self._buffer is not None
        return self._buffer.fileno()

    def read(self, position: Position, barrier: bool) -> Batch:
        """Return what is behind ``position``.

        Args:
            position: Where the last read ended.
            barrier: Return all that was complete before the call, however much,
                and wait for records that are being written.
        """
        assert self._buffer is not None
        data, starts, behind = self._buffer.take(position.buffer, barrier)
        self._clock = setup.read_clock(self._clock)
        return self._decode(data, starts, position._replace(buffer=behind))

    def _decode(self, data: bytes, starts: List[int], position: Position) -> Batch:
        whole = self._is_all_wanted(len(starts))
        events, marks, errors = decoder.decode_all(data, starts, self._clock, self._env, self._demand, whole)
        for error in errors:
            _log_undecodable(error)
        if marks or self._tracking or self._include or self._exclude:
            return self._sort_out(events, marks, position)._replace(undecodable=len(errors))
        # Two CPUs can step over each other by less than a microsecond.
        events.sort(key=_boottime)
        return Batch(events, position, undecodable=len(errors))

    def _sort_out(
        self, decoded: List[AnyProcessEvent], marks: Dict[int, Tuple[int, int]], position: Position
    ) -> Batch:
        """Leave out what the filter does, and tell of gaps.

        Args:
            marks: As in :class:`execwatch.decoder.Decoded`.
        """
        events: List[AnyEvent] = []
        history: List[AnyEvent] = []
        told = dict(position.ledger.told)
        filtered: Dict[str, int] = {}
        for number, event in enumerate(decoded):
            lost, flags = marks.get(number, (0, 0))
            if lost:
                self._gaps(self._losses.before(event, lost, told), events, history)
            if self._tracking:
                history.append(event)
                if event.kind not in self._kinds:
                    continue
            if not flags & _UNWANTED and self._passes(event, flags):
                events.append(event)
            else:
                filtered[event.kind] = filtered.get(event.kind, 0) + 1
        events.sort(key=_boottime)
        history.sort(key=_boottime)
        if told:
            position = position._replace(ledger=position.ledger._replace(told=tuple(told.items())))
        return Batch(events, position, filtered, history=history)

    def _is_all_wanted(self, count: int) -> bool:
        """Whether events shall be decoded whole, all but the first of so many.

        If more than half of those that were not were asked for the rest. The first of each batch
        shows whether that is still so.
        """
        if not count:
            return False
        wanted = self._demand.count > self._left / 2
        self._demand.count, self._left = 0, 1 if wanted else count
        return wanted

    def _gaps(self, gaps: List[LostEvents], events: List[AnyEvent], history: List[AnyEvent]) -> None:
        if self._tracking:
            history += gaps
        self._losses.tell([gap for gap in gaps if gap.of in self._kinds], events)

    def _passes(self, event: AnyProcessEvent, flags: int) -> bool:
        """The part of the filter that the kernel can't decide."""
        if flags & _UNDECIDED:
            self._decide_container(event)
        if self._include and not self._include(event):
            return False
        return not (self._exclude and flags & _EXCLUDED and self._exclude(event))

    def _decide_container(self, event: AnyProcessEvent) -> None:
        """Tell the kernel what to think of this event's cgroup from now on."""
        assert self._filter is not None
        if event.cgroup_id is None or event.cgroup_path is None:
            return
        parts = 0
        for part, half in ((wire.INCLUDE, self._filter), (wire.EXCLUDE, self._filter.exclude)):
            if half and half.containers is not None and container_test(half.containers)(event):
                parts |= part
        key, value = event.cgroup_id.to_bytes(8, "little"), bytes((parts,))
        bpf.map_update(self._image.maps["containers"], key, value)

    def gaps(self, position: Position) -> Batch:
        """Return the losses that no record has told of."""
        events: List[AnyEvent] = []
        history: List[AnyEvent] = []
        kinds = {*self._kinds, *_TRACKED} if self._tracking else self._kinds
        lost = {
            (cpu, kind): values["lost"] for kind in kinds for cpu, values in enumerate(self._values(kind))
        }
        skipped = {kind: count for kind, count in self._skipped().items() if kind in kinds}
        ledger, gaps = self._losses.behind(position.ledger, lost, skipped, self._clock.offset_ns)
        self._gaps(gaps, events, history)
        return Batch(events, position._replace(ledger=ledger), history=history)

    # -- The table of processes ---------------------------------------------------

    def track(self) -> List[Process]:
        """Attach what the table of processes needs; return what /proc shows of processes that run.

        No process is missed: what starts or ends from now on is in the history, and /proc is
        read after that. A process may be in both. Where it was interrupted or failed, it can be
        called again. Others may read meanwhile; nobody may close.
        """
        from execwatch.kernel import procfs  # late: most tracers don't need it

        before = procfs.scan(self._clock)
        self._attach_tracking()
        found = procfs.scan(self._clock)
        return [_with_parent_of(before.get(key), process) for key, process in found.items()]

    def _attach_tracking(self) -> None:
        needed = setup.tracking()
        missing = [name for name in needed if name not in self._programs]
        if missing:
            self._image.load(self._load_image(setup.defines(self._options, True)), missing)
        self._switch(track=1)
        self._tracking = True
        for name in missing:
            kind, target = needed[name]
            self._link(name, target)
            # Behind the link: where an interrupt comes between, it is linked twice rather than never.
            self._programs = {**self._programs, name: kind}

    # -- Counting -----------------------------------------------------------------

    def _values(self, kind: str) -> List[Dict[str, int]]:
        values = loader.percpu_values(self._image.maps["counters"], _KINDS[kind], _COUNTERS.size, self._cpus)
        return [wire.unpack(wire.COUNTERS, value) for value in values]

    def _skipped(self) -> Dict[str, int]:
        """Runs of programs that the kernel left out, by the kind of event that went with them."""
        skipped: Dict[str, int] = {}
        for name, kind in self._programs.items():
            # A return that was left out shows in the calls that have none.
            if not name.startswith("kretprobe"):
                skipped[kind] = skipped.get(kind, 0) + self._image.skipped(name)
        if "in_flight" in self._image.maps:
            skipped["exec"] += self._missed_returns()
        return skipped

    def _missed_returns(self) -> int:
        """With kprobes: calls that began and of whose return the kernel told nothing.

        A kretprobe can follow so many calls at once, and no more. In this order of
        reading, what happens meanwhile can only make the number too small.
        """
        entered = sum(value["entered"] for value in self._values("exec"))
        in_flight = kprobe.count_in_flight(self._image.maps["in_flight"])
        returned = sum(value["returned"] for value in self._values("exec"))
        self._missed = max(self._missed, entered - in_flight - returned)
        return self._missed

    def counts(self) -> Counts:
        """Return the counters; after close the last ones."""
        if self._final is not None:
            return self._final
        kinds: Dict[str, KindCounts] = {}
        extra = {"tree_full": self._subtree_full, "argv_truncated": 0, "argv_unreadable": 0}
        skipped = self._skipped()
        for kind in COUNTED:
            values = self._values(kind)
            totals = {name: sum(value[name] for value in values) for _, name in wire.COUNTERS}
            missed = skipped.get(kind, 0)
            for name in extra:
                extra[name] += totals[name]
            if kind in self._kinds:
                kinds[kind] = KindCounts(totals["seen"] + missed, totals["filtered"], totals["lost"], missed)
            else:
                kinds[kind] = KindCounts()
                # Its program keeps the filter's tree; what the table of processes lacks, that tells itself.
                extra["tree_full"] += missed if kind in self._planned else 0
        return Counts(kinds, extra["tree_full"], extra["argv_truncated"], extra["argv_unreadable"])

    # -- Letting go ---------------------------------------------------------------

    def release(self, position: Position) -> None:
        """Give the kernel back the room before ``position``."""
        assert self._buffer is not None
        self._buffer.release(position.buffer)

    def detach(self) -> None:
        """Stop the programs; what is in the buffer stays. From any thread or signal handler, no lock."""
        self._detached = True
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
            self._final = self.counts()
        if self._buffer:
            self._buffer.close()
            self._buffer = None
        self._image.close()


def open_source(
    load_image: LoadImage, filter: Optional[Filter], options: setup.Options, *, lost: bool
) -> KernelSource:
    """Return the source; with ``probe="auto"`` by kprobes where the kernel has no tracepoint."""

    def open_with(probe: str) -> KernelSource:
        return KernelSource(load_image, filter, attrs.evolve(options, probe=probe), lost=lost)

    if options.probe != "auto":
        return open_with(options.probe)
    try:
        return open_with("tracepoint")
    except NotSupportedError as exc:
        if not exc.feature.startswith("tracepoint"):
            raise
        return open_with("kprobe")


def _load(image: ProgramImage, plan: setup.Setup) -> loader.LoadedImage:
    frozen = {"config": wire.pack(wire.CONFIG, plan.config)}
    return loader.LoadedImage(image, plan.programs, plan.sizes, frozen, plan.types)


def _log_untyped(exc: LoadError) -> None:
    import logging

    # The same events, a microsecond later.
    logging.getLogger("execwatch").info("this kernel refuses typed programs, going on without: %s", exc)


def _log_undecodable(exc: ValueError) -> None:
    import logging  # only where there is something to say: it costs 8 ms

    logging.getLogger("execwatch").error("left out a record: %s", exc)


def _with_parent_of(before: Optional[Process], process: Process) -> Process:
    """Return the process with the parent that it had before: that may have ended in between."""
    if before is None:
        return process
    return attrs.evolve(process, ppid=before.ppid, parent_key=before.parent_key)


def _check_pids(filter: Optional[Filter]) -> None:
    halves = [half for half in (filter, filter.exclude if filter else None) if half]
    named = [
        (name, pid)
        for half in halves
        for name in ("pids", "ppids", "descendants_of")
        for pid in half.constraints().get(name) or ()
    ]
    if named:
        from execwatch.kernel import subtree

        for name, pid in named:
            if subtree.stat(pid) is None:
                raise ValueError(f"{name}: there is no process {pid}; expected pids of running processes")
