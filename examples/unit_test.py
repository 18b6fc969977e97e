"""How do I test a program that traces? With events that are made up or recorded: no root, no kernel.

python -m pytest examples/unit_test.py
"""

from pathlib import Path
from typing import List

import execwatch
from execwatch import Container, Event, ExecEvent, ExecTracer, Filter
from execwatch.testing import exec_event, exit_event

SHELLS = Filter(comms={"sh", "bash"}, containers=True)


# ---- The program ----------------------------------------------------------------


def watch(tracer: "ExecTracer[Event]") -> List[str]:
    """What is told of the shells that somebody put into a container."""
    told = []
    for event in tracer.events():
        if isinstance(event, ExecEvent) and event.container and event.container.injected:
            told.append(f"{event.container.id[:12]}: {event.command_line}")
    return told


# ---- Its tests --------------------------------------------------------------------

INSIDE = Container(id="9e02dfdeb94f" + 52 * "0", runtime="docker", injected=True)
EVENTS: List[Event] = [
    exec_event(argv=("/bin/sh", "-c", "make"), comm="sh"),
    exec_event(argv=("/bin/sh", "-i"), comm="sh", container=INSIDE),
    exec_event(argv=("/usr/bin/id",), comm="id", container=INSIDE),
    exit_event(comm="sh", exit_code=0, container=INSIDE),
]


def test_a_shell_put_into_a_container_is_told() -> None:
    with execwatch.replay(EVENTS, SHELLS) as tracer:
        assert watch(tracer) == ["9e02dfdeb94f: /bin/sh -i"]


def test_what_was_recorded_elsewhere_is_as_good(tmp_path: Path) -> None:
    recorded = tmp_path / "night.ndjson.gz"  # such as `sudo execwatch record -o night.ndjson.gz` writes
    execwatch.Recording(EVENTS).save(recorded)
    with execwatch.replay(recorded, SHELLS) as tracer:
        assert len(watch(tracer)) == 1
