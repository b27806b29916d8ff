"""The supervisor process: it owns the listeners, and gives its sockets to the workers, which serve."""

# Of the environment, by which a program knows that it takes another one's place, or only tries to.
HANDED, TRIAL = "PROXY_SERVER_HANDED", "PROXY_SERVER_TRIAL"
