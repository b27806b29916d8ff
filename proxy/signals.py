"""
Signals that only a server understands, and that would end it before it can.

So they wait from the first moment on, until somebody knows what to do with them: the server, or the
system for all that is none.
"""

import signal

_FOR_SERVERS = (signal.SIGHUP, signal.SIGUSR1)


def hold() -> None:
    """Let them wait; to be called before any thread begins."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_SERVERS)


def heed() -> None:
    """Take those that came meanwhile, and from now on every one at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_SERVERS)
