"""bpf(2), through ctypes: maps, programs, links, each a file descriptor.

Structures and numbers are those of include/uapi/linux/bpf.h. A descriptor that
the kernel returns here is close-on-exec. Refusals are turned into
:class:`~execwatch.errors.PrivilegeError` and :class:`~execwatch.errors.LoadError`
at this boundary; nothing above knows errno.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import struct
from functools import partial
from typing import Callable, Iterator, List, NamedTuple, Optional, TypeVar

from execwatch.errors import AttachError, LoadError, NotSupportedError, PrivilegeError
from execwatch.kernel import privileges

_T = TypeVar("_T")

_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_GET_NEXT_KEY = 0, 1, 2, 3, 4
_PROG_LOAD, _RAW_TRACEPOINT_OPEN, _MAP_FREEZE = 5, 17, 22

_TRACE_RAW_TP = 23  # a bpf_attach_type

HASH, ARRAY, PERCPU_ARRAY, RINGBUF = 1, 2, 6, 27

#: Log sizes to try: what the verifier says of a large program takes megabytes. The second is the most
#: that kernels before Linux 6.4 take.
_LOG_SIZES = (1 << 16, (1 << 24) - 1)

#: Numbers of bpf(2) by machine; only 64-bit little-endian ones are supported.
_SYSCALLS = {"x86_64": 321, "aarch64": 280}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def syscall(number: int, *arguments: int) -> int:
    """Call the kernel.

    Raises:
        OSError: With the kernel's errno.
    """
    result: int = _libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _bpf(command: int, attributes: bytes) -> int:
    """Call bpf(2).

    Raises:
        OSError: With the kernel's errno.
        NotSupportedError: Not a machine that execwatch knows.
    """
    machine = os.uname().machine  # what platform.machine() says, which takes 2 ms to import
    number = _SYSCALLS.get(machine)
    if number is None:
        raise NotSupportedError(f"supported architecture: it is {machine}", hint="x86_64 or aarch64")
    buffer = ctypes.create_string_buffer(attributes, 128)
    return syscall(number, command, _address(buffer), 128)


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def map_create(
    type: int, key_size: int, value_size: int, max_entries: int, flags: int = 0, name: str = ""
) -> int:
    """Create a map and return its descriptor.

    Raises:
        PrivilegeError: A capability or RLIMIT_MEMLOCK is missing.
        LoadError: The kernel refused otherwise, e.g. no memory.
    """
    attributes = struct.pack("<IIIIIII16s", type, key_size, value_size, max_entries, flags, 0, 0, _name(name))
    try:
        return _with_memlock(lambda: _bpf(_MAP_CREATE, attributes))
    except PrivilegeError:
        raise
    except OSError as exc:
        if exc.errno == errno.EPERM:
            raise privileges.explain() from exc
        if exc.errno == errno.EINVAL and type == RINGBUF:
            raise NotSupportedError("BPF ring buffer", "5.8") from exc
        raise LoadError(exc.errno or 0, f"map {name!r} of {max_entries} entries") from exc


def map_update(fd: int, key: bytes, value: bytes) -> None:
    """Set one element."""
    k, v = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
    _bpf(_MAP_UPDATE, struct.pack("<IIQQQ", fd, 0, _address(k), _address(v), 0))


def map_lookup(fd: int, key: bytes, value_size: int) -> Optional[bytes]:
    """Return one element's value, or None where there is none."""
    k, v = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value_size)
    try:
        _bpf(_MAP_LOOKUP, struct.pack("<IIQQQ", fd, 0, _address(k), _address(v), 0))
    except FileNotFoundError:
        return None
    return v.raw


def map_delete(fd: int, key: bytes) -> None:
    """Remove one element, if it is there."""
    k = ctypes.create_string_buffer(key, len(key))
    with contextlib.suppress(FileNotFoundError):
        _bpf(_MAP_DELETE, struct.pack("<IIQQQ", fd, 0, _address(k), 0, 0))


def map_freeze(fd: int) -> None:
    """Let nobody write the map from outside any more (Linux 5.2).

    Where programs can't either (BPF_F_RDONLY_PROG), the verifier takes its values for constants.
    """
    _bpf(_MAP_FREEZE, struct.pack("<I", fd))


def map_keys(fd: int, key_size: int) -> Iterator[bytes]:
    """Walk the keys. Elements that come meanwhile may be missed, none is seen twice in a full walk."""
    following = ctypes.create_string_buffer(key_size)
    previous: Optional[ctypes.Array[ctypes.c_char]] = None
    while True:
        try:
            _bpf(
                _MAP_GET_NEXT_KEY,
                struct.pack("<IIQQ", fd, 0, _address(previous) if previous else 0, _address(following)),
            )
        except FileNotFoundError:
            return
        yield following.raw
        previous = ctypes.create_string_buffer(following.raw, key_size)


