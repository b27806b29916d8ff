"""A TCP proxy with two doors (SOCKS5, WebSocket) and three ways out (direct, SOCKS5, WebSocket)."""

__version__ = "0.2.0"
