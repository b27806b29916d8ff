"""The control interface: what operators can ask a running program. The data plane does not import it."""
