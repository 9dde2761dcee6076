"""One fit: what is trained, when, at what rate; its figures and its files."""
