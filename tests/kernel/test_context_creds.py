"""Whose rights a program has, and whether it owes them to its file, against what /proc says."""

from __future__ import annotations

import os
import pathlib
import pwd
import shlex
import shutil
import subprocess
from typing import Any, Callable, Optional

import attrs
import pytest

from . import witness
from .conftest import Reason, skip
from .test_context import SOMEBODY, agree, needs_user_namespaces, place, seen

__all__ = ["place"]  # a fixture

pytestmark = pytest.mark.usefixtures("root")

Programs = Callable[[str], str]

#: Of a file.
OWNER, GROUP = 54242, 54343

AS_SOMEBODY = f"setpriv --reuid={SOMEBODY} --regid={SOMEBODY} --clear-groups"

NET_RAW = 1 << 13


NO_GAIN = (False, False, False)


@attrs.frozen
class Case:
    """How a program is started, what its file is like, and what has to come of it.

    Args:
        before: The command that starts the program; ``{place}`` is where that lies.
        owner, mode, caps: Of the program's file.
        gains: ``setuid setgid file_capabilities``, what of that took effect.
        **fields: What the credentials are, for the test to be about what it says it is.
    """

    before: str = ""
    owner: tuple[int, int] = (0, 0)
    mode: int = 0o755
    caps: str = ""
    gains: tuple[Optional[bool], Optional[bool], Optional[bool]] = NO_GAIN
    fields: dict[str, Any] = attrs.field(factory=dict)


SETUID, SETGID, BOTH = (True, False, False), (False, True, False), (True, True, False)
FILE_CAPS, UNKNOWN_CAPS = (False, False, True), (False, False, None)
NOSUID = (
    "unshare --mount sh -ec 'mount --bind {place} {place}; mount -o remount,bind,nosuid {place};"
    f' exec {AS_SOMEBODY} "$0"\''
)
OWNED, SAME = {"euid": OWNER, "suid": OWNER, "fsuid": OWNER}, {"euid": SOMEBODY, "egid": SOMEBODY}
OWNED_GROUP = {"egid": GROUP, "sgid": GROUP, "fsgid": GROUP}
SECURE, INSECURE = {"secureexec": True}, {"secureexec": False}
NO_CAPS = {"cap_effective": 0, "cap_permitted": 0}
RAW = {"cap_effective": NET_RAW, "cap_permitted": NET_RAW}

