"""HTTP without I/O: strict heads, and failures as statuses."""
