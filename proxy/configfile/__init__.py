"""The INI file: its text to a configuration, and back."""