CASES = {
    "root": Case("", (OWNER, GROUP), 0o755, "", NO_GAIN, {"uid": 0, "euid": 0, **INSECURE}),
    "somebody": Case(AS_SOMEBODY, fields={"uid": SOMEBODY, "gid": SOMEBODY, **SAME, **NO_CAPS, **INSECURE}),
    "su": Case("su nobody -s", fields={"uid": pwd.getpwnam("nobody").pw_uid, **NO_CAPS, **INSECURE}),
    # Unequal before the exec: nothing of the file's doing.
    "real is not effective": Case(
        f"setpriv --ruid={SOMEBODY} --euid={OWNER} --rgid={SOMEBODY} --egid={GROUP} --clear-groups",
        fields={"uid": SOMEBODY, "gid": SOMEBODY, **OWNED, **OWNED_GROUP, **SECURE},
    ),
    "root without its power": Case("setpriv --securebits=+noroot", fields={"euid": 0, **NO_CAPS}),
    "bounding set": Case("setpriv --bounding-set=-all,+net_raw", fields={"euid": 0, **RAW}),
    "setuid": Case(AS_SOMEBODY, (OWNER, GROUP), 0o4755, "", SETUID, {**OWNED, "egid": SOMEBODY, **SECURE}),
    "setuid root": Case(AS_SOMEBODY, (0, 0), 0o4755, "", SETUID, {"uid": SOMEBODY, "euid": 0, **SECURE}),
    "setuid by root": Case(
        "", (OWNER, 0), 0o4755, "", SETUID, {"uid": 0, **OWNED, "cap_effective": 0, **SECURE}
    ),
    "setuid root by root": Case("", (0, 0), 0o4755, "", NO_GAIN, {"uid": 0, "euid": 0, **INSECURE}),
    "setuid by its owner": Case(AS_SOMEBODY, (SOMEBODY, 0), 0o4755, "", NO_GAIN, {**SAME, **INSECURE}),
    # From one who was OWNER until then: the ids afterwards are as if nothing had happened.
    "setuid to the real user": Case(
        f"setpriv --ruid={SOMEBODY} --euid={OWNER} --clear-groups",
        (SOMEBODY, 0),
        0o4755,
        "",
        SETUID,
        {"uid": SOMEBODY, "euid": SOMEBODY, "suid": SOMEBODY},
    ),
    # It gains what root has, and has another effective than real id, but not from this file.
    "setuid, nosuid, by a root that had nothing": Case(
        "unshare --mount sh -ec 'mount --bind {place} {place}; mount -o remount,bind,nosuid {place}; exec"
        f' setpriv --ruid={SOMEBODY} --euid=0 --clear-groups capsh --caps=cap_net_raw=ep --shell="$0" --\'',
        (OWNER, 0),
        0o4755,
        fields={"uid": SOMEBODY, "euid": 0},
    ),
    "setgid": Case(AS_SOMEBODY, (0, GROUP), 0o2755, "", SETGID, {**OWNED_GROUP, "euid": SOMEBODY, **SECURE}),
    # The bit then stands for mandatory locking.
    "setgid, not executable": Case(AS_SOMEBODY, (0, GROUP), 0o2705, "", NO_GAIN, {**SAME, **INSECURE}),
    "setgid by its group": Case(AS_SOMEBODY, (0, SOMEBODY), 0o2755, "", NO_GAIN, {**SAME, **INSECURE}),
    "both": Case(AS_SOMEBODY, (OWNER, GROUP), 0o6755, "", BOTH, {**OWNED, **OWNED_GROUP, **SECURE}),
    "setuid, no new privileges": Case(
        f"{AS_SOMEBODY} setpriv --no-new-privs", (OWNER, GROUP), 0o6755, "", NO_GAIN, {**SAME, **INSECURE}
    ),
    "setuid, nosuid": Case(NOSUID, (OWNER, GROUP), 0o6755, "", NO_GAIN, {**SAME, **INSECURE}),
    # Who could tamper with the program that way must not gain by it.
    "setuid, shared": Case(
        f"{AS_SOMEBODY} {{context}} shared -", (OWNER, GROUP), 0o6755, "", NO_GAIN, {**SAME, **SECURE}
    ),
    "setuid, traced": Case(
        f"{AS_SOMEBODY} {{context}} traced -", (OWNER, GROUP), 0o6755, "", NO_GAIN, {**SAME, **SECURE}
    ),
    "capabilities": Case(
        AS_SOMEBODY, caps="cap_net_raw+ep", gains=FILE_CAPS, fields={**RAW, **SAME, **SECURE}
    ),
    "permitted alone": Case(
        AS_SOMEBODY,
        caps="cap_net_raw+p",
        gains=FILE_CAPS,
        fields={"cap_permitted": NET_RAW, "cap_effective": 0, **SECURE},
    ),
    "inheritable, nothing to inherit": Case(
        AS_SOMEBODY, caps="cap_net_raw+i", fields={**NO_CAPS, **INSECURE}
    ),
    "inherited": Case(
        f"{AS_SOMEBODY} --inh-caps=+net_raw",
        caps="cap_net_raw+ei",
        gains=FILE_CAPS,
        fields={**RAW, "cap_inheritable": NET_RAW, **SECURE},
    ),
    "capabilities, no new privileges": Case(
        f"{AS_SOMEBODY} setpriv --no-new-privs", caps="cap_net_raw+ep", fields={**NO_CAPS}
    ),
    "capabilities, shared": Case(
        f"{AS_SOMEBODY} {{context}} shared -", caps="cap_net_raw+ep", fields={**NO_CAPS}
    ),
    "capabilities, nosuid": Case(NOSUID, caps="cap_net_raw+ep", fields={**NO_CAPS, **INSECURE}),
    "capabilities and setuid": Case(
        AS_SOMEBODY, (OWNER, 0), 0o4755, "cap_net_raw+ep", (True, False, True), {**OWNED, **RAW, **SECURE}
    ),
    # The kernel then gives no more than the file has: a set-ID bit alone would give all.
    "capabilities and setuid root": Case(
        AS_SOMEBODY, (0, 0), 0o4755, "cap_net_raw+ep", (True, False, True), {"euid": 0, **RAW, **SECURE}
    ),
    "capabilities, by root": Case(caps="cap_net_raw+ep", fields={"euid": 0, **INSECURE}),
    "capabilities, by root without its power": Case(
        "setpriv --securebits=+noroot", caps="cap_net_raw+ep", gains=FILE_CAPS, fields={"euid": 0, **RAW}
    ),
    "root that gave up all but one": Case(
        "setpriv --no-new-privs capsh --caps=cap_net_raw+ep -- -c 'exec \"$0\"'",
        gains=(False, False, None),
        fields={"euid": 0, **RAW, **INSECURE},
    ),
    "ambient": Case(
        f"{AS_SOMEBODY} --inh-caps=+net_raw --ambient-caps=+net_raw",
        fields={**RAW, "cap_inheritable": NET_RAW, "cap_ambient": NET_RAW, **INSECURE},
    ),
    "ambient and setuid": Case(
        f"{AS_SOMEBODY} --inh-caps=+net_raw --ambient-caps=+net_raw",
        (OWNER, 0),
        0o4755,
        "",
        SETUID,
        {**OWNED, "cap_ambient": 0, "cap_permitted": 0, **SECURE},
    ),
    "ambient and capabilities": Case(
        f"{AS_SOMEBODY} --inh-caps=+chown --ambient-caps=+chown",
        caps="cap_net_raw+ep",
        gains=FILE_CAPS,
        fields={**RAW, "cap_ambient": 0, **SECURE},
    ),
    "one thread is another user": Case(f"{{context}} thread {SOMEBODY}", fields={"uid": SOMEBODY, **NO_CAPS}),
    "logged in": Case("sh -ec 'echo 54321 > /proc/self/loginuid; exec \"$0\"'", fields={"loginuid": 54321}),
    "user namespace, nobody": Case(f"{AS_SOMEBODY} unshare --user", fields={"uid": SOMEBODY, **NO_CAPS}),
    # Root there has all capabilities, whatever its file has.
    "user namespace, root": Case(
        f"{AS_SOMEBODY} unshare --user --map-root-user",
        gains=UNKNOWN_CAPS,
        fields={"uid": SOMEBODY, **SAME, **INSECURE},
    ),
    "user namespace of root": Case("unshare --user --map-root-user", gains=UNKNOWN_CAPS, fields={"uid": 0}),
    "user namespace in another": Case(
        f"{AS_SOMEBODY} unshare --user --map-root-user unshare --user --map-root-user",
        gains=UNKNOWN_CAPS,
        fields={"uid": SOMEBODY},
    ),
    "user namespace, setuid of who is not there": Case(
        f"{AS_SOMEBODY} unshare --user --map-root-user",
        (OWNER, 0),
        0o4755,
        "",
        UNKNOWN_CAPS,
        {**SAME, **INSECURE},
    ),
    "user namespace, setuid": Case(
        "{context} users 50000 setpriv --reuid=4321 --regid=4321 --clear-groups",
        (OWNER, GROUP),
        0o6755,
        "",
        BOTH,
        {"uid": SOMEBODY, **OWNED, **OWNED_GROUP, **NO_CAPS, **SECURE},
    ),
    "user namespace, capabilities": Case(
        f"{AS_SOMEBODY} unshare --user", caps="cap_net_raw+ep", gains=UNKNOWN_CAPS, fields={**RAW, **SECURE}
    ),
}


