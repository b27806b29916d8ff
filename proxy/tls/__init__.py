"""TLS as a layer over a socket of ours: what is trusted, and the records."""
