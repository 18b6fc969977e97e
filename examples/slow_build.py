"""Which commands slow my build? Runs it, then adds up what each program took, and names the slowest calls.

sudo python examples/slow_build.py -- make -j2
"""

import argparse
import collections
import sys
from typing import DefaultDict, List

import execwatch
from execwatch import Process
from execwatch.render import escape


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--top", type=int, default=10, help="how many to name")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()

    recording = execwatch.run(args.command)
    assert recording.result is not None

    # A driver such as make or cc waits for those below it: only processes without children work themselves.
    parents = {process.parent_key for process in recording.processes}
    timed = [p for p in recording.processes if p.key not in parents and p.duration_ns is not None]
    by_program: DefaultDict[str, List[Process]] = collections.defaultdict(list)
    for process in timed:
        by_program[process.comm].append(process)

    print(f"{'PROGRAM':<16} {'CALLS':>6} {'TOTAL(s)':>9} {'MEAN(s)':>8}")
    for name, calls in sorted(by_program.items(), key=lambda item: -seconds(*item[1]))[: args.top]:
        total = seconds(*calls)
        print(f"{escape(name):<16} {len(calls):>6} {total:>9.3f} {total / len(calls):>8.3f}")
    print("\nslowest calls")
    for process in sorted(timed, key=lambda p: -seconds(p))[: args.top]:
        print(f"{seconds(process):>9.3f} s  {process.command_line}")
    if recording.lost:
        print(f"{recording.lost} events were lost", file=sys.stderr)
    return recording.result.returncode


def seconds(*processes: Process) -> float:
    return sum(process.duration_ns or 0 for process in processes) / 1e9


if __name__ == "__main__":
    sys.exit(main())
