"""
Streams that move all they can, as a program of its own: its work shall not delay the test's clock.

Usage: python -m tests.integration.bulk PROXY_HOST PROXY_PORT up|down STREAMS. It prints ``flowing``
once every stream has moved a megabyte, and runs until it is killed.
"""

import socket
import sys
import threading
import time

from tests.wire import clients
from tests.wire.targets import Target

CHUNK = bytes(1 << 18)


def pour(stream: socket.socket) -> None:
    """Send without end."""
    while True:
        stream.sendall(CHUNK)


def swallow(stream: socket.socket) -> None:
    """Read without end."""
    buffer = bytearray(1 << 18)
    while stream.recv_into(buffer):
        pass


def main() -> None:
    """Open the streams, say that they flow, and let them."""
    host, port, direction, count = sys.argv[1:]
    flowing = threading.Semaphore(0)

    def measured_swallow(stream: socket.socket) -> None:
        left = 1 << 20
        while left > 0:
            left -= len(stream.recv(1 << 16))
        flowing.release()
        swallow(stream)

    near, far = (pour, measured_swallow) if direction == "up" else (measured_swallow, pour)
    with Target(far) as target:
        for _ in range(int(count)):
            tunnel = clients.socks5((host, int(port)), "127.0.0.1", target.port)
            tunnel.sock.settimeout(60)
            threading.Thread(target=near, args=(tunnel.sock,), daemon=True).start()
        for _ in range(int(count)):
            flowing.acquire()
        print("flowing", flush=True)
        time.sleep(60)


if __name__ == "__main__":
    main()
