"""What may be set: the kinds of settings, and the values that are made of them."""
