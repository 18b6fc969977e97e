"""How many programs start in a second? Events in one task, a report in another, one event loop.

sudo python examples/asyncio_events.py --duration 10
"""

import argparse
import asyncio
import contextlib
import time
from typing import Optional

from execwatch import ExecTracer


class Rate:
    def __init__(self) -> None:
        self.programs = 0

    async def count(self, tracer: ExecTracer) -> None:
        async for _ in tracer:
            self.programs += 1

    async def report(self) -> None:
        while True:
            await asyncio.sleep(1)
            print(f"{time.strftime('%H:%M:%S')} {self.programs} a second", flush=True)
            self.programs = 0


async def watch(duration: Optional[float]) -> None:
    rate = Rate()
    async with ExecTracer() as tracer:
        tasks = {asyncio.ensure_future(rate.count(tracer)), asyncio.ensure_future(rate.report())}
        await asyncio.wait(tasks, timeout=duration)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--duration", type=float, help="end after so many seconds")
    args = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(watch(args.duration))


if __name__ == "__main__":
    main()
