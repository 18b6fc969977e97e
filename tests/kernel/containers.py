"""Containers that an OCI runtime makes, without any daemon: a root folder with busybox, and a config.json.

Their ids are 64 hex digits, as docker's and containerd's.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import secrets
import shlex
import shutil
import subprocess
from typing import Any, Iterator, Optional, Sequence

from .commands import PATIENCE, Traced, traced
from .conftest import Reason, skip, until

#: What is in /bin of a container; busybox, all of it.
PROGRAMS = ("sh", "true", "cat", "unshare")
NAMESPACES = ("pid", "mount", "ipc", "uts")
CGROUPS = pathlib.Path("/sys/fs/cgroup")

#: crun refuses a machine that has both versions of cgroups: it gets one that has not.
_CRUN_ALONE = (
    *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
    f'mount -n -t tmpfs tmpfs {CGROUPS}/unified && exec "$0" "$@"',
)


class Shell:
    """A shell in a container, waiting for commands.

    Attributes:
        id: The container's.
        pid: Of the shell, as the runtime tells it.
        runtime_pid: Of the runtime's process, which is the parent of the shell.
    """

    def __init__(self, program: Traced, id: str, pid_file: pathlib.Path) -> None:
        self._program = program
        self.id = id
        assert self.ask("echo up") == "up"
        # crun writes it when the shell already runs.
        until(lambda: pid_file.exists() and pid_file.read_text(), "the shell's pid")
        self.pid = int(pid_file.read_text())
        self.runtime_pid = program.process.pid

    def tell(self, command: str) -> None:
        """Let it run a command."""
        assert self._program.process.stdin is not None
        self._program.process.stdin.write(f"{command}\n".encode())

    def ask(self, command: str) -> str:
        """Let it run a command; return the line that this prints."""
        self.tell(command)
        return self._program.line().decode()

    def run(self, *words: str) -> None:
        """Let it execute a program, and wait for that."""
        assert self.ask(f"{shlex.join(words)}; echo status $?") == "status 0"


class Runtime:
    """runc or crun. A context manager: at its end there is no container left, and no cgroup of theirs.

    Args:
        folder: An empty one, for all there is to be written.
        program: ``"runc"`` or ``"crun"``.
    """

    def __init__(self, folder: pathlib.Path, program: str = "runc") -> None:
        path = _find(program)
        self.command = [path, "--root", str(folder / "state")]
        if program == "crun" and os.path.ismount(CGROUPS / "unified"):
            self.command = [*_CRUN_ALONE, *self.command]
        self._folder = folder
        self._cgroups = f"execwatch-{secrets.token_hex(4)}"
        _make_root(folder / "root")

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        for id in self._output("list", "-q").split():
            self._output("delete", "--force", id)
        for hierarchy in [CGROUPS, *CGROUPS.iterdir()]:
            for folder, _, _ in os.walk(hierarchy / self._cgroups, topdown=False):
                os.rmdir(folder)

    def bundle(
        self, *command: str, namespaces: Sequence[str] = NAMESPACES, cgroup: Optional[str] = None
    ) -> pathlib.Path:
        """Return a folder that containers are made from.

        Args:
            command: What they execute.
            namespaces: Those that they have for themselves.
            cgroup: Path of theirs, below one that is the test's; the runtime's default if None.
        """
        rights = ["CAP_SYS_ADMIN"]  # for namespaces of its own
        process = {
            "user": {"uid": 0, "gid": 0},
            "args": command,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {"bounding": rights, "effective": rights, "permitted": rights},
        }
        linux: dict[str, Any] = {"namespaces": [{"type": name} for name in namespaces]}
        if cgroup is not None:
            linux["cgroupsPath"] = f"/{self._cgroups}/{cgroup}"
        config = {
            "ociVersion": "1.0.2",
            "process": process,
            "root": {"path": str(self._folder / "root"), "readonly": True},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": linux,
        }
        folder = self._folder / secrets.token_hex(4)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def run(self, bundle: pathlib.Path, id: str) -> int:
        """Run a container to its end; return the pid of its first process."""
        pid_file = self._folder / f"{id}.pid"
        self._output("run", "--pid-file", str(pid_file), "--bundle", str(bundle), id)
        return int(pid_file.read_text())

    def execute(self, id: str, *command: str) -> int:
        """Run a program in a running container to its end; return its pid."""
        pid_file = self._folder / secrets.token_hex(4)
        self._output("exec", "--pid-file", str(pid_file), id, *command)
        return int(pid_file.read_text())

    @contextlib.contextmanager
    def container(self, *, id: str = "", **options: Any) -> Iterator[Shell]:
        """A container that lives until the block ends; its first process is a shell.

        Args:
            id: A new one, if empty.
            options: Of :meth:`bundle`.
        """
        id = id or secrets.token_hex(32)
        with self._shell(id, "run", "--bundle", str(self.bundle("/bin/sh", **options)), id) as shell:
            yield shell

    @contextlib.contextmanager
    def put_into(self, id: str) -> Iterator[Shell]:
        """One more shell in a running container."""
        with self._shell(id, "exec", id, "/bin/sh") as shell:
            yield shell

    @contextlib.contextmanager
    def _shell(self, id: str, verb: str, *words: str) -> Iterator[Shell]:
        pid_file = self._folder / secrets.token_hex(4)
        command = [*self.command, verb, "--pid-file", str(pid_file), *words]
        with traced(*command, stdin=subprocess.PIPE) as program:
            try:
                yield Shell(program, id, pid_file)
            finally:
                program.end()  # which closes its input

    def detach(self, id: str, *command: str, stdin: int) -> int:
        """Start a program in a running container and leave it alone; return its pid."""
        pid_file = self._folder / secrets.token_hex(4)
        words = [*self.command, "exec", "--detach", "--pid-file", str(pid_file), id, *command]
        # Not to pipes: the program would keep them open.
        subprocess.run(words, stdin=stdin, stdout=subprocess.DEVNULL, timeout=PATIENCE, check=True)
        return int(pid_file.read_text())

    def state(self, id: str) -> dict[str, Any]:
        """What the runtime knows of a container."""
        state: dict[str, Any] = json.loads(self._output("state", id))
        return state

    def _output(self, *words: str) -> str:
        done = subprocess.run(
            [*self.command, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def _find(*names: str) -> str:
    """The first of these programs that is here."""
    # The runtime lies in sbin, which is not in everybody's PATH.
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    found = (shutil.which(name, path=path) for name in names)
    return next(filter(None, found), None) or skip(Reason.TOOL, names[0])


def _make_root(folder: pathlib.Path) -> None:
    busybox = _find("busybox.static", "busybox")
    # Where runc before 1.0 executes in a container, it looks for cgroups there.
    for name in ("bin", "proc", "dev", "sys/fs/cgroup"):
        (folder / name).mkdir(parents=True)
    shutil.copy(busybox, folder / "bin" / "busybox")
    for name in PROGRAMS:
        os.link(folder / "bin" / "busybox", folder / "bin" / name)
