"""``drain.py ARGV_SIZE FAILED [PRINTED...]``: a program that drains a tracer in a thread, beside the peers.

Execs of the programs PRINTED are printed as they come. At SIGINT it says how many execs and
failed attempts it saw of each path: ``count PATH NUMBER``.
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Dict

from execwatch import ExecTracer
from execwatch.events import Event, ExecEvent, FailedExecEvent
from execwatch.tracer import DEFAULT_BUFFER_SIZE


def main(argv_size: str, failed: str, *printed: str) -> None:
    counts: Dict[str, int] = {}

    def drain(tracer: ExecTracer[Event]) -> None:
        for event in tracer.events():
            if not isinstance(event, (ExecEvent, FailedExecEvent)) or event.filename is None:
                continue
            counts[event.filename] = counts.get(event.filename, 0) + 1
            if event.filename in printed and event.argv is not None:
                print(*event.argv, flush=True)

    size = int(argv_size)
    buffer_size = max(DEFAULT_BUFFER_SIZE, 4 * size)
    with ExecTracer(failed=failed == "yes", argv_size=size, buffer_size=buffer_size) as tracer:
        signal.signal(signal.SIGINT, lambda *_: tracer.stop())
        thread = threading.Thread(target=drain, args=[tracer])
        thread.start()
        thread.join()
        lost = tracer.stats().lost
    for path, count in counts.items():
        print("count", path, count)
    print("lost", lost)


if __name__ == "__main__":
    main(*sys.argv[1:])
