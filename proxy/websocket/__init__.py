"""The WebSocket wing: RFC 6455, carrying a TCP connection each."""