def file_like(program: str, path: pathlib.Path, case: Case) -> str:
    """A copy of a program that belongs to whom the case says, with its mode and capabilities."""
    shutil.copy(program, path)
    os.chown(path, *case.owner)
    path.chmod(case.mode)
    if case.caps:
        shutil.which("setcap") or skip(Reason.TOOL, "setcap")
        subprocess.run(["setcap", case.caps, path], check=True)
    return str(path)


@pytest.mark.parametrize("name", CASES)
def test_credentials(name: str, programs: Programs, place: pathlib.Path) -> None:
    case = CASES[name]
    if name == "logged in" and not os.path.exists("/proc/self/loginuid"):
        skip(Reason.KERNEL, "CONFIG_AUDIT")
    if name.startswith("user namespace"):
        needs_user_namespaces()
    program = file_like(programs("hold"), place / "program", case)
    before = shlex.split(case.before.format(place=place, context=programs("context")))
    if before and not shutil.which(before[0], path=witness.PATH):
        skip(Reason.TOOL, before[0])
    with seen(*before, program) as (event, pid):
        agree(event, pid)
        assert event.creds is not None
        fields = attrs.asdict(event.creds)
        assert {field: fields[field] for field in case.fields} == case.fields
        # Where set-user-ID leads back, AT_SECURE alone can tell, and does since Linux 6.16.
        back = case.gains == SETUID and event.creds.euid == event.creds.uid and not event.creds.secureexec
        gains = NO_GAIN if back else case.gains
        assert (event.creds.setuid, event.creds.setgid, event.creds.file_capabilities) == gains


