from __future__ import annotations

import os

from hypothesis import settings

# How long an example takes tells of the machine; and examples are kept where that is allowed.
settings.register_profile("unit", deadline=None)
settings.register_profile("unit-read-only", deadline=None, database=None)
settings.load_profile("unit" if os.access(".", os.W_OK) else "unit-read-only")
