"""A small file store that can be trusted with code for the kernel.

Whoever can write here runs code in the kernel. So the directory and all above
it must be beyond the reach of anyone but root and the effective user, a file
must be that user's alone, and links are not followed. The environment has no
say. Whatever is wrong is logged, and then nothing is stored or found: the cache
saves time, nothing depends on it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
import zlib
from typing import Iterator, Optional

_MAGIC = b"execwatch-cache-2"
_LIMIT = 1 << 24  # bytes; what is larger was not written by us


def default_directory() -> Optional[str]:
    """Return where this user's files are kept; None if the user has no home."""
    if os.geteuid() == 0:
        return "/var/cache/execwatch"
    try:
        home = pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return None
    return os.path.join(home, ".cache", "execwatch")


def read(name: str, *, directory: Optional[str] = None) -> Optional[bytes]:
    """Return what was stored under ``name``; None if that is nothing, or nothing to be trusted."""
    directory = directory or default_directory()
    if directory is None:
        return None
    path = os.path.join(directory, name)
    try:
        _check_directory(directory)
        return _unseal(_read_file(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        _log("warning", "ignoring the cached file %s: %s", path, exc)
        return None


def write(name: str, data: bytes, *, directory: Optional[str] = None) -> bool:
    """Store ``data`` under ``name``; return whether that worked."""
    directory = directory or default_directory()
    if directory is None:
        return False
    try:
        _make_directory(os.path.abspath(directory))
        _check_directory(directory)
        _write_file(directory, name, _seal(data))
    except (OSError, ValueError) as exc:
        _log("info", "not cached: %s in %s: %s", name, directory, exc)
        return False
    return True


def why_untrusted(path: str) -> Optional[str]:
    """Return how a user other than root and the effective one could change ``path``; None if none could.

    From the root down: once a directory is found to be out of others' reach, what
    it says of the next one can't be changed behind our back.
    """
    real = os.path.realpath(path)
    for step in _steps(real):
        status = os.lstat(step)
        if status.st_uid not in (0, os.geteuid()):
            return f"{step} belongs to user {status.st_uid}"
        # In a sticky directory others can add, but not rename or remove what is ours.
        sticky = step != real and status.st_mode & stat.S_ISVTX
        if status.st_mode & 0o022 and not sticky:
            return f"{step} can be written by others"
    return None


def _steps(path: str) -> Iterator[str]:
    step = "/"
    yield step
    for part in filter(None, path.split("/")):
        step = os.path.join(step, part)
        yield step


def _make_directory(directory: str) -> None:
    # os.makedirs leaves the mode of the directories between to the umask.
    if not os.path.isdir(directory):
        _make_directory(os.path.dirname(directory))
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)


def _check_directory(directory: str) -> None:
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode):
        raise ValueError("its place is not a directory")
    if status.st_uid != os.geteuid():
        raise ValueError(f"its directory belongs to user {status.st_uid}")
    reason = why_untrusted(directory)
    if reason:
        raise ValueError(reason)


def _read_file(path: str) -> bytes:
    # O_NONBLOCK: a pipe lying there must not hold us up.
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        # No link at all: it has just been replaced, and is whole all the same.
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise ValueError("it is not a file of its own")
        if status.st_uid != os.geteuid():
            raise ValueError(f"it belongs to user {status.st_uid}")
        if status.st_mode & 0o077:
            raise ValueError("its mode lets others in")
        return file.read(_LIMIT)


def _write_file(directory: str, name: str, content: bytes) -> None:
    # Written aside and renamed: a reader sees the old file or the new one, whole.
    aside = os.path.join(directory, f".{name}.{os.urandom(8).hex()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.replace(aside, os.path.join(directory, name))
    except BaseException:
        os.unlink(aside)
        raise


def _seal(data: bytes) -> bytes:
    return b"%s %s\n%s" % (_MAGIC, b"%08x" % zlib.crc32(data), data)


def _unseal(content: bytes) -> bytes:
    head, _, data = content.partition(b"\n")
    if head != _seal(data).partition(b"\n")[0]:
        raise ValueError("it is damaged")
    return data


def _log(level: str, message: str, *args: object) -> None:
    import logging  # costs start-up time, and is hardly ever needed

    getattr(logging.getLogger("execwatch"), level)(message, *args)
