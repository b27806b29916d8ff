"""What many connections have together, and in which order: turns of the event loop, bandwidth, and pipes."""
