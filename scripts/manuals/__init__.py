"""Manual pages and shell completion, made of what the program and its documents say already."""
