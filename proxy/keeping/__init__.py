"""The configuration in effect: how it is kept, watched and changed."""
