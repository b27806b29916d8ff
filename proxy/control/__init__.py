"""The control plane: what changes a running proxy. Nothing below imports it."""
