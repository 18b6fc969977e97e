"""Does this script shell out? Runs it, and fails if it executed anything but itself and what is allowed.

sudo python examples/ci_guard.py --allow git -- python build.py
"""

import argparse
import os
import sys
from typing import Optional

import execwatch
from execwatch import Process, Recording


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--allow", action="append", default=[], metavar="NAME", help="a program, or its path")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()

    recording = execwatch.run(args.command)
    assert recording.result is not None
    own = recording.processes[0].key

    found = 0
    for event in recording.execs:
        # What it was called by, and the file that ran: /bin/sh may be /usr/bin/dash.
        paths = [event.filename or "", (event.exe.path or "") if event.exe else ""]
        if event.process_key == own or {*paths, *map(os.path.basename, paths)} & set(args.allow):
            continue
        found += 1
        print(f"not allowed: {event.command_line}", file=sys.stderr)
        print(f"  started by {chain(recording, event.parent_key)}", file=sys.stderr)
    if recording.lost or not recording.complete or recording.still_running:
        print("not everything was seen: no verdict", file=sys.stderr)
        return 2
    return recording.result.returncode or (1 if found else 0)


def chain(recording: Recording, key: Optional[str]) -> str:
    """The parents, from the nearest to the script itself."""
    by_key = {process.key: process for process in recording.processes}
    names = []
    while key in by_key:
        process: Process = by_key[key]
        names.append(process.command_line)
        key = process.parent_key
    return " <- ".join(names)


if __name__ == "__main__":
    sys.exit(main())
