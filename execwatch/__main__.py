"""``python -m execwatch``."""

import sys

from execwatch.cli import main

if __name__ == "__main__":
    sys.exit(main())
