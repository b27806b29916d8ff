"""What an operator types: ctl asks a running server, and prints what it answers."""
