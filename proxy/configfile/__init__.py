"""The configuration file: the configuration that its text means, and back."""
