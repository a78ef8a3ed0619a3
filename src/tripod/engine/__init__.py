"""Runs models: requests in, tokens or vectors out."""
