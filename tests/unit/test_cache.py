from __future__ import annotations

import hashlib
import logging
import os
import pwd
import subprocess
import sys
import threading
from pathlib import Path
from typing import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execwatch.kernel import cache


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "cache" / "execwatch")


@pytest.fixture
def file(store: str) -> Path:
    assert cache.write("name", b"some\ndata\0", directory=store)
    return Path(store, "name")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_returns_what_was_written(store: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="execwatch")
    assert cache.read("name", directory=store) is None
    for data in (b"", b"\n", b"x" * 100_000, b"last\0"):
        assert cache.write("name", data, directory=store)
        assert cache.read("name", directory=store) == data
    assert os.listdir(store) == ["name"]
    assert not caplog.records


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_is_the_users_alone_whatever_the_umask(store: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert cache.write("name", b"data", directory=store)
    finally:
        os.umask(before)
    modes = [os.stat(p).st_mode & 0o777 for p in (os.path.dirname(store), store, os.path.join(store, "name"))]
    assert modes == [0o700, 0o700, 0o600]
    assert cache.read("name", directory=store) == b"data"


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def replace_by_link(file: Path) -> None:
    file.rename(file.with_name("target"))
    file.symlink_to("target")


def replace_by_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)


def replace_by_directory(file: Path) -> None:
    file.unlink()
    file.mkdir(0o700)


def replace_directory_by_link(file: Path) -> None:
    file.parent.rename(file.parent.with_name("elsewhere"))
    file.parent.symlink_to("elsewhere")


def seal_as_before(file: Path) -> None:
    """As it was until the cache's second form, which knows no SHA-256."""
    data = b"some\ndata\0"
    file.write_bytes(b"execwatch-cache-1 %s\n%s" % (hashlib.sha256(data).hexdigest().encode(), data))


def change_the_seal(file: Path) -> None:
    content = file.read_bytes()
    at = content.index(b"\n") - 1
    file.write_bytes(content[:at] + (b"1" if content[at : at + 1] == b"0" else b"0") + content[at + 1 :])


SPOILT: dict[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "flipped": flip_a_bit,
    "of an older version": seal_as_before,
    "another seal": change_the_seal,
    "empty": lambda file: file.write_bytes(b""),
    "foreign": lambda file: file.write_bytes(b"no line ends here"),
    "readable by the group": lambda file: file.chmod(0o640),
    "writable by others": lambda file: file.chmod(0o602),
    "hard link": lambda file: os.link(file, file.with_name("other")),
    "link": replace_by_link,
    "pipe": replace_by_pipe,
    "directory": replace_by_directory,
    "directory writable by the group": lambda file: file.parent.chmod(0o770),
    "directory is a link": replace_directory_by_link,
    "parent writable by others": lambda file: file.parent.parent.chmod(0o707),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
@pytest.mark.timeout(10)
def test_what_is_spoilt_is_logged_and_absent(
    file: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], object]
) -> None:
    spoil(file)
    assert cache.read("name", directory=str(file.parent)) is None
    (message,) = warnings_of(caplog)
    assert str(file) in message


@given(st.binary(min_size=1, max_size=2000), st.data())
def test_damage_is_found(data: bytes, draw: st.DataObject) -> None:
    """A CRC-32 finds each change within four bytes on end, whatever it is."""
    content = cache._seal(data)
    assert cache._unseal(content) == data
    at = draw.draw(st.integers(len(content) - len(data), len(content) - 1))
    part = content[at : at + 4]
    other = draw.draw(st.binary(min_size=len(part), max_size=len(part)).filter(lambda new: new != part))
    with pytest.raises(ValueError):
        cache._unseal(content[:at] + other + content[at + 4 :])
    with pytest.raises(ValueError):
        cache._unseal(content[: draw.draw(st.integers(0, len(content) - 1))])


def test_a_sticky_parent_will_do(file: Path) -> None:
    file.parent.parent.chmod(0o1777)
    assert cache.read("name", directory=str(file.parent)) is not None


def test_a_directory_of_someone_else_is_not_used(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    assert cache.read("name", directory=str(file.parent)) is None
    assert not cache.write("name", b"", directory=str(file.parent))
    assert "belongs to user" in warnings_of(caplog)[0]


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_does_not_write_where_others_can(store: str, mode: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="execwatch")
    os.makedirs(store)
    os.chmod(store, mode)
    assert not cache.write("name", b"data", directory=store)
    assert "can be written by others" in caplog.text
    assert os.listdir(store) == []


def test_works_without_a_place_to_write(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="execwatch")
    tmp_path.joinpath("file").touch()
    directory = str(tmp_path / "file" / "execwatch")
    assert not cache.write("name", b"data", directory=directory)
    assert "not cached" in caplog.text
    assert cache.read("name", directory=directory) is None


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_leaves_nothing_behind_when_it_fails(
    store: str, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(os, "replace", fail)
    if isinstance(error, OSError):
        assert not cache.write("name", b"data", directory=store)
    else:
        with pytest.raises(KeyboardInterrupt):
            cache.write("name", b"data", directory=store)
    assert os.listdir(store) == []


def test_readers_see_whole_files_while_others_write(store: str, caplog: pytest.LogCaptureFixture) -> None:
    contents = [bytes([byte]) * 50_000 for byte in range(4)]
    cache.write("name", contents[0], directory=store)

    def write(data: bytes) -> None:
        for _ in range(20):
            cache.write("name", data, directory=store)

    writers = [threading.Thread(target=write, args=(data,)) for data in contents]
    for writer in writers:
        writer.start()
    seen = {cache.read("name", directory=store) for _ in range(50)}
    for writer in writers:
        writer.join()
    assert seen <= set(contents)
    assert not warnings_of(caplog)


def test_the_environment_does_not_choose_the_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert cache.default_directory() == "/var/cache/execwatch"

    user = next((entry for entry in pwd.getpwall() if entry.pw_uid), None)
    assert user
    monkeypatch.setattr(os, "geteuid", lambda: user.pw_uid)
    assert cache.default_directory() == os.path.join(pwd.getpwuid(user.pw_uid).pw_dir, ".cache", "execwatch")


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: (1 << 32) - 7)
    assert cache.default_directory() is None
    assert cache.read("name") is None
    assert not cache.write("name", b"")


def test_leaves_no_descriptor_open(file: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    cache.read("name", directory=str(file.parent))
    cache.write("name", b"", directory=str(file.parent))
    truncate(file)
    cache.read("name", directory=str(file.parent))
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("module", ["logging", "hashlib"])
def test_costs_no_import_of(module: str) -> None:
    script = "import sys, execwatch.kernel.cache as c; c.read('x', directory='/none'); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True, text=True)
    assert module not in found.stdout.split()
