"""The operator's commands: ctl asks a running server, and prints its answer."""
