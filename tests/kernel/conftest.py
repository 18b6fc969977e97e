"""Real probes on the running kernel.

A test that can't run here skips with one of the reasons of :class:`Reason`;
with ``EXECWATCH_REQUIRE_KERNEL=1`` that is a failure. Every test is checked for
descriptors, threads and children that it leaves behind.
"""

from __future__ import annotations

import enum
import gc
import os
import pathlib
import shutil
import subprocess
import threading
import time
from typing import Callable, Iterator, NoReturn

import pytest

from execwatch import ExecTracer
from execwatch.kernel import privileges

PROGRAMS = pathlib.Path(__file__).parent / "programs"

#: On an emulated processor an exec takes a hundred times as long: storms are smaller there.
EMULATED = os.environ.get("EXECWATCH_EMULATED") == "1"

#: A prime, so that nothing that doubles, halves or rounds can look right.
COUNT = 7 if EMULATED else 23


def scaled(count: int) -> int:
    """So many as a storm has on this machine."""
    return max(101, count // 40) if EMULATED else count


class Reason(enum.Enum):
    """Why a kernel test may not run."""

    PRIVILEGE = "needs root, or CAP_BPF and CAP_PERFMON"
    ROOT = "needs root, to become somebody else"
    COMPILER = "needs a C compiler (cc) with a static libc"
    BCC = "needs BCC (Debian: python3-bpfcc)"
    TOOL = "needs a tool"
    KERNEL = "needs a kernel with"


def skip(reason: Reason, detail: str = "") -> NoReturn:
    text = f"{reason.name}: {reason.value} {detail}".rstrip()
    if os.environ.get("EXECWATCH_REQUIRE_KERNEL") == "1":
        pytest.fail(f"required, and can't run: {text}")
    pytest.skip(text)


PROBES, BUFFERS = ("tracepoint", "kprobe"), ("ring", "perf")


def pytest_addoption(parser: pytest.Parser) -> None:
    for name, choices in (("--probe", PROBES), ("--buffer", BUFFERS)):
        parser.addoption(
            name, action="append", choices=choices, help="for tests that don't choose one; can be repeated"
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test with each probe and buffer that was asked for."""
    for name, default in (("probe", PROBES[:1]), ("buffer", BUFFERS[:1])):
        if f"tracer_{name}" in metafunc.fixturenames:
            metafunc.parametrize(f"tracer_{name}", metafunc.config.getoption(f"--{name}") or default)


@pytest.fixture(autouse=True)
def _defaults(tracer_buffer: str, tracer_probe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tests for every buffer and probe: what is the default is replaced."""
    defaults = ExecTracer.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "buffer", tracer_buffer)
    monkeypatch.setitem(defaults, "probe", tracer_probe)


@pytest.fixture(autouse=True)
def _privileged() -> None:
    if privileges.missing_capabilities():
        skip(Reason.PRIVILEGE)


@pytest.fixture
def root() -> None:
    if os.geteuid() != 0:
        skip(Reason.ROOT)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(_privileged: None) -> Iterator[None]:
    gc.collect()
    before = open_files(), set(threading.enumerate()), children()
    yield
    gc.collect()
    assert (open_files(), set(threading.enumerate()), children()) == before


def open_files() -> dict[str, str]:
    """What this process has open, by descriptor; the one that lists them left out."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
    return found


def children() -> set[str]:
    with open("/proc/thread-self/children") as file:
        return set(file.read().split())


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return the path of a compiled test program, where every user can run it."""
    folder = tmp_path_factory.mktemp("programs")
    for path in (folder, folder.parent, folder.parent.parent):
        path.chmod(0o755)

    def build(name: str) -> str:
        target = folder / name
        if not target.exists():
            compiler = shutil.which("cc") or skip(Reason.COMPILER)
            options = ["-nostdlib"] if name == "nothing" else []
            subprocess.run(
                [compiler, "-O2", "-static", "-pthread", *options, "-o", target, PROGRAMS / f"{name}.c"],
                check=True,
            )
        return str(target)

    return build


def until(condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    """Wait for a condition; fail if it doesn't come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.002)
