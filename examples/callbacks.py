"""Tell when somebody starts a shell: in a container that serves web pages, nobody should.

sudo python examples/callbacks.py --duration 60
"""

import argparse
import contextlib

from execwatch import ExecEvent, ExecTracer, Filter, LostEvents

SHELLS = {"sh", "bash", "dash", "ash", "zsh", "ksh"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--duration", type=float, help="end after so many seconds")
    args = parser.parse_args()

    # The kernel decides: other programs cost this process nothing.
    with ExecTracer(Filter(comms=SHELLS), lost=True) as tracer:

        @tracer.on_exec
        def shell(event: ExecEvent) -> None:
            print(f"{event.time:%H:%M:%S} shell of uid {event.uid}: {event.command_line}", flush=True)

        # Another callback for a part of them: arguments are looked at here, not in the kernel.
        @tracer.on_exec(where=Filter(args={"-i"}))
        def interactive(event: ExecEvent) -> None:
            print(f"         and it is interactive, started by {event.parent_comm!r}", flush=True)

        @tracer.on_lost
        def lost(gap: LostEvents) -> None:
            print(f"         {gap.count} shells were not seen", flush=True)

        print("watching for shells", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            tracer.dispatch(timeout=args.duration)


if __name__ == "__main__":
    main()