class Code(NamedTuple):
    """A program for bpf(2).

    Attributes:
        type: bpf_prog_type.
        instructions: ``struct bpf_insn``, with the descriptors of its maps.
        arguments: The number of the type in the kernel's BTF that tells its arguments; 0: none does.
    """

    type: int
    instructions: bytes
    license: str
    arguments: int = 0


def program_load(code: Code, name: str) -> int:
    """Have the kernel verify a program; return its descriptor.

    Raises:
        PrivilegeError: A capability or RLIMIT_MEMLOCK is missing.
        LoadError: The verifier refused; ``log`` is what it said.
    """
    try:
        return _with_memlock(lambda: _load(code, name))
    except PrivilegeError:
        raise
    except OSError as exc:
        if exc.errno == errno.EPERM:  # the verifier's own answer is EACCES
            raise privileges.explain() from exc
        raise LoadError(exc.errno or 0, f"program {name!r}", _verifier_log(code)) from exc


def verifier_steps(code: Code) -> int:
    """Return how many instructions the verifier processed; its limit is 1,000,000."""
    log = ctypes.create_string_buffer(_LOG_SIZES[0])
    os.close(_with_memlock(lambda: _load(code, "steps", log, level=4)))
    words = log.value.decode("ascii", "replace").split()
    return int(words[words.index("processed") + 1])


def _load(
    code: Code,
    name: str,
    log: Optional[ctypes.Array[ctypes.c_char]] = None,
    level: int = 0,
) -> int:
    instructions = ctypes.create_string_buffer(code.instructions, len(code.instructions))
    license = ctypes.create_string_buffer(code.license.encode("ascii"))
    attributes = struct.pack(
        "<IIQQIIQII16sII36xI",
        code.type,
        len(instructions) // 8,
        _address(instructions),
        _address(license),
        level,
        len(log) if log else 0,
        _address(log) if log else 0,
        0,
        0,
        _name(name),
        0,
        _TRACE_RAW_TP if code.arguments else 0,
        code.arguments,
    )
    return _undisturbed(lambda: _bpf(_PROG_LOAD, attributes))


def _undisturbed(load: Callable[[], int]) -> int:
    """Load a program with the signals of this thread held back.

    The verifier gives up with EAGAIN where one is pending (Linux commit c3494801cd17), so in a program
    that starts others all the time it would never come to an end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    loaded: List[int] = []
    try:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            loaded.append(load())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except BaseException:  # Ctrl-C, which had waited
        for fd in loaded:
            os.close(fd)
        raise
    return loaded[0]


def _verifier_log(code: Code) -> str:
    for size in _LOG_SIZES:
        log = ctypes.create_string_buffer(size)
        try:
            os.close(_with_memlock(partial(_load, code, "log", log, level=1)))
        except OSError as exc:
            if exc.errno == errno.ENOSPC:
                continue
        return log.value.decode("utf-8", "replace")
    return ""


def raw_tracepoint_open(name: str, program: int, *, typed: bool = False) -> int:
    """Attach a program to a raw tracepoint; it runs until the returned link is closed.

    Args:
        typed: It was loaded with the type of its arguments, and so for one tracepoint.

    Raises:
        NotSupportedError: This kernel has no such tracepoint.
        AttachError: The kernel refused otherwise.
    """
    text = ctypes.create_string_buffer(name.encode("ascii"))
    try:
        return _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("<QI", 0 if typed else _address(text), program))
    except FileNotFoundError as exc:
        raise NotSupportedError(f"tracepoint {name}") from exc
    except OSError as exc:
        raise AttachError(exc.errno or 0, f"raw tracepoint {name}", f"raw_tracepoint:{name}") from exc


def _name(text: str) -> bytes:
    """A name for bpftool(8): the first 15 bytes."""
    return text.encode("ascii")[:15]


def _with_memlock(create: Callable[[], _T]) -> _T:
    """Call ``create``; where it is refused for RLIMIT_MEMLOCK, lift the limit for that moment.

    Since Linux 5.11 BPF memory is charged to the cgroup instead (commit 3ac1f01b43b6).
    """
    try:
        return create()
    except OSError as exc:
        limits = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        if exc.errno != errno.EPERM or limits[0] == resource.RLIM_INFINITY:
            raise
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except (OSError, ValueError):
            raise privileges.explain(memlock=limits[0]) from None
        try:
            return create()
        finally:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, limits)
