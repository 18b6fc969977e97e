r"""Which container a process runs in, told by the path of its cgroup: no socket, no look-up, no I/O.

A path has a name for each level, and container runtimes write their ids there:
``/system.slice/docker-ID.scope``, ``/kubepods/burstable/podUID/ID``,
``/machine.slice/libpod-ID.scope/container``, ``/lxc.payload.NAME/init.scope``. The
innermost container counts: of docker in docker, or of a pod in a node that is a
container itself (kind), it is the inner one. What manages a container from outside
(conmon, LXC's monitor, the supervisor of systemd-nspawn) is not in it; a pod's
sandbox ("pause") is a container like others.

What can be trusted: that a process is in *some* container, and the outermost level
(the first id in ``cgroup_path``), as long as only the system's own runtime writes
cgroups there. The levels below belong to whom that level was delegated: a
process that may write cgroups in its container (privileged, or with a cgroup
namespace mounted read-write) can make one of any name inside and so claim any id
as the innermost; nothing in the path tells that from docker in docker. It can't
leave: a name that is no id changes nothing. On the host, root, and a user below
their own ``user@UID.service``, can name a cgroup as a container's. Do not grant
anything, nor look away, for an innermost id alone.

Not recognised: containers whose directory is a plain name (``ctr`` and ``runc`` with
an id of their user's choice and without systemd), systemd-nspawn on cgroup v1, and
virtual machines.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Callable, Collection, Dict, Optional

from execwatch.events import Container

_HEX = "[0-9a-f]{64}"
#: Of a build step: identity.NewID() of BuildKit.
_BUILD = "[0-9a-z]{25}"
#: What a user names a container: an LXC or systemd-nspawn machine, an argument of runc.
_NAME = r"[A-Za-z0-9][\w.+-]{0,254}"
#: The same in the name of a systemd unit, where "-" may be escaped.
_UNIT_NAME = r"(?=[A-Za-z0-9])(?:[\w.+-]|\\x2d)+"
_FARGATE = r"[0-9a-f]{32}-\d{1,10}"
#: An instance of Cloud Foundry: a UUID, perhaps cut short, perhaps with what a side task is for.
_GARDEN = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){4}[\w-]*"


def _slice(prefix: str) -> str:
    """What containerd and CRI-O make of ``PARENT.slice:PREFIX:ID`` where runc doesn't use systemd."""
    return rf"[^/]*\.slice:{prefix}:"


#: One or more levels that end in a container's; each form has a group, named after the runtime.
_FORMS = (
    rf"(?:{_slice('docker')}|docker[-/])(?P<docker>{_HEX}|{_BUILD})(?:\.scope)?",
    rf"(?:{_slice('cri-containerd')}|cri-containerd-|nerdctl-|default/|k8s\.io/)(?P<containerd>{_HEX})(?:\.scope)?",
    rf"(?:{_slice('crio')}|crio-)(?P<crio>{_HEX})(?:\.scope)?",
    rf"libpod-(?:payload-)?(?P<podman>{_HEX})(?:\.scope)?",
    rf"(?:{_slice('buildkit')}|buildkit[-/])(?P<buildkit>{_BUILD})(?:\.scope)?",
    # The fewest levels between: else an inner container's id would be taken for that of a task.
    rf"ecs/(?:[^/]+/){{0,2}}?(?P<ecs>{_HEX}|{_FARGATE})",
    rf"garden/(?:good/|bad/)?(?P<garden>{_GARDEN})",
    rf"runc-(?P<runc>{_NAME})\.scope",
    rf"runsc-(?P<runsc>{_NAME})\.scope",
    rf"crun-(?P<crun>{_NAME})\.scope",
    # Only at the root is "lxc" surely that of LXC.
    rf"(?:lxc\.payload[./]|(?<=\A/)lxc/)(?P<lxc>{_NAME})",
    rf"machine-lxc\\x2d\d+\\x2d(?P<libvirt>{_UNIT_NAME})\.scope",
    # Without "payload" it could be a virtual machine, or the supervisor.
    rf"(?:machine-(?P<machine>{_UNIT_NAME})\.scope|systemd-nspawn@(?P<nspawn>{_UNIT_NAME})\.service)/payload",
    # What is directly below libpod_parent is a pod of podman's.
    rf"(?<!/libpod_parent/)(?P<plain>{_HEX})",
)


@cache
def _level() -> re.Pattern[str]:
    return re.compile(rf"/(?:{'|'.join(_FORMS)})(?![^/])", re.ASCII)  # compiled late: it takes 2 ms


#: Where the runtime isn't called like the group.
_RUNTIMES: Dict[str, Optional[str]] = {
    "crio": "cri-o",
    "libvirt": "libvirt-lxc",
    "machine": "systemd-nspawn",
    "nspawn": "systemd-nspawn",
    "plain": None,
}

_DASH = r"(?:[-_]|\\x2d)"
#: A pod's level. The kubelet writes "_" for "-" in names of units; a static pod's uid is a hash without any.
_POD = re.compile(
    rf"[/-]pod([0-9a-f]{{8}}(?:{_DASH}[0-9a-f]{{4}}){{3}}{_DASH}[0-9a-f]{{12}}|[0-9a-f]{{32}})(?:\.slice)?(?![^/:])"
)

_IS_ID = re.compile(_NAME, re.ASCII).fullmatch

#: Digits of an id that ``docker ps`` shows.
_SHORT, _FULL = 12, 64


def parse(cgroup_path: str) -> Optional[Container]:
    """Return the innermost container of a cgroup; None where it belongs to none.

    Args:
        cgroup_path: From the root of the hierarchy, as ``ProcessEvent.cgroup_path``.

    The id is what the runtime shows in full: mostly 64 hexadecimal digits; 25 characters for a
    step of a build; a task's id and a number on AWS Fargate; a name with LXC, systemd-nspawn,
    libvirt, runc, crun and runsc. The runtime is the one that names its cgroups so: "docker",
    "containerd", "cri-o", "podman", "buildkit", "ecs", "garden", "runc", "crun", "runsc" (gVisor),
    "lxc", "libvirt-lxc", "systemd-nspawn"; None where several do, as below ``/kubepods`` without
    systemd. Of a static pod the uid is the kubelet's, not that of its mirror in the API.
    """
    level = _last(_level(), cgroup_path, len(cgroup_path))
    if level is None:
        return None
    form = level.lastgroup or ""
    pod = _last(_POD, cgroup_path, level.start(form))
    return Container(
        id=level[form].replace("\\x2d", "-"),
        runtime=_RUNTIMES.get(form, form),
        pod_uid=pod[1].replace("\\x2d", "-").replace("_", "-") if pod else None,
    )


def _last(pattern: re.Pattern[str], text: str, end: int) -> Optional[re.Match[str]]:
    found = None
    for found in pattern.finditer(text, 0, end):  # noqa: B007
        pass
    return found


def is_id(text: str) -> bool:
    """Whether a container could be asked for so: an id, its first digits, or a name; see :func:`matcher`."""
    return _IS_ID(text) is not None


def matcher(ids: Collection[str]) -> Callable[[Optional[Container]], bool]:
    """Return what tells whether a container is one of ``ids``.

    Each is an id or a name in full, or the first 12 or more digits of an id that has 64, as
    ``docker ps`` shows it.
    """
    wanted = frozenset(ids)
    lengths = sorted({len(id) for id in wanted if _SHORT <= len(id) < _FULL})

    def matches(container: Optional[Container]) -> bool:
        if container is None:
            return False
        id = container.id
        return id in wanted or (len(id) == _FULL and any(id[:length] in wanted for length in lengths))

    return matches
