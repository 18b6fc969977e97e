"""``fuse_names.py MOUNTPOINT LENGTH PROGRAM``: execute PROGRAM in a folder ``/nnn...`` of so long a name.

The folder is in a file system of this program's own making, which is the root of its mount namespace:
see fuse(4), and include/uapi/linux/fuse.h for the numbers. When it is ready it writes a byte to
standard output, and goes on with one on standard input.
"""

import ctypes
import errno
import os
import struct
import sys
from typing import Optional

MOUNTPOINT, LENGTH, PROGRAM = sys.argv[1], int(sys.argv[2]), sys.argv[3]
NAME = b"n" * LENGTH
INODES = {b"old": 2, NAME: 3}

LOOKUP, FORGET, GETATTR, STATFS, INIT, OPENDIR, BATCH_FORGET = 1, 2, 3, 17, 26, 27, 42
REQUEST = struct.Struct("<IIQQIIIHH")
CLONE_NEWNS, MS_REC, MS_PRIVATE, PIVOT_ROOT = 0x20000, 0x4000, 0x40000, 155

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def attributes(inode: int) -> bytes:
    return struct.pack("<6Q10I", inode, *[0] * 5, *[0] * 3, 0o040755, 2, 0, 0, 0, 4096, 0)


def answer(operation: int, inode: int, body: bytes) -> Optional[bytes]:
    """What is answered; None: there is no such file."""
    if operation == INIT:
        return struct.pack("<4I2H2I2HI", 7, 23, 65536, 0, 12, 10, 65536, 1, 0, 0, 0) + bytes(28)
    if operation == LOOKUP:
        found = INODES.get(body.split(b"\0")[0])
        return found and struct.pack("<4Q2I", found, 0, 1000, 1000, 0, 0) + attributes(found)
    if operation == GETATTR:
        return struct.pack("<Q2I", 1000, 0, 0) + attributes(inode)
    if operation == OPENDIR:
        return struct.pack("<Q2I", 1, 0, 0)
    return bytes(80) if operation == STATFS else b""


def serve(device: int) -> None:
    while True:
        try:
            request = os.read(device, 1 << 17)
        except OSError as exc:
            if exc.errno == errno.ENODEV:  # unmounted
                return
            continue
        _, operation, unique, inode, *_ = REQUEST.unpack_from(request)
        if operation in (FORGET, BATCH_FORGET):
            continue
        data = answer(operation, inode, request[REQUEST.size :])
        head = struct.pack("<IiQ", 16 + len(data or b""), -errno.ENOENT if data is None else 0, unique)
        os.write(device, head + (data or b""))


device = os.open("/dev/fuse", os.O_RDWR)
if os.fork() == 0:
    os.close(0)
    os.close(1)
    serve(device)
    os._exit(0)
checked(libc.unshare(CLONE_NEWNS))
checked(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
place = os.fsencode(MOUNTPOINT)
checked(libc.mount(b"names", place, b"fuse", 0, options))
os.close(device)
checked(libc.syscall(PIVOT_ROOT, place, place + b"/old"))
os.chdir(b"/" + NAME)
os.chroot("/old")
os.write(1, b"R")
os.read(0, 1)
os.execv(PROGRAM, [PROGRAM])
