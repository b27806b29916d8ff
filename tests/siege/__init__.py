"""Attacks on a proxy, beside a good client that should not notice."""
