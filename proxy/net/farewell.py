"""
Close a connection so that its peer can read what it was told last (RFC 9112, section 9.6).

A connection that is closed with unread bytes, or to which some come later, is reset by the kernel, and a
reset can overtake what was said: many systems throw away what their program has not read by then. So we end
our own side first, and read on, for nothing, until the peer ends too.
"""

from contextlib import suppress
from typing import Any

from proxy.errors import ProtocolError
from proxy.net.deadline import Deadline, next_turn, wait

_QUIET = 1.0  # seconds without a byte, after which nobody is waited for
_AT_MOST = 5.0  # seconds: a large upload may go on until its program looks for an answer
_nothing = memoryview(bytearray(64 * 1024))


def close_after_peer(sock: Any) -> None:
    """Close a socket whose own side has ended, when the peer has ended too, or after a bounded time."""
    try:
        with suppress(OSError, ProtocolError):  # where the peer is gone
            whole = Deadline(_AT_MOST)
            while _hears(sock, whole):
                pass
    finally:
        sock.close()


def _hears(sock: Any, whole: Deadline) -> bool:
    """Read what comes next, and tell if it was not the end."""
    # Each time, also if there is something already: others are to be served, too.
    with whole.within(_QUIET).limit("last word"):
        if sock.pending:
            next_turn()
        else:
            wait(sock.reader)
    with suppress(BlockingIOError):
        return bool(sock.recv_into(_nothing))
    return True
