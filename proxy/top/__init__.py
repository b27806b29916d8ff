"""``ctl top``: the live picture of a server."""
