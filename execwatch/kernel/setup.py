"""What a tracer's options mean for the kernel: which programs, how large maps, what configuration."""

from __future__ import annotations

import os
import time
from typing import FrozenSet, List, Mapping, Optional, Tuple

import attrs

from execwatch import wire
from execwatch.errors import NotSupportedError
from execwatch.kernel import filtering, kprobe, loader, offsets, probes, timens

#: Unix time moved so much against the time since boot: the clock was set.
_CLOCK_STEP_NS = 1_000_000

#: Of the ring: how much of it what is frequent and of lesser value may fill.
_SHARE_FAILED, _SHARE_PROCESS = 0.5, 0.75

#: Processes whose end is remembered, so that it is told once. It only has to
#: outlast the microseconds in which several threads of one process go.
_ENDED = 4096

#: Calls that are between their entry and their return, with kprobes; 8 KiB each.
_IN_FLIGHT = 512

#: Cgroups whose containers the kernel remembers to match or not; of others Python is asked again.
_CGROUPS = 16384


@attrs.frozen
class Options:
    """A tracer's own options, as :class:`~execwatch.ExecTracer` explains them."""

    probe: str
    buffer_size: int
    argv_size: int
    buffer: str = "ring"
    latency: float = 0.0
    failed: bool = False
    forks: bool = False
    exits: bool = False
    capture: FrozenSet[str] = frozenset()
    env: wire.EnvNames = False


@attrs.frozen
class Setup:
    """What to load.

    Attributes:
        programs: The kind that each program counts for, by the program's name.
        attachments: Program and tracepoint or function, in order: what brings in
            data for others first, so that those find it.
        kinds: The kinds of events that were asked for.
        sizes: Entries of those maps whose size isn't the image's.
        config: Members of ``wire.CONFIG``.
        types: Of tracepoints' arguments, by the tracepoint: what their programs are told.
    """

    programs: Mapping[str, str]
    attachments: Tuple[Tuple[str, str], ...]
    kinds: Tuple[str, ...]
    sizes: Mapping[str, int]
    config: Mapping[str, int]
    types: Mapping[str, int]


def plan(
    options: Options, kernel_filter: filtering.KernelFilter, clock: wire.Clock, *, typed: bool = True
) -> Setup:
    """Work out what to load on this kernel.

    Args:
        typed: Tell programs the types of what tracepoints give them, where this kernel tells them all.

    Raises:
        NotSupportedError: The kernel or machine lacks what an option needs.
    """
    found = offsets.load()
    namespace = probes.pid_namespace()
    tree = bool(kernel_filter.roots)
    if options.failed and found["offset_regs_orig_ax"] == wire.ABSENT:
        raise NotSupportedError("failed execs on this architecture", hint="x86_64 has them")
    chosen = _processes(found, forks=options.forks or tree, exits=options.exits or tree)
    chosen += _kprobes() if options.probe == "kprobe" else _tracepoints(options.failed)
    named = [(kind, _variant(name, bool(namespace)), targets) for kind, name, targets in chosen]
    perf = options.buffer == "perf"
    processes = _pid_limit()
    fields = kernel_filter.config["include"] | kernel_filter.config["exclude"]
    by_container = bool(fields & wire.FILTER_BITS["container"])
    capture = options.capture | ({"container"} if by_container else set())
    types = {name: found[f"type_{name}"] for name in offsets.TRACEPOINTS}
    if not typed or wire.ABSENT in types.values():
        types = {}
    return Setup(
        programs={name: kind for kind, name, _ in named},
        kinds=_kinds(options),
        attachments=tuple((name, target) for _, name, targets in named for target in targets),
        sizes={
            "events": 4096 * 16 if perf else options.buffer_size,
            "exec_scratch": loader.possible_cpus(),
            "containers": _CGROUPS if by_container else 1,
            "filters": max(1, len(kernel_filter.entries)),
            "tree": processes if tree else 1,
            "forks": processes if tree else 1,
            "exec_times": processes if options.exits else 1,
            "in_flight": max(_IN_FLIGHT, 64 * loader.possible_cpus()),
            "ended": max(_ENDED, 256 * loader.possible_cpus()),
        },
        config={
            **{name: found[name] for name in wire.PLACES},
            **kernel_filter.config,
            "pid_ns": namespace,
            "tick_ns": clock.tick_ns,
            "boot_offset_ns": timens.boot_offset_ns() % 2**64,  # as the kernel half adds it
            "cgroup_index": _cgroup_index(found),
            "argv_size": options.argv_size,
            "env_size": wire.LIMITS["ENV_SIZE_MAX"] if options.env else 0,
            "capture": sum(wire.CAPTURE[part] for part in capture),
            "tree": tree,
            "forks": options.forks,
            "exits": options.exits,
            "failed": options.failed,
            "typed": bool(types),
            "perf": perf,
            "room_failed": int(options.buffer_size * _SHARE_FAILED),
            "room_process": int(options.buffer_size * _SHARE_PROCESS),
        },
        types=types,
    )


