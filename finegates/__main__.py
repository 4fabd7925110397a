"""``python -m finegates``: see ``finegates.cli``."""

from __future__ import annotations

import sys

from finegates.cli import main

if __name__ == "__main__":
    sys.exit(main())
