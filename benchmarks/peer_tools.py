"""Tracers of execs as a user installs them, how they are started, watched and stopped."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import pty
import re
import select
import signal
import subprocess
import sys
import time
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import attrs

_DRAIN = str(pathlib.Path(__file__).with_name("drain.py"))
#: Seconds for a tool to see its first event, to fall idle, and to end.
_PATIENCE = 30
_CLONE_NEWNS = 0x20000


@attrs.frozen
class Tool:
    """One tracer.

    Attributes:
        program: The file that has to be there.
        package: Debian's, that brings it.
        failures: The command that shows failed attempts too; ``None`` where there is none.
        longest: Commands, by name, for the longest argv; else ``command``.
        python: Whether it is execwatch, whose ring's pages are looked at.
        counts: Whether its output is that of drain.py.
        wraps: Whether it starts the workload itself, and sees nothing else.
    """

    name: str
    command: Sequence[str]
    program: str
    package: str
    failures: Optional[Sequence[str]] = None
    longest: Dict[str, Sequence[str]] = attrs.field(factory=dict)
    python: bool = False
    counts: bool = False
    wraps: bool = False

    def numbers(self, text: str, path: str) -> List[int]:
        """The numbers that execs of that program were given, as far as they are in the tool's output."""
        path = re.escape(path)
        if self.counts:
            found = re.search(rf"^count {path} (\d+)$", text, re.MULTILINE)
            return list(range(int(found[1]))) if found else []
        pattern = rf'"{path}", "(\d+)"' if self.wraps else rf"(?<!\S){path} (\d+)\s"
        return [int(number) for number in re.findall(pattern, text)]


def tools(printed: Sequence[str]) -> Sequence[Tool]:
    """All of them.

    Args:
        printed: The programs whose execs drain.py prints.
    """
    snoop, command = "/usr/sbin/execsnoop", (sys.executable, "-m", "execwatch")
    bpftrace = ("/usr/bin/bpftrace", "/usr/sbin/execsnoop.bt")

    def drain(argv_size: int, failed: str) -> Sequence[str]:
        return (sys.executable, _DRAIN, str(argv_size), failed, *printed)

    plain, whole = drain(16384, "no"), drain(2 << 20, "no")
    return (
        Tool(
            "libbpf execsnoop", [snoop], snoop, "libbpf-tools", [snoop, "-x"],
            {"libbpf execsnoop": [snoop], "libbpf execsnoop --max-args=60": [snoop, "--max-args=60"]},
        ),
        Tool("bpftrace execsnoop", bpftrace, bpftrace[1], "bpftrace", bpftrace),
        Tool("forkstat", ["/usr/bin/forkstat", "-e", "exec"], "/usr/bin/forkstat", "forkstat"),
        Tool("extrace", ["/usr/bin/extrace"], "/usr/bin/extrace", "extrace"),
        Tool(
            "strace -f", ["/usr/bin/strace", "-f", "-qq", "-e", "trace=execve", "-o"],
            "/usr/bin/strace", "strace", wraps=True,
        ),
        Tool("execwatch", command, sys.executable, "", [*command, "-x"], python=True),
        Tool(
            "execwatch library", plain, sys.executable, "", drain(16384, "yes"),
            {"execwatch library": plain, "execwatch library, argv_size=2 MiB": whole},
            python=True, counts=True,
        ),
    )  # fmt: skip


def bcc() -> Tool:
    """BCC's own: it compiles against the kernel's headers, and needs kprobes."""
    program = "/usr/sbin/execsnoop-bpfcc"
    return Tool("BCC execsnoop", [program], program, "bpfcc-tools", [program, "-x"])


def need_tracefs() -> None:
    """Mount it for this process and its children alone where it isn't: peers find their probes in it."""
    if os.path.isdir("/sys/kernel/tracing/events"):
        return
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tracefs", "tracefs", "/sys/kernel/tracing"], check=True)


