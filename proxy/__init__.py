"""A TCP proxy: SOCKS5, HTTP and WebSocket, on the way in and on the way out."""

__version__ = "0.2.0"
