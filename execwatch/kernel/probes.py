"""What the running kernel can do, found by doing it; never guessed from its version."""

from __future__ import annotations

import os
import struct

from execwatch.kernel import bpf
from execwatch.kernel.image import PROGRAM_TYPES
from execwatch.kernel.ring import PAGE

#: ``return 0``: r0 = 0, exit.
_EMPTY_PROGRAM = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)

#: inode of the initial pid namespace: PROC_PID_INIT_INO, include/linux/proc_ns.h.
_INITIAL_PID_NS = 0xEFFFFFFC


def ring_buffer() -> None:
    """Create a BPF ring buffer and let it go.

    Raises:
        NotSupportedError, PrivilegeError, LoadError: As :func:`execwatch.kernel.bpf.map_create`.
    """
    os.close(bpf.map_create(bpf.RINGBUF, 0, 0, PAGE, name="execwatch_probe"))


def raw_tracepoint(name: str) -> bool:
    """Attach a program that does nothing, for a moment.

    Returns:
        Whether the kernel tells how often it left out a run (see ``LoadedImage.skipped``).

    Raises:
        NotSupportedError, PrivilegeError, LoadError, AttachError: The kernel refused.
    """
    code = bpf.Code(PROGRAM_TYPES["raw_tracepoint"], _EMPTY_PROGRAM, "Dual MIT/GPL")
    program = bpf.program_load(code, "probe")
    try:
        os.close(bpf.raw_tracepoint_open(name, program))
        return _tells_skipped(program)
    finally:
        os.close(program)


def pid_namespace() -> int:
    """Return the inode of this process's pid namespace; 0 where that is the initial one."""
    inode = os.stat("/proc/self/ns/pid").st_ino
    return 0 if inode == _INITIAL_PID_NS else inode


def _tells_skipped(program: int) -> bool:
    try:
        with open(f"/proc/thread-self/fdinfo/{program}") as file:
            return "recursion_misses:" in file.read()
    except OSError:
        return False
