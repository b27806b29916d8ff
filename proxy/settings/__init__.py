"""The settings: their kinds, and the values made of them."""
