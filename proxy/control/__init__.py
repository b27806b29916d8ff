"""The control interface: what a running program is asked, and what it tells. Nothing below imports it."""
