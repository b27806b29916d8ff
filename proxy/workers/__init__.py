"""One of several processes that serve the same listeners, and how it talks with the one that has these."""

VARIABLE = "PROXY_SERVER_WORKER"  # of the environment, by which a process knows that it is one
