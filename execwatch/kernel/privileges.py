"""What this process may do, and what it would need."""

from __future__ import annotations

import os
from typing import Optional, Tuple

from execwatch.errors import PrivilegeError

#: Numbers of include/uapi/linux/capability.h. CAP_SYS_ADMIN contains the other two.
_CAP_SYS_ADMIN, _CAP_PERFMON, _CAP_BPF = 21, 38, 39


def missing_capabilities() -> Tuple[str, ...]:
    """Return the capabilities that tracing needs and this process doesn't have in effect.

    ``("CAP_BPF", "CAP_PERFMON")`` or a part of it; CAP_SYS_ADMIN stands for both
    (capabilities(7), Linux 5.8).
    """
    effective = _effective()
    if effective >> _CAP_SYS_ADMIN & 1:
        return ()
    needed = (("CAP_BPF", _CAP_BPF), ("CAP_PERFMON", _CAP_PERFMON))
    return tuple(name for name, bit in needed if not effective >> bit & 1)


def lockdown() -> Optional[str]:
    """Return the kernel's lockdown mode, e.g. ``"integrity"``; None where it tells none."""
    try:
        with open("/sys/kernel/security/lockdown") as file:
            text = file.read()
    except OSError:
        return None
    return text.partition("[")[2].partition("]")[0] or None


def explain(memlock: Optional[int] = None) -> PrivilegeError:
    """Return the error that says why the kernel answered EPERM.

    Args:
        memlock: The soft RLIMIT_MEMLOCK in bytes, where raising it was refused.
    """
    missing = missing_capabilities()
    if missing:
        return PrivilegeError(
            f"tracing needs {' and '.join(missing)}, which this process (uid {os.geteuid()}) doesn't have: "
            "run it as root (sudo), or give the capabilities: "
            "sudo capsh --caps='cap_bpf,cap_perfmon+eip cap_setuid,cap_setgid,cap_setpcap+ep' "
            "--keep=1 --user=$USER --addamb=cap_bpf,cap_perfmon -- -c COMMAND"
        )
    if memlock is not None:
        return PrivilegeError(
            f"RLIMIT_MEMLOCK is {memlock} bytes, too little for BPF on a kernel before 5.11, and this "
            "process may not raise it: ulimit -l unlimited, or give it CAP_SYS_RESOURCE"
        )
    if lockdown() == "confidentiality":
        return PrivilegeError(
            "the kernel is locked down (confidentiality), so BPF may not read its memory: "
            "boot without lockdown=confidentiality"
        )
    return PrivilegeError(
        "the kernel refused BPF (EPERM) though the capabilities are there: a seccomp profile, a security "
        "module or the container's runtime forbids bpf(2); in a container run with --privileged"
    )


def _effective() -> int:
    with open("/proc/thread-self/status") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0
