"""What tests of streams share: a read that waits, and a stream that a test can look into."""

import gevent
from gevent import socket

from proxy.relaying.stream import Buffer, Ending, TcpStream


def arrived(stream: TcpStream, buffer: Buffer) -> int:
    """Read as soon as there is something, and tell how much it was."""
    while (count := stream.recv_into(buffer, bulk=False)) is None:
        gevent.sleep(0.001)
    return count


class Spy(TcpStream):
    """
    A socket in a relay that a test can make stranger than it is, and that notes how it was ended.
    """

    def __init__(self, sock: socket.socket, *, half_closes: bool = True) -> None:
        super().__init__(sock)
        self.half_closes = half_closes
        self.alive = True
        self.fault: Exception | None = None
        self.story: list[str] = []

    def recv_into(self, buffer: Buffer, *, bulk: bool) -> int | None:
        """Receive, or fail."""
        if self.fault:
            raise self.fault
        return super().recv_into(buffer, bulk=bulk)

    def tick(self, now: float, *, listening: bool) -> bool:
        """Be alive, or not."""
        return super().tick(now, listening=listening) and self.alive

    def begin_close(self, ending: Ending) -> None:
        """Note how it ended."""
        self.story.append(f"begin_close {ending.value}")
        super().begin_close(ending)

    def finish_close(self) -> None:
        """Note that it was closed."""
        self.story.append("finish_close")
        super().finish_close()
