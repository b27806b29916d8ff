"""A worker: one of several processes that serve the same listeners, and its link to the supervisor."""

VARIABLE = "PROXY_SERVER_WORKER"  # of the environment, by which a process knows that it is one
