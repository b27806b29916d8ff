"""
Fetch a page through a WebSocket listener, with nothing but the websocket-client package.

    python websocket_client.py ws://127.0.0.1:8080/ www.example.com 80
"""

import sys

import websocket


def main(listener: str, host: str, port: str) -> None:
    """Ask the listener for the target, say one HTTP request, and print all that comes back."""
    # Where users are set: X-Proxy-Username and X-Proxy-Password too.
    headers = {"X-Proxy-Target-Host": host, "X-Proxy-Target-Port": port}
    tunnel = websocket.create_connection(listener, header=headers, timeout=30)
    tunnel.send_binary(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
    while data := tunnel.recv():
        sys.stdout.buffer.write(data)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except websocket.WebSocketBadStatusException as exc:
        sys.exit(f"no connection: {exc.resp_body.decode().strip()}")