def test_a_setuid_script_gains_nothing(programs: Programs, place: pathlib.Path) -> None:
    plain = file_like(programs("hold"), place / "plain", Case())
    script = place / "script"
    script.write_text(f"#!{plain}\n")
    os.chown(script, OWNER, GROUP)
    script.chmod(0o6755)
    with seen(*shlex.split(AS_SOMEBODY), str(script)) as (event, pid):
        agree(event, pid)
        assert event.creds is not None
        assert (event.creds.euid, event.creds.egid) == (SOMEBODY, SOMEBODY)
        assert (event.creds.setuid, event.creds.setgid, event.creds.file_capabilities) == NO_GAIN


def test_a_script_of_a_setuid_interpreter_gains(programs: Programs, place: pathlib.Path) -> None:
    interpreter = file_like(programs("hold"), place / "interpreter", Case("", (OWNER, GROUP), 0o6755))
    script = place / "script"
    script.write_text(f"#!{interpreter}\n")
    script.chmod(0o755)
    with seen(*shlex.split(AS_SOMEBODY), str(script)) as (event, pid):
        agree(event, pid)
        assert event.creds is not None
        assert (event.creds.euid, event.creds.egid) == (OWNER, GROUP)
        assert (event.creds.setuid, event.creds.setgid, event.creds.file_capabilities) == BOTH


def test_what_tools_tell(programs: Programs, place: pathlib.Path) -> None:
    """Other readers of the same: ps and getpcaps."""
    for tool in ("ps", "getpcaps"):
        shutil.which(tool) or skip(Reason.TOOL, tool)
    case = Case(owner=(OWNER, GROUP), mode=0o6755, caps="cap_net_raw+ep")
    program = file_like(programs("hold"), place / "program", case)
    with seen(*shlex.split(AS_SOMEBODY), program, start_new_session=True) as (event, pid):
        creds, session = event.creds, event.session
        assert creds is not None
        assert session is not None
        names = ["uid", "euid", "suid", "fsuid", "gid", "egid", "sgid", "fsgid"]
        columns = "ruid=,euid=,suid=,fsuid=,rgid=,egid=,sgid=,fsgid=,sess=,pgid=,ppid="
        ps = subprocess.run(["ps", "-o", columns, "-p", str(pid)], stdout=subprocess.PIPE, check=True)
        ids = [*(getattr(creds, name) for name in names), session.sid, session.pgid, event.ppid]
        assert ids == [int(word) for word in ps.stdout.split()]
        capabilities = subprocess.run(
            ["getpcaps", str(pid)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        )
        assert capabilities.stdout.split()[-1] in ("cap_net_raw=ep", "cap_net_raw+ep")
        assert creds.cap_effective == creds.cap_permitted == NET_RAW
