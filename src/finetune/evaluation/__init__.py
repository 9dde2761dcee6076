"""Figures of outputs and labels: one definition each, for training, combining and reporting."""
