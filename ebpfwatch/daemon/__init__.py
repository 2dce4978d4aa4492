"""The daemon: its loop, and what it looks after. The only package that knows all the others."""
