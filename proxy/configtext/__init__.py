"""The text of a configuration file: what stands where, to be read, shown, compared and changed."""
