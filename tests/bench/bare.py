"""
TLS connections that are held and nothing else: what OpenSSL itself needs for one that is idle.

It runs in the Python that the benchmark runs in, and so on the same OpenSSL as our program. ``serve`` takes
TLS connections and sends a byte on each. ``connect`` takes plain ones, opens a TLS connection for each, and
passes the byte on: so every session ticket has been read by then. What it needs for a plain one is the
kernel's.
"""

import socket
import ssl
import sys


def serve(host: str, port: str, cert: str, key: str) -> None:
    """Serve until somebody ends it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    kept = []
    with socket.create_server((host, int(port)), backlog=4096) as listener:
        while True:
            sock = context.wrap_socket(listener.accept()[0], server_side=True)
            sock.send(b"!")
            kept.append(sock)


def connect(host: str, port: str, to: str, trusted: str) -> None:
    """Connect to another port of the same host for everybody who comes, until somebody ends it."""
    context = ssl.create_default_context(cafile=trusted)
    kept = []
    with socket.create_server((host, int(port)), backlog=4096) as listener:
        while True:
            asked = listener.accept()[0]
            sock = context.wrap_socket(socket.create_connection((host, int(to))), server_hostname=host)
            asked.send(sock.recv(1))
            kept.append(sock)
            asked.detach()


if __name__ == "__main__":
    {"serve": serve, "connect": connect}[sys.argv[1]](*sys.argv[2:])
