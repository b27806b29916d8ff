"""Hours of a node in minutes: what it holds may not grow."""
