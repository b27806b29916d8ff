"""A TCP proxy: SOCKS5, HTTP and WebSocket, for clients and towards upstreams."""

__version__ = "0.2.0"
