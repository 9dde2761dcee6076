"""The phases of a strategy: one fits the final layer in closed form, the others by gradients."""
