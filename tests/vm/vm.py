"""Run a command under Debian's other kernels, in virtual machines that share this machine's file system.

    python tests/vm/vm.py                                # pytest tests/kernel, under each kernel
    python tests/vm/vm.py --kernel 5.10 -- uname -r      # one kernel, another command

No KVM is needed, and then everything is emulated: a boot takes 30 to 90 seconds, starting a program 30 to 60
milliseconds. In the guest the command is root, / is this machine's, read-only, and /tmp, /var/tmp, /var/cache
and $HOME are empty and in memory. BTF, tracefs, bpffs, cgroup v2 and the loopback interface are there.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import debian
import kernels
import process
import results

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "modprobe": "kmod",
    # virtme-ng asks this one for the version of a kernel image.
    "file": "file",
    # For tests/kernel/test_containers.py.
    "runc": "runc",
    "crun": "crun",
}
BOOT_SECONDS = 300
"""Allowed for boot and power-off, beside the command's own time."""
HIDDEN = ("/tmp", "/var/tmp", "/var/cache")
"""What is a tmpfs in the guest."""
CRASH = re.compile(r"BUG:|Oops|Kernel panic|Out of memory")


@dataclass(frozen=True)
class Options:
    """How the guests are run."""

    command: Sequence[str]
    timeout: float = 1800
    python: str = sys.executable
    memory: str = "1G"
    cpus: int = 2
    append: Sequence[str] = ()
    """More words for the kernel's command line."""
    env: Mapping[str, str] = field(default_factory=dict)
    visible: Sequence[Path] = ()
    """Folders under /tmp, /var/tmp or /var/cache that the command needs."""
    kvm: bool = False
    echo: bool = True


def virtme_run() -> Path:
    """virtme-ng's program: this Python's, the one in PATH, or one in a venv in the cache."""
    beside = Path(sys.executable).parent / "virtme-run"
    if beside.exists():
        return beside
    in_path = shutil.which("virtme-run")
    if in_path:
        return Path(in_path)
    venv = kernels.cache() / "virtme-ng"
    with debian.locked(kernels.cache() / "virtme-ng.lock"):
        if not (venv / "bin" / "virtme-run").exists():
            debian.run(sys.executable, "-m", "venv", "--clear", str(venv))
            debian.run(str(venv / "bin" / "python"), "-m", "pip", "install", "-q", "virtme-ng")
    return venv / "bin" / "virtme-run"


def boot(kernel: kernels.Kernel, options: Options) -> results.Cell:
    """Run the command under that kernel; the console's last lines are in the cell if it did not come back."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="execwatch-vm-") as name:
        exchange = Path(name) / "exchange"
        exchange.mkdir()
        _prepare(exchange, kernel, options)
        console = Path(name) / "console"
        with open(console, "wb") as output:
            ended = process.supervise(
                _virtme_command(kernel, exchange, options),
                timeout=options.timeout + BOOT_SECONDS,
                output=output,
                tail=exchange / "output",
                finished=(exchange / "status").exists,
                echo=options.echo,
            )
        return _cell(kernel, exchange, _why(ended, Path(name)), time.monotonic() - started)


def _cell(kernel: kernels.Kernel, exchange: Path, why: str, seconds: float) -> results.Cell:
    status: Optional[int] = None
    if (exchange / "status").exists():
        status = int((exchange / "status").read_text())
        why = ""
    facts = {"kernel": kernel.release, "bcc": bcc_version(), **results.read_facts(exchange / "facts")}
    tests = results.read_junit(exchange / "junit.xml")
    return results.Cell(f"linux {kernel.series}", status, seconds, facts, tests, why)


def _why(ended: Optional[int], folder: Path) -> str:
    """What can be said if the command did not come back: guest.sh's words, and the console's of a crash."""
    # 255 is virtme-ng's when qemu ended early. If no crash is below, was the host out of memory?
    first = "still running: ended" if ended is None else f"virtme-run exited with {ended}"
    log = folder / "exchange" / "log"
    said = log.read_text(errors="replace") if log.exists() else ""
    lines = (folder / "console").read_text(errors="replace").splitlines()
    signs = (number for number, line in enumerate(lines) if CRASH.search(line))
    start = next(signs, max(0, len(lines) - 3))
    return "\n".join([first, *said.splitlines()[-5:], *lines[start : start + 25]])


@functools.cache
def bcc_version() -> Optional[str]:
    """This machine's BCC, which is the guests' too; asked here, where importing it takes one second."""
    command = ["/usr/bin/python3", "-c", "import bcc; print(bcc.__version__)"]
    try:
        return debian.run(*command).strip()
    except (debian.SetupError, OSError):
        return None


def _prepare(exchange: Path, kernel: kernels.Kernel, options: Options) -> None:
    """The files that guest.sh reads."""
    settings = {
        "modules": kernel.tree,
        "directory": PROJECT,
        "python": options.python,
        "timeout": options.timeout,
    }
    shutil.copy(HERE / "guest.sh", exchange)
    (exchange / "settings").write_text(_assignments(settings))
    (exchange / "environment").write_text(_assignments(_environment(options)))
    (exchange / "command").write_text(f"exec {shlex.join(options.command)}\n")
    kept = _kept([kernel.tree, PROJECT, *_python_folders(options.python), *options.visible])
    (exchange / "kept").write_text("".join(f"{folder}\n" for folder in kept))


def _assignments(values: Mapping[str, object]) -> str:
    return "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in values.items())


def _environment(options: Options) -> dict[str, str]:
    """All that the command inherits: the host's own variables name folders that are hidden or read-only."""
    passed = {name: value for name, value in os.environ.items() if name.startswith("EXECWATCH_")}
    passed.pop("EXECWATCH_TEST_CACHE", None)
    return {
        "PATH": f"{Path(options.python).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/tmp/home",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        # The project is read-only; the JUnit file is what the table is made of.
        "PYTEST_ADDOPTS": "-p no:cacheprovider --junit-xml=/run/execwatch/junit.xml",
        # pytest-timeout's; it rules over the project's, which is for a real machine.
        "PYTEST_TIMEOUT": "600",
        # Tests that measure or wait can allow for the emulation.
        "EXECWATCH_EMULATED": "0" if options.kvm else "1",
        **passed,
        **options.env,
    }


