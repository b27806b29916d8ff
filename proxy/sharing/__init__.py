"""What many connections share: turns of the event loop, bandwidth, and pipes."""
