"""The program as its users meet it: real processes, real sockets, and peers that others wrote."""
