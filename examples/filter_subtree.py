"""What does this command start? Runs it, and then lists all that ran below it, and nothing else.

sudo python examples/filter_subtree.py -- make -j2
"""

import argparse
import os
import subprocess
import sys

from execwatch import ExecTracer, Filter


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hide", action="append", metavar="NAME", help="leave out programs of this name")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()

    # The kernel follows the descendants of this process: forks that execute nothing included.
    chosen = Filter(descendants_of=os.getpid(), exclude=Filter(comms=args.hide) if args.hide else None)
    with ExecTracer(chosen) as tracer:
        status = subprocess.run(args.command).returncode
        # Everything that started before this call, and no waiting for more.
        events = tracer.read(timeout=0)
        lost = tracer.stats().lost

    for event in events:
        print(f"{event.pid:>7} {event.ppid or '?':>7}  {event.command_line}")
    if lost:
        print(f"and {lost} that were lost", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
