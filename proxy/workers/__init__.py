"""Several processes that serve the same listeners, and the one that has these and serves no client."""

VARIABLE = "PROXY_SERVER_WORKER"  # of the environment, by which a process knows that it is one
