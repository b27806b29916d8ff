"""
Something that goes on by itself, beside the connections.
"""

from collections.abc import Callable

import gevent


def start(function: Callable[[], None]) -> None:
    """Run a function in a greenlet of its own, which nobody waits for."""
    gevent.spawn(function)
