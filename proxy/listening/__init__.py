"""A listener's addresses, and the clients that come to them."""
