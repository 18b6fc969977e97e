"""kprobes and kretprobes, attached by perf_event_open(2): no file in tracefs is written."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import time

from execwatch import wire
from execwatch.errors import AttachError, NotSupportedError
from execwatch.kernel import bpf, privileges
from execwatch.kernel.perf import open_event

_PMU = "/sys/bus/event_source/devices/kprobe"
_IOC_ENABLE, _IOC_SET_BPF = 0x2400, 0x40042408
_RETPROBE = 1  # bit of config, as format/retprobe says in every kernel

#: The functions behind each entry of the system calls (SYSCALL_DEFINE and
#: COMPAT_SYSCALL_DEFINE of arch/x86/include/asm/syscall_wrapper.h).
ENTRIES = {
    "execve": "__x64_sys_execve",
    "execveat": "__x64_sys_execveat",
    "compat_execve": "__ia32_compat_sys_execve",
    "compat_execveat": "__ia32_compat_sys_execveat",
}

#: What the kernel itself starts, such as modprobe, doesn't come in by a system call (since Linux 5.9).
FROM_KERNEL = "kernel_execve"

#: Those a kernel may lack: without CONFIG_IA32_EMULATION nobody can call them.
OPTIONAL = (*(symbol for name, symbol in ENTRIES.items() if name.startswith("compat")), FROM_KERNEL)

#: Numbers of the calls, 64-bit and 32-bit.
_CALLS = ("59", "322", "11", "358")

#: An exec may wait for a disk, or for a network's.
_OLD_NS, _VERY_OLD_NS = 2 * 10**9, 60 * 10**9


def check() -> None:
    """See whether this kernel has kprobes.

    Raises:
        NotSupportedError: It has none, or this isn't x86_64.
    """
    machine = os.uname().machine
    if machine != "x86_64":
        raise NotSupportedError(f"kprobe programs for {machine}", hint="use probe='tracepoint'")
    _pmu()


def attach(symbol: str, program: int, *, at_return: bool) -> int:
    """Attach a program to a function; it runs until the returned link is closed.

    Raises:
        NotSupportedError: No kprobes (CONFIG_KPROBE_EVENTS), or no such function.
        AttachError: The kernel refused otherwise.
    """
    name = ctypes.create_string_buffer(symbol.encode("ascii"))
    config = _RETPROBE if at_return else 0
    # config1 is the name's address, config2 the offset in the function.
    attributes = struct.pack("<IIQQQQQIIQQ", _pmu(), 112, config, 0, 0, 0, 0, 0, 0, ctypes.addressof(name), 0)
    probe = f"{'kretprobe' if at_return else 'kprobe'}:{symbol}"
    try:
        fd = open_event(attributes, cpu=0)
    except OSError as exc:
        if exc.errno in (errno.EPERM, errno.EACCES):
            raise privileges.explain() from exc
        if exc.errno in (errno.ENOENT, errno.EINVAL):
            raise NotSupportedError(f"function {symbol} that a kprobe can be set on") from exc
        raise AttachError(exc.errno or 0, probe, probe) from exc
    try:
        fcntl.ioctl(fd, _IOC_SET_BPF, program)
        fcntl.ioctl(fd, _IOC_ENABLE, 0)
    except OSError as exc:
        os.close(fd)
        raise AttachError(exc.errno or 0, probe, probe) from exc
    return fd


def _pmu() -> int:
    try:
        with open(f"{_PMU}/type") as file:
            return int(file.read())
    except FileNotFoundError as exc:
        raise NotSupportedError(
            "kprobes", hint="a kernel built with CONFIG_KPROBE_EVENTS=y, or use probe='tracepoint'"
        ) from exc


def count_in_flight(in_flight: int) -> int:
    """Return how many of the calls noted in the map ``in_flight`` may be still going on.

    One whose return was missed is taken out of the map: it is old, and /proc tells
    that its thread has gone on to something else; where /proc doesn't tell, it is
    very old.
    """
    head = wire.struct_of(wire.CALL).size
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    count = 0
    for key in list(bpf.map_keys(in_flight, 8)):
        value = bpf.map_lookup(in_flight, key, head + 2 * wire.LIMITS["PATH_SIZE_MAX"])
        if value is None:
            continue
        call = wire.unpack(wire.CALL, value[:head])
        age = now - call["entered_ns"]
        if age > _OLD_NS and (age > _VERY_OLD_NS or not _may_be_in_exec(call["host_tid"])):
            bpf.map_delete(in_flight, key)
        else:
            count += 1
    return count


def _may_be_in_exec(tid: int) -> bool:
    try:
        with open(f"/proc/{tid}/syscall") as file:
            number = file.read().split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has ended, or calls exec from a thread that has become the leader
    except (OSError, IndexError):
        return True  # not for us to see
    return number in ("running", *_CALLS)
