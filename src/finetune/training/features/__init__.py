"""Activations at the frozen boundary: computed once an image, cached, and served as data."""
