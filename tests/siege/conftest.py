"""The siege needs Linux: it reads /proc."""

import sys


def pytest_ignore_collect() -> bool | None:
    """Leave these tests out on other systems."""
    return True if sys.platform != "linux" else None
