"""Where a program's image comes from: shipped beside its source, cached, or compiled now."""

from __future__ import annotations

import os
from typing import Any, Optional, Tuple

from execwatch.build import source
from execwatch.kernel import cache
from execwatch.kernel.image import FORMAT, ProgramImage


def load(
    name: str = "exec",
    *,
    defines: Tuple[str, ...] = (),
    folder: str = source.FOLDER,
    cache_directory: Optional[str] = None,
) -> ProgramImage:
    """Return the image of a program.

    Args:
        name: The program's source is ``name.bpf.c`` in ``folder``.
        defines: Macros that leave out programs which are not wanted, where it has to be
            compiled: the shipped image has them all.
        folder: Holds the source, its headers, and shipped images in ``shipped/``.
        cache_directory: Instead of the user's.

    Raises:
        BccNotFoundError: It has to be compiled, and there is no BCC.
        CompileError: BCC refused it.
        PrivilegeError: It has to be compiled, and BCC may not create maps.
    """
    text = source.read(name, folder=folder)
    source_hash = source.digest(text, folder=folder)
    image = _shipped(name, folder, source_hash)
    return image or _cached_or_compiled(name, text, defines, folder, source_hash, cache_directory)


def shipped_path(name: str, *, folder: str = source.FOLDER) -> str:
    """Return where the image of a program lies that is shipped with its source."""
    return os.path.join(folder, "shipped", f"{name}.json")


def _shipped(name: str, folder: str, source_hash: str) -> Optional[ProgramImage]:
    path = shipped_path(name, folder=folder)
    try:
        with open(path, encoding="utf-8") as file:
            image = ProgramImage.from_json(file.read())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        _log("warning", "ignoring the shipped image %s: %s", path, exc)
        return None
    if image.source_hash != source_hash:
        _log("warning", "the shipped image %s is not of the source beside it", path)
        return None
    return image


def _cached_or_compiled(
    name: str,
    text: str,
    defines: Tuple[str, ...],
    folder: str,
    source_hash: str,
    directory: Optional[str],
) -> ProgramImage:
    from execwatch.build import bcc  # nothing of this is needed where the shipped image fits

    bcc_folder = bcc.require()
    key = f"image-{name}-{_key(source_hash, defines, bcc_folder, bcc.version(bcc_folder))}"
    image = _cached(key, source_hash, directory)
    if image:
        return image

    from execwatch.build.compiler import compile_image

    _log("info", "compiling %s with the BCC in %s", name, bcc_folder)
    image = compile_image(text, include_dir=folder, bcc_folder=bcc_folder, defines=defines)
    cache.write(key, image.to_json().encode(), directory=directory)
    return image


def _cached(key: str, source_hash: str, directory: Optional[str]) -> Optional[ProgramImage]:
    data = cache.read(key, directory=directory)
    if data is None:
        return None
    try:
        image = ProgramImage.from_json(data.decode())
        if image.source_hash != source_hash:
            raise ValueError("it is of another source")
    except ValueError as exc:
        _log("warning", "ignoring the cached image %s: %s", key, exc)
        return None
    return image


def _key(source_hash: str, defines: Tuple[str, ...], bcc_folder: str, bcc_version: Optional[str]) -> str:
    import hashlib  # takes 3 ms

    # The source's hash covers the options. A distribution changes its package without
    # changing the version of BCC, so the file's identity counts too.
    package = os.stat(os.path.join(bcc_folder, "bcc", "libbcc.py"))
    identity = (package.st_dev, package.st_ino, package.st_size, package.st_mtime_ns)
    parts = (FORMAT, source_hash, defines, os.uname().machine, bcc_folder, bcc_version, identity)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _log(level: str, message: str, *args: Any) -> None:
    import logging  # costs start-up time, and is hardly ever needed

    getattr(logging.getLogger("execwatch"), level)(message, *args)
