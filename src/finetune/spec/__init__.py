"""Frozen descriptions that the rooms hand to each other."""
