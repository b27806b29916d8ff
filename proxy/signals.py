"""
Signals that arrive during the start, kept until the program can handle them.

A start takes a while. SIGHUP, SIGUSR1 and SIGUSR2 are taken by a server only, and would end it before it
is one; SIGINT would show a traceback of whatever is being imported. So they wait from the first moment on.
"""

import signal

_FOR_SERVERS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def block(*more: int) -> None:
    """Let them wait, and more of them; to be called before any thread begins."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (*_FOR_SERVERS, signal.SIGINT, *more))


def unblock_interrupt() -> None:
    """Take a SIGINT that came meanwhile, and from now on every one at once, as ``KeyboardInterrupt``."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))


def unblock() -> None:
    """Take the others too: by a server's handlers, or by the default action, which ends the program."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_FOR_SERVERS, signal.SIGTERM))
