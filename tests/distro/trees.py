"""Trees of other Debian releases, made by debootstrap outside the repository."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "vm"))

import debian

TOOLS = {
    "debootstrap": "debootstrap",
    "unshare": "util-linux",
    str(debian.KEYRING): "debian-archive-keyring",
}
PYTHON = ("ca-certificates", "python3", "python3-venv")
CONTAINERS = ("busybox-static", "crun", "runc")
WITNESSES = ("bsdutils", "jq", "libcap2-bin", "procps", "strace", "tmux", "util-linux")
FULL = (*PYTHON, *CONTAINERS, *WITNESSES, "gcc", "libc6-dev", "make", "python3-bpfcc", "python3-pip")
MARKER = "etc/execwatch-tree.json"


@dataclass(frozen=True)
class Tree:
    """What a tree is made of."""

    name: str
    suite: str
    packages: Sequence[str]
    scratch: bool = False
    """Writable while a command runs, and as new for the next one."""

    @property
    def path(self) -> Path:
        return cache() / self.name


TREES = {
    tree.name: tree
    for tree in (
        Tree("bullseye", "bullseye", FULL),  # BCC 0.18, LLVM 11, Python 3.9
        Tree("bookworm", "bookworm", FULL),  # BCC 0.26, LLVM 14, Python 3.11
        Tree("trixie", "trixie", FULL),  # BCC 0.31, LLVM 19, Python 3.13
        # No BCC and no compiler: what most machines are.
        Tree("plain", "bookworm", PYTHON),
        # Nothing at all: for the first commands of the README.
        Tree("fresh", "bookworm", ("ca-certificates",), scratch=True),
    )
}


def cache() -> Path:
    return debian.cache_dir("distro", "/var/tmp/execwatch-distro")


def build(tree: Tree, *, refresh: bool = False) -> Path:
    """The tree's folder; made if it is not there, or was made from other packages."""
    with debian.locked(cache() / f"{tree.name}.lock"):
        if refresh or _marker(tree.path) != _recipe(tree):
            debian.need(TOOLS)
            _debootstrap(tree)
    return tree.path


def _recipe(tree: Tree) -> object:
    return {"suite": tree.suite, "packages": sorted(tree.packages)}


def _marker(path: Path) -> object:
    try:
        return json.loads((path / MARKER).read_text())
    except (OSError, ValueError):
        return None


def _debootstrap(tree: Tree) -> None:
    # Beside the tree, then renamed: a broken build leaves nothing that looks whole.
    part = tree.path.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    include = ",".join(tree.packages)
    options = ["--variant=minbase", f"--include={include}", f"--keyring={debian.KEYRING}"]
    debian.run("debootstrap", *options, tree.suite, str(part), debian.mirror())
    _slim(part)
    (part / MARKER).write_text(json.dumps(_recipe(tree)))
    shutil.rmtree(tree.path, ignore_errors=True)
    part.rename(tree.path)


def _slim(path: Path) -> None:
    """The downloaded packages are a fifth of a tree."""
    for archive in (path / "var/cache/apt/archives").glob("*.deb"):
        archive.unlink()
