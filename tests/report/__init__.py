"""Figures from real runs."""