def _kinds(options: Options) -> Tuple[str, ...]:
    asked = {"exec": True, "failed_exec": options.failed, "fork": options.forks, "exit": options.exits}
    return tuple(kind for kind, wanted in asked.items() if wanted)


def defines(options: Options, processes: bool) -> Tuple[str, ...]:
    """Return the macros that leave in exec.bpf.c only what :func:`plan` chooses.

    Args:
        processes: Forks and exits are needed for something else than their events.
    """
    wanted = {
        "NESTED": bool(probes.pid_namespace()),
        "KPROBE": options.probe == "kprobe",
        "PROCESSES": options.forks or options.exits or processes,
        "FAILED": options.failed,
        "LARGE": options.argv_size > wire.LIMITS["ARGV_SIZE_MAX"],
    }
    return tuple(f"{name}={int(value)}" for name, value in wanted.items())


def tracking() -> Mapping[str, Tuple[str, str]]:
    """Return the programs that the table of processes needs: by name, their kind and tracepoint."""
    nested = bool(probes.pid_namespace())
    chosen = _processes(offsets.load(), forks=True, exits=True)
    return {_variant(name, nested): (kind, targets[0]) for kind, name, targets in chosen}


_Chosen = List[Tuple[str, str, Tuple[str, ...]]]


def _processes(found: Mapping[str, int], *, forks: bool, exits: bool) -> _Chosen:
    chosen: _Chosen = []
    if forks:
        chosen.append(("fork", "raw_tracepoint__sched_process_fork", ("sched_process_fork",)))
    if exits:
        variant = "__group_dead" if found["exit_has_group_dead"] else ""
        chosen.append(("exit", f"raw_tracepoint__sched_process_exit{variant}", ("sched_process_exit",)))
    return chosen


def _tracepoints(failed: bool) -> _Chosen:
    chosen: _Chosen = [("exec", "raw_tracepoint__sched_process_exec", ("sched_process_exec",))]
    if failed:
        chosen.append(("failed_exec", "raw_tracepoint__sys_exit", ("sys_exit",)))
    return chosen


def _kprobes() -> _Chosen:
    """Returns first and entries last: a return that nobody saw begin is none."""
    kprobe.check()
    entries: _Chosen = [("exec", f"kprobe__{name}", (symbol,)) for name, symbol in kprobe.ENTRIES.items()]
    return [
        ("exec", "kretprobe__exec", (*kprobe.ENTRIES.values(), kprobe.FROM_KERNEL)),
        ("exec", "kprobe__setup_new_exec", ("setup_new_exec",)),
        *entries,
        ("exec", "kprobe__kernel_execve", (kprobe.FROM_KERNEL,)),
    ]


def _variant(name: str, nested: bool) -> str:
    """The program for a tracer in a pid namespace of its own; where pids don't matter there is but one."""
    if not nested or name in ("kprobe__setup_new_exec", "kprobe__kernel_execve"):
        return name
    return name + ("_nested" if name.count("__") > 1 else "__nested")


def _pid_limit() -> int:
    with open("/proc/sys/kernel/pid_max") as file:
        # Preallocated, about 80 bytes each.
        return min(int(file.read()), 65536)


def _cgroup_index(found: Mapping[str, int]) -> int:
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


def read_clock(previous: Optional[wire.Clock] = None) -> wire.Clock:
    """Return the clock; the previous one as long as nobody set the time."""
    offset = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    if previous is not None:
        if abs(offset - previous.offset_ns) < _CLOCK_STEP_NS:
            return previous
        return wire.Clock(previous.boot_id, previous.tick_ns, offset)
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot_id = file.read().strip().replace("-", "")
    return wire.Clock(boot_id, 1_000_000_000 // os.sysconf("SC_CLK_TCK"), offset)


def ring_size(buffer_size: int) -> int:
    """Return the size that the kernel accepts: a power of two and whole pages, rounded up."""
    size = os.sysconf("SC_PAGESIZE")
    while size < buffer_size:
        size *= 2
    return size
