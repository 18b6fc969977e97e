"""What the tests need from Debian: a mirror, packages, a private apt, and a cache outside the repository.

Nothing here changes the machine's own apt configuration, and no mirror is written down: the mirror is the one
that the machine already uses, or `EXECWATCH_DEBIAN_MIRROR`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class SetupError(Exception):
    """Something outside the tests is missing; the message says the command that mends it."""


def cache_dir(name: str, default: str) -> Path:
    """`$EXECWATCH_TEST_CACHE/name`, or `default`; made if it does not exist."""
    configured = os.environ.get("EXECWATCH_TEST_CACHE")
    path = Path(configured).expanduser().resolve() / name if configured else Path(default)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "set EXECWATCH_TEST_CACHE to a folder of yours"
        raise SetupError(f"{path}: {error.strerror}; {hint}") from error
    return path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One builder at a time: two sessions may share a cache."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(*command: str) -> str:
    """The command's output; its error text in the exception when it fails."""
    # apt and debootstrap translate their output, and parsing needs one language.
    env = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise SetupError(f"{shlex.join(command)} exited with {done.returncode}:\n{tail}")
    return done.stdout


def need(packages: Mapping[str, str]) -> None:
    """Install the Debian packages whose file or program (the key) is missing; without root, say how."""
    missing = sorted({package for what, package in packages.items() if not _present(what)})
    if not missing:
        return
    install = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if os.geteuid() or not shutil.which("apt-get"):
        raise SetupError(f"missing packages; run: sudo {shlex.join(install)}")
    print(f"installing {' '.join(missing)}", file=sys.stderr)
    run("apt-get", "-q", "update")
    run(*install)


def _present(what: str) -> bool:
    if what.startswith("/"):
        return Path(what).exists()
    # These live in sbin, which an ordinary user's PATH may lack.
    return shutil.which(what, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is not None


def mirror() -> str:
    """The Debian mirror of this machine's apt configuration."""
    configured = os.environ.get("EXECWATCH_DEBIAN_MIRROR")
    if configured:
        return configured
    if shutil.which("apt-get"):
        targets = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages")
        for line in targets.splitlines():
            uri, _, release = line.partition(" ")
            # Only the main archive holds every suite; updates, backports and security are others.
            if uri.rstrip("/").endswith("/debian") and "-" not in release and "/" not in release:
                return uri
    raise SetupError("apt on this machine names no Debian mirror; set EXECWATCH_DEBIAN_MIRROR to one")


class Suite:
    """apt for one Debian suite, with its own lists and sources in `root`."""

    def __init__(self, root: Path, suite: str) -> None:
        self.suite = suite
        self.root = root / suite
        (self.root / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (self.root / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        # An empty status file: what this machine has installed must not influence what is resolved.
        (self.root / "status").write_text("")
        source = f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n"
        (self.root / "sources.list").write_text(source)

    def _options(self) -> list[str]:
        settings = {
            "Dir::Etc::sourcelist": self.root / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::lists": self.root / "lists",
            "Dir::State::status": self.root / "status",
            "Dir::Cache": self.root / "cache",
            # The user that apt would drop to may not be able to write here.
            "APT::Sandbox::User": "root",
        }
        return [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]

    def update(self) -> None:
        run("apt-get", "-q", *self._options(), "update")

    def dependency(self, package: str, prefix: str) -> str:
        """The dependency of `package` whose name starts with `prefix`."""
        lines = run("apt-cache", *self._options(), "depends", package).splitlines()
        names = [line.split("Depends:")[1].strip() for line in lines if line.strip().startswith("Depends:")]
        for name in names:
            if name.startswith(prefix):
                return name
        raise SetupError(f"{package} in {self.suite} depends on no {prefix}*: {names}")

    def unpack(self, package: str, into: Path) -> None:
        """Download a package and unpack it into a folder, with none of its scripts run."""
        download = self.root / "download"
        shutil.rmtree(download, ignore_errors=True)
        download.mkdir()
        command = ["apt-get", "-q", *self._options(), "download", package]
        done = subprocess.run(command, cwd=download, capture_output=True, text=True)
        archives = list(download.glob("*.deb"))
        if done.returncode or not archives:
            raise SetupError(f"{shlex.join(command)} exited with {done.returncode}:\n{done.stderr}")
        run("dpkg-deb", "-x", str(archives[0]), str(into))
        shutil.rmtree(download)
