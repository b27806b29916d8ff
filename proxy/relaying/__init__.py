"""A connection's two ends, from the handshake to the last byte, and the relay between them."""
