"""Hybrid retrieval as each framework's documentation builds it, each in a process and an environment of its own."""
