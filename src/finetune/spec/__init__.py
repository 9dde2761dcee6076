"""Frozen descriptions that rooms hand to each other: plain values, no behaviour of their own."""
