"""Sockets, time and bytes; no protocol and no policy."""
