"""Two sources in one loop of your own: what is typed narrows down what is shown.

Type a word to see only programs with it in their arguments; end with Ctrl-D.

    sudo python examples/select_loop.py
"""

import contextlib
import os
import select
import sys

from execwatch import ExecTracer


def main() -> None:
    word = ""
    with ExecTracer() as tracer:
        stdin = sys.stdin.fileno()
        print("type a word, or Ctrl-D to end", flush=True)
        while True:
            ready, _, _ = select.select([stdin, tracer], [], [])
            if tracer in ready:
                # 0: what is there, and no waiting.
                for event in tracer.read(timeout=0):
                    if word in event.command_line:
                        print(f"{event.pid:>7} {event.command_line}", flush=True)
            if stdin in ready:
                typed = os.read(stdin, 4096)
                if not typed:
                    return
                word = typed.decode(errors="replace").strip()
                print(f"now with {word!r}" if word else "now all", flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
