"""WebSocket (RFC 6455): each one carries a TCP connection."""
