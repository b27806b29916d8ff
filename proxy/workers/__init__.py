"""Several processes that serve the same listeners, and the one that has these and serves no client."""

HANDED = "PROXY_SERVER_HANDED"  # the same of a program that takes another one's place,
TRIAL = "PROXY_SERVER_TRIAL"  # and of one that only tries whether it could
VARIABLE = "PROXY_SERVER_WORKER"  # of the environment, by which a process knows that it is one
