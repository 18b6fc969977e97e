"""Is somebody in a container? Every program in a table, and each shell in a container again, behind a `!`.

sudo python examples/shell_in_container.py --duration 60
"""

import argparse
import contextlib
import time

from execwatch import ExecEvent, ExecTracer, Filter
from execwatch.render import escape

SHELLS = {"sh", "bash", "dash", "ash", "zsh", "ksh"}
COLUMNS = "{:<7} {:<16} {:<6} {:<6} {:>3} {:<12} {}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--duration", type=float, help="end after so many seconds")
    args = parser.parse_args()

    with ExecTracer() as tracer:
        start = time.clock_gettime(time.CLOCK_BOOTTIME)

        @tracer.on_exec
        def row(event: ExecEvent) -> None:
            seconds = f"{event.boottime_ns / 1e9 - start:.3f}"
            who = escape(event.comm), event.pid, event.ppid or "?", event.retval
            where = event.container.id[:12] if event.container else "-"
            print(COLUMNS.format(seconds, *who, where, event.command_line), flush=True)

        @tracer.on_exec(where=Filter(containers=True, comms=SHELLS))
        def shell(event: ExecEvent) -> None:
            assert event.container is not None
            # `docker exec` and its like put a process in; None: with the host's pids, nobody can tell.
            how = {True: "injected", False: "its own", None: "unknown"}[event.container.injected]
            print(f"! shell in container {event.container.id} ({how}): {event.command_line}", flush=True)

        print(COLUMNS.format("TIME(s)", "PCOMM", "PID", "PPID", "RET", "CONTAINER", "ARGS"), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            tracer.dispatch(timeout=args.duration)


if __name__ == "__main__":
    main()
