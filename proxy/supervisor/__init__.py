"""The process that has the listeners and serves no client, and gives its sockets to workers that do."""
