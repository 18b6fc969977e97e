"""What /proc tells of a process that is held right after its exec.

The other witness of what an event says: it shares no code with the tracer. A
program is held when its first act, ``hold``, was to say so and to wait for the
end of its input; nothing that is read here changes by that.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import struct
import subprocess
from typing import Any, Iterator, Optional, Union

Fields = dict[str, Any]
Command = Union[str, bytes, pathlib.Path]

#: What an id is that nobody has set, see loginuid in proc(5).
_UNSET = 2**32 - 1

_AT_SECURE = 23

#: Some tools are for root only.
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

#: As /proc/PID/status calls the sets of capabilities.
_CAPABILITIES = {"effective": "Eff", "permitted": "Prm", "inheritable": "Inh", "ambient": "Amb"}

_NAMESPACES = ("mnt", "pid", "net", "uts", "ipc", "cgroup", "user", "time")


@contextlib.contextmanager
def held(*command: Command, **options: Any) -> Iterator[int]:
    """Run a command that becomes, or at last starts, ``hold``; the pid of that process.

    It ends with its input; killed where that is not a pipe.
    """
    options = {"stdin": subprocess.PIPE, "env": {"PATH": PATH}, **options}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, **options)
    try:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"R", f"{command!r} did not come to hold"
        yield last_descendant(process.pid)
    finally:
        if process.stdin is None:
            os.kill(last_descendant(process.pid), signal.SIGKILL)
        process.communicate()


def last_descendant(pid: int) -> int:
    """The end of the line: where each process has one child at most."""
    while True:
        children = _read(pid, f"task/{pid}/children").split()
        if not children:
            return pid
        (child,) = children
        pid = int(child)


def _read(pid: int, name: str) -> bytes:
    return pathlib.Path(f"/proc/{pid}/{name}").read_bytes()


def _status(pid: int) -> dict[str, list[str]]:
    """The lines of /proc/PID/status. A comm with a newline is escaped there."""
    lines = _read(pid, "status").decode("utf-8", "surrogateescape").splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def credentials(pid: int) -> Fields:
    """Ids, capability sets and what the kernel told the program in its auxiliary vector."""
    status = _status(pid)
    found: Fields = {}
    for kind in ("uid", "gid"):
        real, effective, saved, fs = map(int, status[kind.capitalize()])
        found.update({kind: real, f"e{kind}": effective, f"s{kind}": saved, f"fs{kind}": fs})
    for name, short in _CAPABILITIES.items():
        found[f"cap_{name}"] = int(status[f"Cap{short}"][0], 16)
    for name in ("loginuid", "sessionid"):
        found[name] = _audit(pid, name)
    found["secureexec"] = bool(auxiliary(pid)[_AT_SECURE])
    return found


def _audit(pid: int, name: str) -> Optional[int]:
    """None where it is not set; a kernel without CONFIG_AUDIT has no such file."""
    try:
        number = int(_read(pid, name))
    except FileNotFoundError:
        return None
    return None if number == _UNSET else number


def auxiliary(pid: int) -> dict[int, int]:
    """The auxiliary vector, see getauxval(3); of 32-bit words for a 32-bit program."""
    with open(f"/proc/{pid}/exe", "rb") as file:
        wide = file.read(5)[4] == 2  # EI_CLASS, see elf(5)
    vector = _read(pid, "auxv")
    words = struct.unpack(f"={len(vector) // (8 if wide else 4)}{'Q' if wide else 'I'}", vector)
    return dict(zip(words[::2], words[1::2]))


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat behind the comm, from the state on."""
    return _read(pid, "stat").rpartition(b")")[2].split()


def parent(pid: int) -> int:
    return int(_stat(pid)[1])


def key(pid: int) -> str:
    """What names the process for good: boot, pid, start time in clock ticks."""
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    return f"{boot}-{pid}-{int(_stat(pid)[19])}"


def session(pid: int) -> Fields:
    """Session, process group and terminal; pids as this process's pid namespace has them."""
    group, sid, tty = map(int, _stat(pid)[2:5])
    return {
        "sid": sid or None,
        "pgid": group or None,
        "tty_major": os.major(tty) if tty else None,
        "tty_minor": os.minor(tty) if tty else None,
    }


def namespaces(pid: int) -> Fields:
    """Inode numbers of all namespaces, and the innermost pid."""
    found: Fields = {kind: _namespace(pid, kind) for kind in _NAMESPACES}
    found["vpid"] = int(_status(pid)["NSpid"][-1])
    return found


def _namespace(pid: int, kind: str) -> Optional[int]:
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    except FileNotFoundError:
        return None


def executable(pid: int) -> Fields:
    """The file behind /proc/PID/exe, and its path."""
    stat = os.stat(f"/proc/{pid}/exe")
    path, deleted = _path(pid, "exe")
    return {
        "path": path,
        "inode": stat.st_ino,
        "device": stat.st_dev,
        "mode": stat.st_mode,
        "size": stat.st_size,
        "ctime_ns": stat.st_ctime_ns,
        "memfd": deleted and path.startswith("/memfd:"),
        "deleted": deleted,
    }


def cwd(pid: int) -> str:
    """Its working directory; where that has been removed, how it was called."""
    return _path(pid, "cwd")[0]


def _path(pid: int, name: str) -> tuple[str, bool]:
    """The path that a link in /proc/PID shows, and whether that name has been removed."""
    link, note = _link(pid, name), " (deleted)"
    if not link.endswith(note):
        return link, False
    # A file may be called so.
    same = _outside("test", link.encode("utf-8", "surrogateescape"), "-ef", f"/proc/{pid}/{name}")
    return (link, False) if same.returncode == 0 else (link[: -len(note)], True)


def _link(pid: int, name: str) -> str:
    done = _outside("readlink", "-z", f"/proc/{pid}/{name}")
    done.check_returncode()
    return text(done.stdout[:-1])


def _outside(*command: str | bytes) -> subprocess.CompletedProcess[bytes]:
    """Run a command whose root is that of the mount namespace: this process may be in a chroot."""
    return subprocess.run(["nsenter", "--mount=/proc/self/ns/mnt", *command], stdout=subprocess.PIPE)


def root() -> str:
    """Where this process's root is: "/" if it is in no chroot."""
    return _link(os.getpid(), "root")


def environment(pid: int) -> tuple[tuple[str, str], ...]:
    """Pairs of name and value."""
    entries = [text(entry) for entry in _read(pid, "environ").split(b"\0")[:-1]]
    return tuple((name, value) for name, _, value in (entry.partition("=") for entry in entries))


def cgroup(pid: int) -> tuple[str, str]:
    """Where the hierarchy is mounted that the library takes, and the process's path in it."""
    lines = [text(line).split(":", 2) for line in _read(pid, "cgroup").splitlines()]
    paths = {name: path for _, names, path in lines for name in names.split(",")}
    controller = next((name for name in ("memory", "pids") if name in paths), "")
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split()[:3]
        if kind == ("cgroup" if controller else "cgroup2") and controller in ("", *options.split(",")):
            return fields.split()[4], paths[controller]
    raise AssertionError("no cgroup file system is mounted")


def text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
