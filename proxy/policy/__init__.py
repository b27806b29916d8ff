"""Who may come, and where to: values and decisions, without sockets."""