def environment() -> Dict[str, str]:
    """With bytecode, as an installed package has it."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


class Running:
    """A tool that traces, its output in a file.

    Raises:
        AssertionError: It ended by itself, sees nothing, or never falls idle.
    """

    def __init__(self, tool: Tool, command: Sequence[str], folder: str, marker: str) -> None:
        self._tool, self._folder = tool, pathlib.Path(folder)
        self._output, self._errors = self._folder / "output", self._folder / "errors"
        with open(self._output, "wb") as output, open(self._errors, "wb") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=environment()
            )
        try:
            self._wait_attached(marker)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _wait_attached(self, marker: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while f"{marker} " not in self._output.read_text(errors="replace"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.fail("sees nothing")
            execute(marker, "x" * 500)  # long, so that a few fill what stdio holds back
            select.select([], [], [], 0.002)

    def fail(self, why: str) -> None:
        said = self._errors.read_text(errors="replace")[-2000:]
        raise AssertionError(f"{self._tool.name} {why} (status {self.process.poll()}):\n{said}")

    def cpu(self) -> float:
        """Seconds of CPU time that its process has taken, threads that ended included."""
        return time.clock_gettime((~self.process.pid << 3) | 2)  # CPUCLOCK_SCHED, as clock_getcpuclockid(3)

    def wait_idle(self) -> None:
        """Until it has read what there is: for a tenth of a second it hardly runs, and doesn't want to."""
        deadline = time.monotonic() + _PATIENCE
        before = -1.0
        while True:
            if self.process.poll() is not None:
                self.fail("ended")
            now = self.cpu()
            if now - before < 0.01 and not self._wants_to_run():
                return
            if time.monotonic() > deadline:
                self.fail("never falls idle")
            before = now
            select.select([], [], [], 0.1)

    def _wants_to_run(self) -> bool:
        states = [
            (task / "stat").read_text().rpartition(")")[2].split()[0]
            for task in pathlib.Path("/proc", str(self.process.pid), "task").iterdir()
        ]
        return "R" in states

    def memory(self) -> Tuple[float, float]:
        """MiB that are resident, and those of them that are a BPF map's pages."""
        proc = pathlib.Path("/proc", str(self.process.pid))
        resident = int((proc / "smaps_rollup").read_text().split("Rss:")[1].split()[0])
        parts = (proc / "smaps").read_text().split("VmFlags")[:-1]
        ring = sum(int(part.split("\nRss:")[1].split()[0]) for part in parts if "bpf-map" in part)
        return resident / 1024, ring / 1024

    def stop(self) -> str:
        """End it as Ctrl-C does; return its output."""
        if self.process.poll() is not None:
            self.fail("ended")
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(_PATIENCE)
        if status not in (0, 130, -signal.SIGINT):
            self.fail("failed")
        return self._output.read_text(errors="replace")


@contextlib.contextmanager
def running(tool: Tool, command: Sequence[str], folder: str, marker: str) -> Iterator[Running]:
    made = Running(tool, command, folder, marker)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()


def first_event(tool: Tool, marker: str) -> float:
    """Return the seconds from its start until it has a line on a terminal, while ``marker`` is executed."""
    master, slave = pty.openpty()
    started = time.perf_counter()
    process = subprocess.Popen(
        tool.command, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, env=environment()
    )
    os.close(slave)
    text = b""
    try:
        while f"{marker} ".encode() not in text:
            if process.poll() is not None or time.perf_counter() - started > _PATIENCE:
                raise AssertionError(f"{tool.name} sees nothing (status {process.poll()}): {text[-500:]!r}")
            execute(marker, "1")
            if select.select([master], [], [], 0.002)[0]:
                with contextlib.suppress(OSError):  # EIO: it ended, and the next turn says so
                    text += os.read(master, 65536)
        return time.perf_counter() - started
    finally:
        process.kill()
        process.wait()
        os.close(master)


def execute(program: str, *arguments: str) -> None:
    child = os.posix_spawn(program, [program, *arguments], {})
    if os.waitpid(child, 0)[1] != 0:
        raise AssertionError(f"{program} failed")
