"""Debian's kernels, by package name, unpacked outside the repository."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import debian

SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie"}
"""Kernel series, and the Debian release whose `linux-image-amd64` it is."""

TOOLS = {
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "depmod": "kmod",
    str(debian.KEYRING): "debian-archive-keyring",
}


@dataclass(frozen=True)
class Kernel:
    series: str
    release: str
    tree: Path

    @property
    def image(self) -> Path:
        return self.tree / "boot" / f"vmlinuz-{self.release}"


def cache() -> Path:
    return debian.cache_dir("kernels", "/var/cache/execwatch-tests/kernels")


def fetch(series: str, *, refresh: bool = False) -> Kernel:
    """The newest kernel of that series in its Debian release; from the cache unless `refresh`."""
    if series not in SUITES:
        raise debian.SetupError(f"no Debian kernel {series}; known: {', '.join(SUITES)}")
    folder = cache() / series
    with debian.locked(cache() / f"{series}.lock"):
        if refresh or not folder.exists():
            debian.need(TOOLS)
            _build(series, folder)
    return _found(series, folder)


def _found(series: str, folder: Path) -> Kernel:
    images = sorted((folder / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        raise debian.SetupError(f"{folder} holds {len(images)} kernels; remove it and try again")
    return Kernel(series, images[0].name.partition("-")[2], folder)


def _build(series: str, folder: Path) -> None:
    suite = debian.Suite(cache() / "apt", SUITES[series])
    suite.update()
    package = suite.dependency("linux-image-amd64", f"linux-image-{series}")
    # Beside the folder, then renamed: a broken download leaves nothing that looks whole.
    with tempfile.TemporaryDirectory(dir=cache(), prefix=f"{series}-") as name:
        tree = Path(name) / "tree"
        tree.mkdir()
        suite.unpack(package, tree)
        _complete(tree, package.partition("linux-image-")[2])
        shutil.rmtree(folder, ignore_errors=True)
        tree.rename(folder)


def _complete(tree: Path, release: str) -> None:
    """What the package's own scripts would have done, as far as a guest needs it."""
    if not (tree / "lib").exists():
        # Since trixie, modules are in /usr/lib, and modprobe -d looks in /lib only.
        (tree / "lib").symlink_to("usr/lib")
    debian.run("depmod", "-a", "-b", str(tree), release)