def _python_folders(python: str) -> list[Path]:
    """A venv and the installation it was made from."""
    command = [python, "-c", "import sys; print(sys.prefix, sys.base_prefix, sep='\\n')"]
    return [Path(line) for line in debian.run(*command).splitlines()]


def _kept(folders: Sequence[Path]) -> list[Path]:
    """Those that a tmpfs would hide; not what lies in another of them."""
    kept: list[Path] = []
    for folder in sorted(folder.resolve() for folder in folders):
        hidden = any(Path(top) in folder.parents for top in HIDDEN)
        if hidden and not any(other == folder or other in folder.parents for other in kept):
            kept.append(folder)
    return kept


def _virtme_command(kernel: kernels.Kernel, exchange: Path, options: Options) -> list[str]:
    share = "local,id=execwatch,path=/,security_model=none,readonly=on,multidevs=remap"
    # Not through virtme-ng's own pipes: they lose output when it is redirected, and the exit status with it.
    script = "sh /run/execwatch/guest.sh > /run/execwatch/log 2>&1"
    command = [str(virtme_run()), "--kimg", str(kernel.image), "--mods", "auto", "--force-9p"]
    command += ["--memory", options.memory, "--cpus", str(options.cpus), "--show-boot-console"]
    # The other init boots faster by 20 seconds, but never reaps orphans: after a storm nothing can fork.
    command += ["--no-virtme-ng-init"]
    command += ["--rwdir", f"/run/execwatch={exchange}", "--script-sh", script]
    # "-q=-x": the value begins with a dash.
    device = "virtio-9p-pci,fsdev=execwatch,mount_tag=execwatch"
    command += ["-q=-fsdev", f"-q={share}", "-q=-device", f"-q={device}"]
    if not options.kvm:
        command.append("--disable-kvm")
    # An oops in a test is a failure, not a line in a log that nobody reads.
    for word in ("oops=panic", *options.append):
        command += ["--kopt", word]
    return command


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--kernel", action="append", choices=list(kernels.SUITES), help="default: each")
    made.add_argument("--timeout", type=float, default=1800, help="seconds for the command in each guest")
    made.add_argument("--python", default=sys.executable, help="the Python that runs the tests (a venv's)")
    made.add_argument("--memory", default="1G")
    made.add_argument("--cpus", type=int, default=2)
    made.add_argument("--append", action="append", default=[], metavar="WORD", help="for the kernel")
    made.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    visible = "a folder under /tmp that the command needs"
    made.add_argument("--visible", action="append", default=[], type=Path, help=visible)
    made.add_argument("--results", type=Path, help="append JSON lines to this file")
    made.add_argument("--refresh", action="store_true", help="fetch the kernels again")
    made.add_argument("--fetch-only", action="store_true")
    # Not by default: inside another virtual machine /dev/kvm may open and then fail at the first instruction.
    made.add_argument("--kvm", action="store_true", help="use the hardware, not emulation")
    made.add_argument("command", nargs="*", help="default: that Python's pytest tests/kernel")
    return made


def _tests(python: str) -> list[str]:
    """pytest itself: "python -m pytest" would import the package from the project, not what is installed."""
    return [str(Path(python).with_name("pytest")), "tests/kernel"]


def _options(args: argparse.Namespace) -> Options:
    env = dict(pair.split("=", 1) for pair in args.env)
    return Options(
        command=args.command or _tests(args.python),
        timeout=args.timeout,
        python=args.python,
        memory=args.memory,
        cpus=args.cpus,
        append=args.append,
        env=env,
        visible=args.visible,
        kvm=args.kvm,
    )


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parser().parse_args(argv)
    process.exit_when_terminated()
    options = _options(args)
    cells = []
    try:
        debian.need(TOOLS)
        chosen = [kernels.fetch(series, refresh=args.refresh) for series in args.kernel or kernels.SUITES]
        if args.fetch_only:
            print("\n".join(f"{kernel.release}  {kernel.tree}" for kernel in chosen))
            return 0
        for kernel in chosen:
            print(f"--- {kernel.release}: {shlex.join(options.command)}", flush=True)
            cell = boot(kernel, options)
            cells.append(cell)
            if cell.error:
                print(f"the guest did not come back: {cell.error}")
            if args.results:
                results.write(args.results, cell, options.command)
    except (debian.SetupError, subprocess.SubprocessError) as error:
        print(f"vm.py: {error}", file=sys.stderr)
        return 2
    print("\n" + results.table(cells))
    return 0 if all(cell.passed for cell in cells) else 1


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
