"""Finds BCC, which no virtual environment has and no package index offers.

Distributions install it for their own Python. It is pure Python over a C
library, so the copy of one Python works in another; it is loaded by its place,
for its folder on ``sys.path`` would bring along whatever else lies there. PyPI's
``bcc`` is something else altogether (crystals) and is passed over.
"""

from __future__ import annotations

import glob
import os
import re
import sys
import sysconfig
from types import ModuleType
from typing import Iterator, List, Optional

from execwatch.build._child import load_bcc
from execwatch.errors import BccNotFoundError
from execwatch.kernel import cache

#: Names the folder that holds the package ``bcc``, where it is not the distribution's.
PATH_VARIABLE = "EXECWATCH_BCC_PATH"

#: Where distributions put what belongs to their own Pythons.
_SYSTEM_FOLDERS = (
    "/usr/lib/python3/dist-packages",
    "/usr/lib/python3*/site-packages",
    "/usr/lib64/python3*/site-packages",
    "/usr/local/lib/python3*/dist-packages",
    "/usr/local/lib/python3*/site-packages",
    "/usr/local/lib64/python3*/site-packages",
)

_OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")

_INSTALL = {
    "debian": "apt-get install -y python3-bpfcc",
    "ubuntu": "apt-get install -y python3-bpfcc",
    "fedora": "dnf install -y python3-bcc",
    "rhel": "dnf install -y python3-bcc",
    "centos": "dnf install -y python3-bcc",
    "arch": "pacman -S --noconfirm python-bcc",
    "alpine": "apk add py3-bcc",
    "suse": "zypper install -y python3-bcc",
    "opensuse": "zypper install -y python3-bcc",
    "gentoo": "emerge dev-util/bcc",
}


def find() -> ModuleType:
    """Import BCC, wherever it is.

    Raises:
        BccNotFoundError: There is none, or it does not work.
    """
    present = sys.modules.get("bcc")
    if present is not None and hasattr(present, "BPF"):
        return present
    try:
        return load_bcc(require())
    except BccNotFoundError:
        raise
    except ImportError as exc:
        raise unusable(str(exc)) from exc


def locate() -> Optional[str]:
    """Return the folder that holds BCC's package, without importing it; None where there is none.

    Raises:
        BccNotFoundError: ``EXECWATCH_BCC_PATH`` names a folder that must not or cannot be used.
    """
    chosen = os.environ.get(PATH_VARIABLE)
    if chosen:
        return _checked(chosen)
    return next(filter(_has_bcc, _folders()), None)


def require() -> str:
    """Return what :func:`locate` does.

    Raises:
        BccNotFoundError: There is none.
    """
    folder = locate()
    if folder is None:
        raise BccNotFoundError(
            f"BCC was not found. Looked in: {', '.join(map(_seen, _folders()))}. {_remedy()}"
        )
    return folder


def unusable(reason: str) -> BccNotFoundError:
    """Return the error for a BCC that is there but can't be imported."""
    return BccNotFoundError(f"BCC can't be used: {reason}. {_remedy()}")


def version(folder: str) -> Optional[str]:
    """Return the version of the BCC in ``folder``, without importing it; None if it doesn't say."""
    try:
        with open(os.path.join(folder, "bcc", "version.py"), encoding="utf-8") as file:
            match = re.search(r"__version__ *= *['\"]([^'\"]+)", file.read())
    except OSError:
        return None
    return match.group(1) if match else None


def install_command() -> Optional[str]:
    """Return the command that installs BCC on this distribution; None if it isn't known."""
    release = _os_release()
    for name in [release.get("ID", ""), *release.get("ID_LIKE", "").split()]:
        command = _INSTALL.get(name.split("-")[0])  # opensuse-leap, opensuse-tumbleweed
        if command:
            return command
    return None


def _folders() -> List[str]:
    # Not sys.path: PYTHONPATH and the working directory may not choose a compiler.
    own = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    system = [path for pattern in _SYSTEM_FOLDERS for path in sorted(glob.glob(pattern), reverse=True)]
    return list(dict.fromkeys(own + system))


def _has_bcc(folder: str) -> bool:
    # PyPI's package has no such module.
    return os.path.isfile(os.path.join(folder, "bcc", "libbcc.py"))


def _seen(folder: str) -> str:
    other = os.path.exists(os.path.join(folder, "bcc"))
    return f"{folder} (has another package of that name)" if other else folder


def _checked(folder: str) -> str:
    """Return the real path of the folder that the user chose, if it can be trusted as code."""
    real = os.path.realpath(folder)
    if not _has_bcc(real):
        raise BccNotFoundError(f"{PATH_VARIABLE}={folder} holds no BCC. Unset it, or name a folder that does")
    for path in _contents(os.path.join(real, "bcc")):
        reason = cache.why_untrusted(path)
        if reason:
            raise BccNotFoundError(
                f"{PATH_VARIABLE}={folder} is refused: {reason}. "
                f"Only root or the user who runs this may be able to write there"
            )
    return real


def _contents(package: str) -> Iterator[str]:
    for folder, _, files in os.walk(package):
        yield folder
        yield from (os.path.join(folder, name) for name in files)


def _os_release() -> dict[str, str]:
    for path in _OS_RELEASE:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                pairs = [line.strip().partition("=") for line in file]
        except OSError:
            continue
        return {key: value.strip("\"'") for key, _, value in pairs}
    return {}


def _remedy() -> str:
    command = install_command()
    advice = f"To install it: {command}" if command else "Install the BCC of your distribution (python3-bcc)"
    return f"{advice}; or let {PATH_VARIABLE} name the folder that holds the package bcc"
