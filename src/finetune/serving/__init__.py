"""A checkpoint as a server: one page to try it on, and answers in JSON."""
